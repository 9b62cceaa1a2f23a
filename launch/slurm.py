"""Slurm's names for a process's place in torchrun's, for `srun` with one task per GPU.

srun --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 python launch/train.py ...
python launch/slurm.py port         a port for torchrun's rendezvous that is free on this node
python launch/slurm.py interface    the network interface to the step's other nodes, if any
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 12_000
"""Below those that the system gives to outgoing connections (from 32,768 on)."""
SIOCGIFADDR = 0x8915
"""Linux's request for an interface's IPv4 address: netdevice(7)."""


def identity(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """RANK, WORLD_SIZE and the like of a task; empty where torchrun set them, or it is alone."""
    several = int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if not several or "SLURM_PROCID" not in environ or "RANK" in environ:
        return {}
    of_node = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    return network(environ) | {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(of_node[int(environ["SLURM_NODEID"])]),
        "MASTER_ADDR": first_host(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port(environ)),
    }


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form, `2(x3),1`, as a number for each node: 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: `gpu[07-09,12],login1` begins with gpu07."""
    # A name ends at the first comma outside of brackets; a bracket's first number at , - or ].
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert name, f"SLURM_STEP_NODELIST: {nodes!r} names no node"
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", name[0])


def last_host(nodes: str) -> str:
    """The last of the same list: login1."""
    name = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[-1]
    return re.sub(r"\[(?:[^\]]*[,-])?([^\],-]+)\]", r"\1", name)


def network(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """GLOO_SOCKET_IFNAME, if nobody has set it: by itself gloo takes the host name's address.

    On Debian that is 127.0.1.1, which no other node reaches.
    """
    name = environ.get("GLOO_SOCKET_IFNAME") or interface(environ)
    return {"GLOO_SOCKET_IFNAME": name} if name else {}


def interface(environ: Mapping[str, str] = os.environ) -> str:
    """Name of the interface to the step's first node, or on that one to its last.

    Empty where there is no other node, or no way but the loopback.
    """
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    first, last = (first_host(nodes), last_host(nodes)) if nodes else ("", "")
    if first == last:
        return ""
    name = interface_to(last if environ.get("SLURM_NODEID") == "0" else first)
    return "" if name == "lo" else name


def interface_to(host: str) -> str:
    """Name of the interface that IPv4 takes to a host; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, FIRST_PORT))  # sends nothing
        except OSError:
            return ""
        own = probe.getsockname()[0]
        names = (name for _, name in socket.if_nameindex())
        return next((name for name in names if address(probe, name) == own), "")


def address(probe: socket.socket, name: str) -> str:
    """An interface's IPv4 address; empty if it has none."""
    try:
        answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("40s", name.encode()))
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])


def port(environ: Mapping[str, str] = os.environ) -> int:
    """A port that all tasks of a step arrive at alone, and that no step beside it has.

    From job, step and restart: jobs that start one after the other on a node differ by little.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job, step, restart = (int(environ.get(name) or 0) for name in names)
    return FIRST_PORT + (job + 101 * step + 1009 * restart) % PORTS


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on here."""
    for candidate in range(first, first + 100):
        with socket.socket() as probe:
            # As a server does it: connections that have just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", candidate))
            except OSError:
                continue
            return candidate
    sys.exit(f"error: ports {first} to {first + 99} are all taken on {socket.gethostname()}")


if __name__ == "__main__":
    print(interface() if sys.argv[1:] == ["interface"] else free_port(port()))
