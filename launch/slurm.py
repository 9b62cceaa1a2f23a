"""Translate Slurm's variables for a task into torchrun's (RANK, ...), for srun without torchrun.

srun --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 python launch/train.py ...
python launch/slurm.py port         a port for torchrun's rendezvous that is free on this node
python launch/slurm.py interface    the network interface to the step's other nodes, if any
"""

import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

FIRST_PORT, PORTS = 20_000, 12_000
"""The range of ports to use: below those of outgoing connections, which begin at 32,768."""


def identity(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, ... of a task; empty if torchrun set them or it is the only task."""
    several = int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if not several or "SLURM_PROCID" not in environ or "RANK" in environ:
        return {}
    tasks = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    first, last = end_hosts(environ["SLURM_STEP_NODELIST"])
    return network(environ) | {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(tasks[int(environ["SLURM_NODEID"])]),
        # The name of a node need not resolve on the node itself.
        "MASTER_ADDR": "127.0.0.1" if first == last else first,
        "MASTER_PORT": str(port(environ)),
    }


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node from Slurm's short form: `2(x3),1` is 2, 2, 2, 1."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def end_hosts(nodes: str) -> tuple[str, str]:
    """Return the first and last node of Slurm's list: gpu07, login1 of `gpu[07-09,12],login1`."""
    # A name ends at a comma outside brackets; a number in brackets at a comma, - or ].
    names = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert names, f"SLURM_STEP_NODELIST: {nodes!r} names no node"
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", names[0])
    return first, re.sub(r"\[(?:[^\]]*[,-])?([^\],-]+)\]", r"\1", names[-1])


def network(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return GLOO_SOCKET_IFNAME, if it is not set: the interface to the step's other nodes.

    By default gloo listens on the host name's address: on Debian 127.0.1.1, which other nodes
    cannot reach. Empty if there is no other node, or none can be reached.
    """
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    first, last = end_hosts(nodes) if nodes else ("", "")
    if environ.get("GLOO_SOCKET_IFNAME") or first == last:
        return {}
    name = interface_to(last if environ.get("SLURM_NODEID") == "0" else first)
    return {} if name in ("", "lo") else {"GLOO_SOCKET_IFNAME": name}


def interface_to(host: str) -> str:
    """Return the name of the interface that IPv4 uses for a host; empty if there is none."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, FIRST_PORT))  # sends nothing
        source = probe.getsockname()[0]
        names = (name for _, name in socket.if_nameindex())
        return next((name for name in names if address(probe, name) == source), "")
    return ""


def address(probe: socket.socket, name: str) -> str:
    """Return an interface's IPv4 address; empty if it has none."""
    siocgifaddr = 0x8915  # Linux's request for it: netdevice(7)
    with suppress(OSError):
        reply = fcntl.ioctl(probe, siocgifaddr, struct.pack("40s", name.encode()))
        return socket.inet_ntoa(reply[20:24])
    return ""


def port(environ: Mapping[str, str] = os.environ) -> int:
    """Return a port, the same for all tasks of a step, and another for other steps on the node.

    It follows from job, step and restart, since jobs on one node often have consecutive ids.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job, step, restart = (int(environ.get(name) or 0) for name in names)
    return FIRST_PORT + (job + 101 * step + 1009 * restart) % PORTS


def free_port(first: int) -> int:
    """Return the first port from `first` on that is free on this node; exit if 100 are taken."""
    for candidate in range(first, first + 100):
        # A server's connections in TIME_WAIT do not count.
        with suppress(OSError), socket.create_server(("", candidate)):
            return candidate
    sys.exit(f"error: ports {first} to {first + 99} are all taken on {socket.gethostname()}")


if __name__ == "__main__":
    print("".join(network().values()) if sys.argv[1:] == ["interface"] else free_port(port()))
