#!/usr/bin/env python3
"""minislurm: a real multi-node Slurm on one machine, for tests.

  minislurm.py up [--nodes N] [--gpus-per-node G] [--cpus-per-node C] [...] DIR
  minislurm.py down [--keep] DIR

`up` runs munged, slurmctld and one slurmd per node (node1, node2, ...), keeps all their files in
DIR, waits until every node is idle and prints what to eval in the shell that will call sbatch:

  eval "$(tests/support/minislurm.py up --nodes 2 DIR)"

Each slurmd has its own UTS and mount namespace: jobs see `hostname` = node1 and an /etc/hosts in
which node1 is 127.0.1.1, node2 is 127.0.1.2 and so on; the machine's own files stay as they are.
CPUs, memory and GPUs are claims that slurmctld believes (config_overrides, fake device files);
nothing is enforced. Partitions: `low` (the default), whose jobs are requeued to make room for those
of `high`.

If mariadbd and slurmdbd are installed, they run too, and sacct works. Without them it does not, and
submitit waits for ever for a job that ended without a result (cancelled, timed out, killed).

Everything descends from one supervisor process, which adopts orphans (a "child subreaper"), so
`down` ends the daemons and whatever the jobs left running, and nothing else.

Needs root. Debian: apt-get install --no-install-recommends \\
    slurm-wlm munge slurmdbd mariadb-server-core
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import itertools
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 60  # for each step of `up`, and for `down`
MAX_DIR_LENGTH = 60  # slurmstepd's socket, DIR/spool/NODE/NODE_JOB.STEP, must stay below 108
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

SLURM_CONF = """\
ClusterName=minislurm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is how long a launch may take, and how long a requeued job waits to start again
# (120 s by default).
AuthInfo=socket={dir}/munge.sock,cred_expire={requeue_delay}

StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose

# Believe the node lines below, whatever the hardware is; pin and enforce nothing.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
GresTypes=gpu
# Refuse a job that could never run, rather than let it wait for ever.
EnforcePartLimits=ALL

# Schedule at once, kill soon, but forgive a loaded machine.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=5
MessageTimeout=30
TCPTimeout=10
BatchStartTimeout=60
SlurmdTimeout=30
ReturnToService=2

# A preempted job gets its --signal (SIGTERM if it has none), GraceTime to use it, and is requeued.
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# Keep finished jobs visible in squeue --states=all and scontrol show job.
MinJobAge=86400
{accounting}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace_time}
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={dir}/munge.sock
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
SlurmUser=root
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
PidFile={dir}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""

MARIADBD = (
    "mariadbd --no-defaults --user=root --datadir={dir}/db --socket={dir}/db.sock"
    " --pid-file={dir}/mariadbd.pid"
    " --skip-grant-tables --skip-networking --innodb-buffer-pool-size=16M --innodb-log-file-size=4M"
    " --innodb-flush-log-at-trx-commit=0"
)
MUNGED = (
    "munged --foreground --key-file={dir}/munge.key --socket={dir}/munge.sock"
    " --pid-file={dir}/munged.pid"
    " --seed-file={dir}/munge.seed"
)
# $1: the node's name, $2: its /etc/hosts
SLURMD = 'mount --bind "$2" /etc/hosts && hostname "$1" && exec slurmd -D -N "$1"'


def wait_for(
    what: str, condition: Callable[[], object], check: Callable[[], None] = lambda: None
) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {TIMEOUT_S} s waiting for {what}")
        time.sleep(0.05)


def output_of(*command: str) -> str | None:
    """What a command prints, or None if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout if done.returncode == 0 else None


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, below those that outgoing connections take."""
    for _ in range(100):
        first = random.randrange(10000, 32000 - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("", port))
            return first
        except OSError:
            continue
    raise OSError(f"found no {count} consecutive free ports")


def descendants() -> list[int]:
    """All processes below this one: children, their children and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


class Supervisor:
    """Runs the daemons as its children; told to end, or too old, it first ends all below it."""

    def __init__(self, directory: Path, nodes: list[str], accounting: bool) -> None:
        self.dir, self.nodes, self.accounting = directory, nodes, accounting
        self.daemons: dict[str, subprocess.Popen] = {}
        self.libc = ctypes.CDLL(None, use_errno=True)

    def run(self, ready_fd: int, max_age: int) -> None:
        """Runs until SIGTERM or for `max_age` s; writes to `ready_fd` once all nodes are idle."""
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, lambda *_: sys.exit(0))
        signal.alarm(max_age)
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            self.start_all()
            os.write(ready_fd, b"1")  # fails, and so ends all, if `up` is gone
            os.close(ready_fd)
            while True:
                pid, status = os.waitpid(-1, 0)
                for name, daemon in self.daemons.items():
                    if daemon.pid == pid:
                        print(f"{name} ended, {status=:#x}", flush=True)
        finally:
            for number in (signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            self.kill_all()

    def start_all(self) -> None:
        d = self.dir
        self.start("munged", *MUNGED.format(dir=d).split())
        if self.accounting:
            self.start("mariadbd", *MARIADBD.format(dir=d).split())
        self.wait_for("munged", lambda: output_of("munge", "-n", "-S", f"{d}/munge.sock"))
        if self.accounting:
            self.wait_for("mariadbd", (d / "db.sock").exists)
            self.start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{d}/db.sock")
            self.wait_for(
                "slurmdbd", lambda: output_of("sacctmgr", "-n", "show", "cluster") is not None
            )
        self.start("slurmctld", "slurmctld", "-D")
        self.wait_for("slurmctld", lambda: output_of("scontrol", "ping"))
        for node in self.nodes:
            self.start(
                node,
                "unshare",
                "--uts",
                "--mount",
                "--propagation=slave",
                "sh",
                "-c",
                SLURMD,
                "sh",
                node,
                f"{d}/hosts",
            )
        idle = "idle\n" * len(self.nodes)
        self.wait_for(
            "all nodes to be idle",
            lambda: output_of("sinfo", "-h", "-N", "-p", "low", "-o", "%t") == idle,
        )

    def start(self, name: str, *command: str, **env: str) -> None:
        with open(self.dir / "log" / f"{name}.out", "wb") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **env},
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        def check() -> None:
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise ChildProcessError(f"{name} ended with status {daemon.returncode}")

        wait_for(what, condition, check)

    def kill_all(self) -> None:
        while pids := descendants():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def up(args: argparse.Namespace) -> None:
    d = args.dir.resolve()
    if os.geteuid() != 0:
        sys.exit("minislurm: needs root, for the nodes' namespaces")
    if missing := [c for c in ("munged", "slurmctld", "slurmd", "unshare") if not shutil.which(c)]:
        sys.exit(f"minislurm: not found: {', '.join(missing)}")
    if len(str(d)) > MAX_DIR_LENGTH or len(str(d).split()) != 1:
        sys.exit(
            f"minislurm: {d}: the path must be at most {MAX_DIR_LENGTH} characters, for its "
            "sockets, and have no spaces"
        )
    if d.exists() and any(d.iterdir()):
        sys.exit(f"minislurm: {d} is not empty")
    for sub in ("log", "state", "spool", "dev", "db"):
        (d / sub).mkdir(parents=True)
    d.chmod(0o711)  # munged wants its socket within everybody's reach; mkdtemp's 0700 is not

    nodes = {f"node{i}": f"127.0.1.{i}" for i in range(1, args.nodes + 1)}
    accounting = bool(shutil.which("slurmdbd") and shutil.which("mariadbd"))
    ctld_port, dbd_port, *node_ports = range(
        first := free_ports(args.nodes + 2), first + args.nodes + 2
    )
    names = {
        "dir": d,
        "host": socket.gethostname().split(".")[0],
        "ctld_port": ctld_port,
        "dbd_port": dbd_port,
    }
    gres = f" Gres=gpu:{args.gpus_per_node}" if args.gpus_per_node else ""
    (d / "slurm.conf").write_text(
        SLURM_CONF.format(
            **names,
            requeue_delay=args.requeue_delay,
            grace_time=args.grace_time,
            accounting=ACCOUNTING.format(**names) if accounting else "",
            nodes="\n".join(
                f"NodeName={node} NodeAddr={address} Port={port} CPUs={cpus}"
                f" RealMemory=1000000{gres}"
                for (node, address), port, cpus in zip(
                    nodes.items(), node_ports, itertools.cycle(args.cpus_per_node.split(","))
                )
            ),
        )
    )
    if args.gpus_per_node:
        for i in range(
            args.gpus_per_node
        ):  # slurmd wants device files; these are twins of /dev/null
            os.mknod(d / f"dev/gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (d / "gres.conf").write_text(f"Name=gpu File={d}/dev/gpu[0-{args.gpus_per_node - 1}]\n")
    # Unused, but slurmd loads the plugin anyway, and only v1's is content with any machine.
    (d / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (d / "hosts").write_text(
        Path("/etc/hosts").read_text()
        + "".join(f"\n{address} {node}" for node, address in nodes.items())
        + "\n"
    )
    for name, content in (
        ("slurmdbd.conf", SLURMDBD_CONF.format(**names).encode()),
        ("munge.key", os.urandom(128)),
    ):
        (d / name).touch(0o600)
        (d / name).write_bytes(content)

    os.environ["SLURM_CONF"] = f"{d}/slurm.conf"
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(read_fd)
        with (
            open(d / "supervisor.pid", "w") as pid_file,
            open(d / "log/supervisor.out", "w") as log,
        ):
            fcntl.flock(pid_file, fcntl.LOCK_EX)  # held as long as the supervisor lives: see down()
            print(os.getpid(), file=pid_file, flush=True)
            with open(os.devnull) as null:
                os.dup2(null.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            Supervisor(d, list(nodes), accounting).run(write_fd, args.max_age)
    os.close(write_fd)
    if not os.read(read_fd, 1):
        for log in sorted((d / "log").glob("*.out")):
            print(
                f"--- {log}",
                *log.read_text(errors="replace").splitlines()[-5:],
                sep="\n",
                file=sys.stderr,
            )
        sys.exit(f"minislurm: could not start the cluster; see {d}/log")
    if not accounting:
        print("minislurm: no slurmdbd or no mariadbd here, so sacct will not work", file=sys.stderr)
    print(f"export SLURM_CONF={d}/slurm.conf")


def down(args: argparse.Namespace) -> None:
    d = args.dir.resolve()
    try:
        pid_file = open(d / "supervisor.pid")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        sys.exit(f"minislurm: {d} is no cluster")

    def ended() -> bool:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with pid_file:
        if not ended():
            os.kill(int(pid_file.read()), signal.SIGTERM)
            wait_for("the supervisor to end", ended)
    if not args.keep:
        shutil.rmtree(d)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("up", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for option, default, text in (
        ("--nodes", 2, "number of nodes"),
        ("--gpus-per-node", 8, "GPUs that each node claims to have"),
        ("--grace-time", 10, "seconds that a preempted job of `low` has to stop"),
        (
            "--requeue-delay",
            10,
            "seconds that a requeued job waits; also those to launch a step in",
        ),
        ("--max-age", 7200, "seconds after which the cluster ends by itself"),
    ):
        p.add_argument(option, type=int, default=default, metavar="N", help=text)
    p.add_argument(
        "--cpus-per-node",
        default="16",
        metavar="N[,N...]",
        help="CPUs that each node claims to have; if several, the nodes take turns",
    )
    p.add_argument("dir", type=Path, metavar="DIR", help="a new or an empty directory")
    p.set_defaults(run=up)
    p = commands.add_parser("down")
    p.add_argument("--keep", action="store_true", help="do not remove DIR")
    p.add_argument("dir", type=Path, metavar="DIR")
    p.set_defaults(run=down)
    args = parser.parse_args()
    try:
        args.run(args)
    except OSError as e:  # among them TimeoutError and ChildProcessError
        sys.exit(f"minislurm: {e}")


if __name__ == "__main__":
    main()
