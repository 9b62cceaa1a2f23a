"""Check the machines of a run before it starts: every rank measures, rank 0 judges all facts."""

import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from harness import distributed
from harness.config import Config
from harness.distributed import process_group
from harness.doctor import compute, files, gpus, limits, network, software
from harness.doctor.check import Facts, PlannedRun, number_in, worst
from harness.doctor.report import Node, Report, comparable_facts, show
from harness.errors import EXIT_FAILED, EXIT_GOOD, HarnessError, RunFailed, one_line
from harness.monitor import probes
from harness.system.console import err
from harness.system.process import process_age_s
from harness.system.progress import track

COLLECTORS: dict[str, Callable[[PlannedRun], Facts]] = {
    "software": software.collect,
    "disks and data": files.collect,
    "network": network.collect,
    "GPUs": gpus.collect,
    "matrix product": compute.collect,
}
"""What each rank measures by itself. Collectors that fork precede the first that uses a GPU."""

JUDGES = (gpus.judge, software.judge, compute.judge, files.judge, network.judge)


class Alarm:
    """End this process, naming the check that hangs, if the block does not end in time."""

    def __init__(self, limit_s: float, rank: int) -> None:
        self.at = "the start"
        self._limit_s, self._process = limit_s, f"{socket.gethostname()}, rank {rank}"
        self._timer = threading.Timer(limit_s, self._ring)
        self._timer.daemon = True

    def __enter__(self) -> "Alarm":
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        err.print(
            f"error: {self._process}: not finished within {self._limit_s:.0f} s, at: {self.at}; "
            "leave this node out, or find out what hangs"
        )
        os._exit(EXIT_FAILED)


def check_machine(
    config: Config, args: Sequence[str], *, expect_gpus: int | None, as_json: bool
) -> int:
    """Check this machine, or under a launcher all machines of the job; print the report.

    Return the exit code, the same on every rank: 1 on red.

    Args:
        args: the arguments that describe the config, for the suggested next command.
        expect_gpus: GPUs that each node must have; by default what Slurm granted.

    Raises:
        RunFailed: the ranks cannot form a process group, or a collective fails.
    """
    run = plan_run(config, expect_gpus, os.environ)
    try:
        report, code = examine(run, quiet=as_json)
    except HarnessError as error:
        if run.world.size == 1:
            raise
        err.print(f"error: {one_line(error)}")
        sys.stderr.flush()
        os._exit(error.exit_code)  # threads of a broken process group could keep this process alive
    if report is not None and as_json:
        print(report.model_dump_json())
    elif report is not None:
        show(report, _next_command(args, report))
    sys.stdout.flush()
    return code


def plan_run(config: Config, expect_gpus: int | None, environ: Mapping[str, str]) -> PlannedRun:
    """Return what the run needs on this node, and this process's rank; missing GPUs do not raise.

    Without torchrun's variables this is a single process, also within a job.
    """
    # Slurm's tasks may run the doctor each on its own, as on nodes that do not reach each other.
    launched = {name: text for name, text in environ.items() if not name.startswith("SLURM_")}
    local_size = distributed.identity(launched)[3]
    gpus_visible, device = torch.cuda.device_count(), config.engine.device
    may_share = config.engine.backend == "gloo"
    expected = 0
    if device != "cpu":
        expected = number_in(environ, "SLURM_GPUS_ON_NODE") or 0
        expected = expect_gpus if expect_gpus is not None else expected
        if gpus_visible or device == "cuda":
            expected = max(expected, 1 if may_share else local_size)
    usable = device != "cpu" and torch.cuda.is_available()
    backend = "gloo" if may_share or gpus_visible < local_size else "auto"
    world = distributed.from_environment("auto" if usable else "cpu", launched, backend)
    return PlannedRun(config, world, expected, environ)


def examine(run: PlannedRun, *, quiet: bool = True) -> tuple[Report | None, int]:
    """Run all checks; return the report, on rank 0 only, and the exit code; a collective call.

    Raises:
        RunFailed: the ranks cannot form a process group, or a collective fails.
    """
    facts: Facts = {}
    names: Iterable[str] = COLLECTORS
    if run.world.is_main and not quiet:
        names = track(names, total=len(COLLECTORS), what="examining this machine")
    with Alarm(limits.TOTAL_S, run.world.rank) as alarm:
        for name in names:
            alarm.at = name
            facts |= COLLECTORS[name](run)
        if run.world.size == 1:
            report = judge([facts], run)
            return report, _code(report)
        if obstacle := _obstacle(facts, run):
            if run.world.local_rank == 0:  # the report of this node alone
                return judge([facts], run), EXIT_FAILED
            time.sleep(5)  # local rank 0 must print its report before the launcher ends it
            raise RunFailed(f"{facts['host']}, rank {run.world.rank}: {obstacle}")
        return _report_job(facts, run, alarm)


def judge(ranks: Sequence[Facts], run: PlannedRun) -> Report:
    """Return the report from the facts of all ranks, in rank order."""
    hosts: dict[str, list[Facts]] = {}
    for facts in ranks:
        hosts.setdefault(facts["host"], []).append(facts)
    nodes = []
    for host, of_host in hosts.items():
        checks = [replace(c, host=host) for judge_one in JUDGES for c in judge_one(of_host, run)]
        nodes.append(Node(host=host, facts=comparable_facts(of_host), checks=checks))
    first, *others = nodes
    checks = [*first.checks, *software.judge_all(ranks, run), *network.judge_all(ranks, run)]
    return Report(
        host=first.host,
        facts=first.facts,
        checks=checks,
        verdict=worst([*checks, *(check for node in others for check in node.checks)], "green"),
        ranks=len(ranks),
        took_s=process_age_s(),
        other_nodes=others,
    )


def _obstacle(facts: Facts, run: PlannedRun) -> str | None:
    """Return why this rank knows already that the process group cannot be opened, or None."""
    if "error" in facts["rank_0"]:
        return f"rank 0 cannot be reached: {facts['rank_0']['error']}"
    if run.gpus > facts["torch_gpus"]:
        return f"{facts['torch_gpus']} of {run.gpus} GPUs"
    return None


def _report_job(facts: Facts, run: PlannedRun, alarm: Alarm) -> tuple[Report | None, int]:
    """Measure what takes all ranks, and return the report on rank 0 and the exit code."""
    alarm.at = "opening the process group"
    try:
        with process_group(run.world, limits.GROUP_S):
            alarm.at = "clock skew"
            facts["clock_offset_s"] = probes.clock_offsets(run.world)[run.world.rank]
            alarm.at = "all-reduce"
            facts |= network.all_reduce(run, run.world.from_main(facts["bucket_bytes"]))
            alarm.at = "gathering the facts of all ranks"
            ranks = run.world.gather(facts)
            report = judge(ranks, run) if run.world.is_main else None
            code = run.world.from_main(_code(report) if report else None)
    except RuntimeError as error:
        message = one_line(error)[:300]
        if run.world.size > run.world.local_size:
            # NCCL finds an interface by itself; gloo uses that of the hostname, maybe the loopback.
            message += (
                "; if nodes do not reach each other, name their network: GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME, or HARNESS_NIC in slurm/site.sh"
            )
        raise RunFailed(
            f"{facts['host']}, rank {run.world.rank} of {run.world.size}: {alarm.at} failed: "
            f"{message}; NCCL_DEBUG=INFO prints more"
        ) from None
    return report, int(code)


def _code(report: Report) -> int:
    return EXIT_FAILED if report.verdict == "red" else EXIT_GOOD


def _next_command(args: Sequence[str], report: Report) -> str:
    command = shlex.join(["launch/train.py", *args])
    if report.other_nodes:
        return f"the same launcher with {command} in place of -m harness doctor"
    ranks = f"--nproc-per-node {report.ranks} " if report.ranks > 1 else ""
    return f"torchrun {ranks}{command}"
