"""Summarize the turns of a ladder: rates, limits, shares, the law, and the bottleneck."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from harness.bench.ladder import rungs
from harness.bench.ladder.limits import Limits
from harness.bench.ladder.rungs import Rung
from harness.bench.loop import Opened
from harness.results.stats.statistics import interval_of_mean
from harness.trainer.mfu import utilization

Part = Literal["data", "compute", "all-reduce"]
NARROW_PCT = 5.0
"""The report warns of intervals whose half-width is above this percentage of the mean."""
LIMIT_OF_COMPUTE = "the network's operations and bytes"
PARTS: dict[Part, str] = {
    "data": rungs.LOADER, "compute": rungs.OPTIMIZER, "all-reduce": rungs.ALL_REDUCE,
}  # fmt: skip
"""The parts of a step, and the rung that measures each alone."""


@dataclass(frozen=True)
class Law:
    """Predict the time of a step from the times of its parts, each measured alone.

    Attributes:
        shared: whether the parts use the same CPU cores, so that their times add up; else they
            overlap, and the longest one is the time of the step.
    """

    shared: bool

    def whole_s(self, parts_s: Mapping[Part, float]) -> float:
        """Return the seconds of all parts together."""
        return sum(parts_s.values()) if self.shared else max(parts_s.values())

    def binds(self, parts_s: Mapping[Part, float]) -> Part:
        """Return the bottleneck: the part that takes longest."""
        return max(parts_s, key=lambda part: parts_s[part])

    def without_s(self, part: Part, parts_s: Mapping[Part, float]) -> float:
        """Return the seconds of the whole if a part took no time; 0 if it is the only one."""
        rest = {name: seconds for name, seconds in parts_s.items() if name != part}
        return self.whole_s(rest) if rest else 0.0

    def in_words(self) -> str:
        """Describe the law, for a report."""
        if self.shared:
            return "the parts share the CPU cores, so that their times add up"
        return "the parts overlap, so that the longest counts"


def law_of(*, on_gpu: bool, loader_threads: int, compute_threads: int, cores: int) -> Law:
    """Return the law of a machine; parts share cores on a CPU with more threads than cores."""
    return Law(shared=not on_gpu and loader_threads + compute_threads > cores)


@dataclass(frozen=True)
class AllRanksTurn:
    """One timing of a rung on all ranks together."""

    images_per_second: float
    cores: float
    steps_ms: list[float]


@dataclass
class Measured:
    """The result of a rung; what was not measured is None.

    Attributes:
        about: what the rung does.
        missing: why the rung was not measured.
        images_per_second: of all ranks, mean over turns.
        low, high: 95 % interval of the mean; None after a single turn.
        turns: number of turns.
        step_ms_p50, step_ms_p95: of rank 0; None if single steps were not timed.
        cores: CPU cores that all ranks together kept busy, on average.
        bytes_per_second: read or sent by all ranks.
        limit: images per second that this machine cannot exceed.
        limit_unfused: the limit if each operation of the network reads and writes its own tensors.
        limit_by: what gives the limit.
        share_pct: time that this rung adds to the one below, in percent of the whole step.
    """

    name: str
    about: str
    missing: str | None = None
    images_per_second: float | None = None
    low: float | None = None
    high: float | None = None
    turns: int = 0
    step_ms_p50: float | None = None
    step_ms_p95: float | None = None
    cores: float | None = None
    bytes_per_second: float | None = None
    limit: float | None = None
    limit_unfused: float | None = None
    limit_by: str | None = None
    share_pct: float | None = None

    @property
    def half_width_pct(self) -> float | None:
        """Half-width of the interval, in percent of the mean; None if there is no interval."""
        if self.images_per_second is None or self.high is None:
            return None
        return 100 * (self.high / self.images_per_second - 1)

    @property
    def of_limit_pct(self) -> float | None:
        """The rate in percent of the limit."""
        if self.images_per_second is None or self.limit is None:
            return None
        return 100 * self.images_per_second / self.limit


@dataclass(frozen=True)
class Ladder:
    """All measurements, and what follows from them.

    Attributes:
        what: lines that describe the run and the machine.
        ranks_per_node: ranks on this node.
        law: how the parts make up the whole step.
        parts_s: seconds per image of each part of the step, measured alone.
        predicted: images per second of the whole step by the law, from the parts.
        peak: description of the peaks of one rank's device.
        mfu_pct: model FLOPs utilization of the whole step.
        memory_pct: utilization of the memory's bandwidth if all operations were fused.
        fits_in_memory: whether all images fit into this node's memory; None without files.
    """

    what: list[str]
    ranks_per_node: int
    rungs: list[Measured]
    law: Law
    parts_s: dict[Part, float]
    predicted: float
    peak: str
    mfu_pct: float
    memory_pct: float
    fits_in_memory: bool | None

    def __getitem__(self, name: str) -> Measured:
        return next(rung for rung in self.rungs if rung.name == name)

    @property
    def top(self) -> Measured:
        """The rung of the whole step: on real images, or if that is missing, on synthetic ones."""
        return _whole({rung.name: rung for rung in self.rungs})

    @property
    def rate(self) -> float:
        """Images per second of the whole step."""
        return _rate(self.top)

    @property
    def binds(self) -> Part:
        """The bottleneck: the part that takes longest."""
        return self.law.binds(self.parts_s)

    def without(self, part: Part) -> float | None:
        """Return the predicted images per second without a part; None if it is the only one."""
        seconds = self.law.without_s(part, self.parts_s)
        return 1 / seconds if seconds else None

    def as_json(self) -> dict[str, Any]:
        """Return the content of ladder.json."""
        return asdict(self) | {"binds": self.binds, "law_in_words": self.law.in_words()}


def summarize(
    run: Opened, timed: Sequence[Rung], turns: Mapping[str, Sequence[AllRanksTurn]],
    missing: Mapping[str, str], bounds: Limits,
) -> Ladder:  # fmt: skip
    """Return the ladder of all turns.

    Args:
        missing: why the other rungs were not measured, by name.
    """
    measured = {
        name: Measured(name, about, missing.get(name)) for name, about in rungs.ABOUT.items()
    }
    for rung in timed:
        _fill_in(measured[rung.name], rung, turns[rung.name], bounds)
    r, dataset = run.resolved, run.train_set.dataset
    law = law_of(
        on_gpu=r.world.on_gpu, loader_threads=r.loader.threads, compute_threads=r.threads,
        cores=r.world.cores(),
    )  # fmt: skip
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _add_limits(measured, law)
    _add_shares(measured)
    whole, parts_s = _rate(_whole(measured)), _parts_s(measured)
    used = utilization(bounds.costs, bounds.peak, bounds.ranks)
    return Ladder(
        what=r.lines()[:6],
        ranks_per_node=r.world.local_size,
        rungs=list(measured.values()),
        law=law,
        parts_s=parts_s,
        predicted=1 / law.whole_s(parts_s),
        peak=bounds.in_words(r.precision),
        mfu_pct=used.mfu_pct(whole),
        memory_pct=used.memory_pct(whole),
        fits_in_memory=None if dataset is None else int(dataset.size_bytes.sum()) < memory_bytes,
    )


def _fill_in(row: Measured, rung: Rung, turns: Sequence[AllRanksTurn], bounds: Limits) -> None:
    rates = [turn.images_per_second for turn in turns]
    row.images_per_second, row.turns = float(np.mean(rates)), len(rates)
    if len(rates) > 1:
        row.low, row.high = interval_of_mean(rates)
    if steps_ms := [ms for turn in turns for ms in turn.steps_ms]:
        row.step_ms_p50, row.step_ms_p95 = np.quantile(steps_ms, (0.5, 0.95)).tolist()
    row.cores = float(np.mean([turn.cores for turn in turns]))
    if rung.size_bytes is not None:
        # Of all ranks; of an all-reduce, the bytes of one rank's buffer.
        buffers = 1 if rung.name == rungs.ALL_REDUCE else bounds.ranks
        row.bytes_per_second = row.images_per_second / rung.images * rung.size_bytes * buffers
    row.limit, row.limit_by = bounds.images_per_second(rung.name), LIMIT_OF_COMPUTE
    if rung.name == rungs.ALL_REDUCE and rung.size_bytes is not None:
        row.limit = bounds.all_reduce(rung.size_bytes, rung.images)
        row.limit_by = "one all-reduce of 64 MiB"
    if row.limit is None:
        row.limit_by = None
    row.limit_unfused = bounds.images_per_second(rung.name, fused=False)


def half_width_pct(turns: Sequence[AllRanksTurn]) -> float:
    """Return the half-width of a rate's interval, in percent of the mean; infinite for one turn."""
    rates = [turn.images_per_second for turn in turns]
    if len(rates) < 2:
        return float("inf")
    return 100 * (interval_of_mean(rates)[1] / float(np.mean(rates)) - 1)


def _rate(rung: Measured) -> float:
    assert rung.images_per_second is not None, f"{rung.name} was not measured"
    return rung.images_per_second


def _whole(measured: Mapping[str, Measured]) -> Measured:
    """Return the rung of the whole step: on real images, or if missing, on synthetic ones."""
    return measured[rungs.DDP if measured[rungs.EVERYTHING].missing else rungs.EVERYTHING]


def _parts_s(measured: Mapping[str, Measured]) -> dict[Part, float]:
    """Return the seconds per image of each part of a step, measured alone."""
    return {
        part: 1 / _rate(measured[name])
        for part, name in PARTS.items()
        if not measured[name].missing
    }


def _add_limits(measured: Mapping[str, Measured], law: Law) -> None:
    """Add the limits of the loader, which is decoding, and of whole steps, by the law."""
    loader, decoding = measured[rungs.LOADER], measured[rungs.DECODE].images_per_second
    if decoding is not None and loader.missing is None:
        loader.limit, loader.limit_by = decoding, "decoding alone"
    of_steps: dict[str, tuple[Part, ...]] = {
        rungs.DDP: ("compute", "all-reduce"), rungs.EVERYTHING: (*PARTS,),
    }  # fmt: skip
    for name, parts in of_steps.items():
        known = {part: limit for part in parts if (limit := measured[PARTS[part]].limit)}
        if measured[name].missing is None and known:
            seconds = {part: 1 / limit for part, limit in known.items()}
            measured[name].limit = 1 / law.whole_s(seconds)
            measured[name].limit_by = "the limits of " + ", ".join(known)


def _add_shares(measured: Mapping[str, Measured]) -> None:
    """Add what each rung of the step adds to the one below, in percent of the whole step's time."""
    whole, below_s = _rate(_whole(measured)), 0.0
    for name in (rungs.FORWARD, rungs.BACKWARD, rungs.OPTIMIZER, rungs.DDP, rungs.EVERYTHING):
        if measured[name].missing is None:
            seconds = 1 / _rate(measured[name])
            measured[name].share_pct = 100 * (seconds - below_s) * whole
            below_s = seconds
