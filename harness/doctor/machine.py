"""The machine: looked at by every rank, each for its share, judged by rank 0, before a run."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from harness import distributed
from harness.config import Config
from harness.distributed import process_group
from harness.doctor import compute, files, gpus, limits, network, software
from harness.doctor.check import Asked, Facts
from harness.doctor.report import Node, Report, compared, show, verdict_of
from harness.errors import EXIT_FAILED, EXIT_GOOD, HarnessError, RunFailed
from harness.system.console import err, track
from harness.system.process import process_age_s

ALONE: dict[str, Callable[[Asked], Facts]] = {
    "software": software.look,
    "disks and data": files.look,
    "network": network.look,
    "GPUs": gpus.look,
    "matrix product": compute.look,
}
"""What a rank finds out by itself. Those that fork come before the first that uses a GPU."""

JUDGES = (gpus.judge, software.judge, compute.judge, files.judge, network.judge)
JUDGES_OF_ALL = (software.judge_all, network.judge_all)

NAME_THE_NETWORK = (
    "if nodes do not reach each other, name their network: GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME, or HARNESS_NIC in slurm/site.sh; "
)
"""NCCL finds one by itself; gloo takes what the host's name resolves to, maybe a loopback."""


class Alarm:
    """Ends this process, with the name of what it is at, if it has not come to its end in time."""

    def __init__(self, limit_s: float, rank: int) -> None:
        self.at = "the start"
        self._limit_s, self._who = limit_s, f"{socket.gethostname()}, rank {rank}"
        self._timer = threading.Timer(limit_s, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """All is well."""
        self._timer.cancel()

    def _ring(self) -> None:
        err.print(
            f"error: {self._who}: no end within {self._limit_s:.0f} s, at: {self.at}; take this "
            "node out, or find out what hangs"
        )
        os._exit(EXIT_FAILED)


def check_machine(
    config: Config, words: Sequence[str], *, expect_gpus: int | None, as_json: bool
) -> int:
    """Look at this machine, or with all ranks of a job at all of its machines; print what is found.

    Args:
        words: from which the config was read, to be shown again.
        expect_gpus: on each node; by default what Slurm gave.

    Returns:
        Exit code: 1 on red; on every rank the same.

    Raises:
        RunFailed: the ranks do not come together.
    """
    asked = ask(config, expect_gpus, os.environ)
    size = asked.world.size
    alarm = Alarm(limits.WHOLE_S, asked.world.rank)
    try:
        report, code = examine(asked, alarm, quiet=as_json)
    except HarnessError as error:
        if size == 1:
            raise
        err.print(f"error: {' '.join(str(error).split())}")
        sys.stderr.flush()
        os._exit(error.exit_code)  # threads of a broken process group could hold this process
    alarm.stop()
    if report is not None:
        if as_json:
            print(report.model_dump_json())
        else:
            show(report, _next(words, report))
    sys.stdout.flush()
    return code


def ask(config: Config, expect_gpus: int | None, environ: Mapping[str, str]) -> Asked:
    """What is needed here, and who this process is; a GPU that is missing is found out later.

    Without torchrun's names this is a process by itself, in whatever job.
    """
    local_size = int(environ.get("LOCAL_WORLD_SIZE", 1))
    there, device = torch.cuda.device_count(), config.engine.device
    may_share = config.engine.backend == "gloo"
    expected = 0
    if device != "cpu":
        of_slurm = environ.get("SLURM_GPUS_ON_NODE", "")
        expected = int(of_slurm) if of_slurm.isdigit() else 0
        expected = expect_gpus if expect_gpus is not None else expected
        if there or device == "cuda":
            expected = max(expected, 1 if may_share else local_size)
    known = environ if "RANK" in environ else {}
    usable = device != "cpu" and torch.cuda.is_available()
    place = distributed.from_environment(
        "auto" if usable else "cpu", known, "gloo" if may_share or there < local_size else "auto"
    )
    return Asked(config, place, expected, environ)


def examine(
    asked: Asked, alarm: Alarm | None = None, *, quiet: bool = True
) -> tuple[Report | None, int]:
    """The report, on rank 0, and the exit code, on every rank; a collective call.

    Raises:
        RunFailed: the ranks do not come together.
    """
    facts: Facts = {}
    looks = ALONE.items()
    if asked.world.is_main and not quiet:
        looks = track(looks, total=len(ALONE), what="examining this machine")  # type: ignore[assignment]
    for name, look in looks:
        if alarm:
            alarm.at = name
        facts |= look(asked)
    if asked.world.size == 1:
        report = judge([facts], asked)
        return report, _code(report)
    if blocked := _blocked(facts, asked):
        return _alone(facts, asked, blocked)
    return _together(facts, asked, alarm)


def judge(ranks: Sequence[Facts], asked: Asked) -> Report:
    """The report on all ranks, in their order."""
    hosts: dict[str, list[Facts]] = {}
    for facts in ranks:
        hosts.setdefault(facts["host"], []).append(facts)
    nodes = []
    for host, here in hosts.items():
        checks = [found for judge_one in JUDGES for found in judge_one(here, asked)]
        named = [found.model_copy(update={"host": host}) for found in checks]
        nodes.append(Node(host=host, facts=compared(here), checks=named))
    first, *others = nodes
    of_all = [found for judge_one in JUDGES_OF_ALL for found in judge_one(ranks, asked)]
    checks = [*first.checks, *of_all]
    return Report(
        host=first.host,
        facts=first.facts,
        checks=checks,
        verdict=verdict_of([*checks, *(found for node in others for found in node.checks)]),
        ranks=len(ranks),
        took_s=process_age_s(),
        other_nodes=others,
    )


def _blocked(facts: Facts, asked: Asked) -> str | None:
    """Why the ranks cannot come together, if this rank knows it beforehand."""
    if "error" in facts["rank_0"]:
        return f"rank 0 cannot be reached: {facts['rank_0']['error']}"
    if asked.gpus > facts["gpus_of_torch"]:
        return f"{facts['gpus_of_torch']} of {asked.gpus} GPUs"
    return None


def _alone(facts: Facts, asked: Asked, blocked: str) -> tuple[Report | None, int]:
    """This node's report by itself, from its first rank; the launcher ends the others."""
    if asked.world.local_rank == 0:
        return judge([facts], asked), EXIT_FAILED
    time.sleep(5)  # the first rank speaks for the node, and must not be ended before
    raise RunFailed(f"{facts['host']}, rank {asked.world.rank}: {blocked}")


def _together(facts: Facts, asked: Asked, alarm: Alarm | None) -> tuple[Report | None, int]:
    """What all ranks measure with each other, and the judgement of all that they found."""
    alarm = alarm or Alarm(limits.WHOLE_S, asked.world.rank)
    alarm.at = "opening the process group"
    try:
        with process_group(asked.world, limits.GROUP_S):
            alarm.at = "clock skew"
            facts |= network.look_together(asked)
            alarm.at = "all-reduce"
            facts |= network.all_reduce(asked, asked.world.from_main(facts["bucket_bytes"]))
            alarm.at = "gathering what all ranks found"
            ranks = asked.world.gather(facts)
            report = judge(ranks, asked) if asked.world.is_main else None
            code = asked.world.from_main(_code(report) if report else None)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        several = asked.world.size > asked.world.local_size
        raise RunFailed(
            f"{facts['host']}, rank {asked.world.rank} of {asked.world.size}: {alarm.at} failed: "
            f"{said}; {NAME_THE_NETWORK if several else ''}NCCL_DEBUG=INFO tells more"
        ) from None
    alarm.stop()
    return report, int(code)


def _code(report: Report) -> int:
    return EXIT_FAILED if report.verdict == "red" else EXIT_GOOD


def _next(words: Sequence[str], report: Report) -> str:
    what = shlex.join(["launch/train.py", *words])
    if report.other_nodes:
        return f"the same launcher with {what} for -m harness doctor"
    several = f"--nproc-per-node {report.ranks} " if report.ranks > 1 else ""
    return f"torchrun {several}{what}"
