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
from harness.trainer.resolve import Resolved

Part = Literal["data", "compute", "all-reduce"]
NARROW_PCT = 5.0
"""The report warns of intervals whose half-width is above this percentage of the mean."""
PARTS: dict[Part, str] = {
    "data": rungs.LOADER, "compute": rungs.OPTIMIZER, "all-reduce": rungs.ALL_REDUCE,
}  # fmt: skip
"""The parts of a step, and the rung that measures each alone."""


@dataclass(frozen=True)
class Law:
    """Predict the time of a step from the times of its parts, each measured alone."""

    shared: bool  # the parts use the same CPU cores, so that their times add up

    def whole_s(self, parts_s: Mapping[Part, float]) -> float:
        """Return the seconds of all parts together."""
        return sum(parts_s.values()) if self.shared else max(parts_s.values())

    def in_words(self) -> str:
        """Describe the law, for a report."""
        if self.shared:
            return "the parts share the CPU cores, so that their times add up"
        return "the parts overlap, so that the longest counts"


def law_of(r: Resolved) -> Law:
    """Return the law of a run; parts share cores on a CPU with more threads than cores."""
    return Law(shared=not r.world.on_gpu and r.loader.threads + r.threads > r.world.cores())


@dataclass(frozen=True)
class AllRanksTurn:
    """One timing of a rung on all ranks together."""

    images_per_second: float
    cores: float
    steps_ms: list[float]


@dataclass
class Measured:
    """The result of a rung; what was not measured is None."""

    name: str
    about: str  # what the rung does
    missing: str | None = None  # why it was not measured
    images_per_second: float | None = None  # of all ranks, mean over turns
    low: float | None = None  # 95 % interval of the mean; None after a single turn
    high: float | None = None
    turns: int = 0
    step_ms_p50: float | None = None  # of rank 0; None if single steps were not timed
    step_ms_p95: float | None = None
    cores: float | None = None  # that all ranks together kept busy, on average
    bytes_per_second: float | None = None  # read or sent by all ranks
    limit: float | None = None  # images per second that this machine cannot exceed
    limit_unfused: float | None = None  # if each operation reads and writes its own tensors
    limit_by: str | None = None  # what gives the limit
    share_pct: float | None = None  # what it adds to the rung below, of the whole step's time

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
    """All measurements, and what follows from them."""

    what: list[str]  # lines that describe the run and the machine
    ranks_per_node: int
    rungs: list[Measured]
    law: Law
    parts_s: dict[Part, float]  # per image, of each part of the step, measured alone
    predicted: float  # images per second of the whole step by the law, from the parts
    peak: str  # description of the peaks of one rank's device
    mfu_pct: float  # model FLOPs utilization of the whole step
    memory_pct: float  # utilization of the memory's bandwidth if all operations were fused
    fits_in_memory: bool | None  # all images into this node's memory; None without files

    def __getitem__(self, name: str) -> Measured:
        return next(rung for rung in self.rungs if rung.name == name)

    @property
    def rate(self) -> float:
        """Images per second of the whole step."""
        return _rate(_whole({rung.name: rung for rung in self.rungs}))

    @property
    def binds(self) -> Part:
        """The bottleneck: the part that takes longest."""
        return max(self.parts_s, key=lambda part: self.parts_s[part])

    def without(self, part: Part) -> float | None:
        """Return the predicted images per second without a part; None if it is the only one."""
        rest = {name: seconds for name, seconds in self.parts_s.items() if name != part}
        return 1 / self.law.whole_s(rest) if rest else None

    def as_json(self) -> dict[str, Any]:
        """Return the content of ladder.json."""
        return asdict(self) | {"binds": self.binds, "law_in_words": self.law.in_words()}


def summarize(
    run: Opened, timed: Sequence[Rung], turns: Mapping[str, Sequence[AllRanksTurn]],
    missing: Mapping[str, str], bounds: Limits,
) -> Ladder:  # fmt: skip
    """Return the ladder of all turns; `missing` says why other rungs were not measured, by name."""
    measured = {name: Measured(name, text, missing.get(name)) for name, text in rungs.ABOUT.items()}
    for rung in timed:
        _fill_in(measured[rung.name], rung, turns[rung.name], bounds)
    r, dataset = run.resolved, run.train_set.dataset
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    law = law_of(r)
    _add_limits(measured, law)
    _add_shares(measured)
    whole = _rate(_whole(measured))
    parts_s = {
        part: 1 / _rate(measured[name])
        for part, name in PARTS.items()
        if not measured[name].missing
    }
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
    row.limit, limit_by = bounds.images_per_second(rung.name), "the network's operations and bytes"
    if rung.name == rungs.ALL_REDUCE and rung.size_bytes and bounds.all_reduce_bytes_per_s:
        row.limit = rung.images * bounds.all_reduce_bytes_per_s / rung.size_bytes
        limit_by = "one all-reduce of 64 MiB"
    row.limit_by = None if row.limit is None else limit_by
    row.limit_unfused = bounds.images_per_second(rung.name, fused=False)


def half_width_pct(turns: Sequence[AllRanksTurn]) -> float:
    """Return the half-width of a rate's interval, in percent of the mean; infinite for one turn."""
    rates = [turn.images_per_second for turn in turns]
    return 100 * (interval_of_mean(rates)[1] / float(np.mean(rates)) - 1)


def _rate(rung: Measured) -> float:
    assert rung.images_per_second is not None, f"{rung.name} was not measured"
    return rung.images_per_second


def _whole(measured: Mapping[str, Measured]) -> Measured:
    """Return the rung of the whole step: on real images, or if missing, on synthetic ones."""
    return measured[rungs.DDP if measured[rungs.EVERYTHING].missing else rungs.EVERYTHING]


def _add_limits(measured: Mapping[str, Measured], law: Law) -> None:
    loader, decoding = measured[rungs.LOADER], measured[rungs.DECODE].images_per_second
    if decoding is not None and loader.missing is None:
        loader.limit, loader.limit_by = decoding, "decoding alone"
    of_steps: dict[str, tuple[Part, ...]] = {
        rungs.DDP: ("compute", "all-reduce"), rungs.EVERYTHING: (*PARTS,),
    }  # fmt: skip
    for name, parts in of_steps.items():
        known_s = {part: 1 / limit for part in parts if (limit := measured[PARTS[part]].limit)}
        if measured[name].missing is None and known_s:
            measured[name].limit = 1 / law.whole_s(known_s)
            measured[name].limit_by = "the limits of " + ", ".join(known_s)


def _add_shares(measured: Mapping[str, Measured]) -> None:
    whole, below_s = _rate(_whole(measured)), 0.0
    for name in (rungs.FORWARD, rungs.BACKWARD, rungs.OPTIMIZER, rungs.DDP, rungs.EVERYTHING):
        if measured[name].missing is None:
            seconds = 1 / _rate(measured[name])
            measured[name].share_pct = 100 * (seconds - below_s) * whole
            below_s = seconds
