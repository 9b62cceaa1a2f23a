"""Summarize the turns of a ladder: rates, limits, shares, and which part is the bottleneck."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from harness.bench.ladder import rungs
from harness.bench.ladder.law import Law, Part, law_of
from harness.bench.ladder.limits import Limits
from harness.bench.ladder.rungs import Rung
from harness.bench.loop import Opened
from harness.results.stats.statistics import interval_of_mean

NARROW_PCT = 5.0
"""The report warns of intervals whose half-width is above this percentage of the mean."""


@dataclass(frozen=True)
class AllRanksTurn:
    """One timing of a rung on all ranks together."""

    images_per_second: float
    cores: float
    steps_ms: list[float]


@dataclass(frozen=True)
class Measured:
    """The result of a rung; what was not measured is None.

    Attributes:
        about: what the rung does.
        missing: why the rung was not measured.
        images_per_second: of all ranks, mean over turns; `low`, `high`: its 95 % interval.
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
        """Half-width of the interval, in percent of the mean."""
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
        everything = self[rungs.EVERYTHING]
        return self[rungs.DDP] if everything.missing else everything

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
    by_name = {rung.name: rung for rung in timed}
    plain = {
        name: Measured(name, about, missing[name]) if name in missing
        else _measured(by_name[name], turns[name], bounds)
        for name, about in rungs.ABOUT.items()
    }  # fmt: skip
    r, dataset = run.resolved, run.train_set.dataset
    law = law_of(
        on_gpu=r.world.on_gpu, loader_threads=r.loader.threads, compute_threads=r.threads,
        cores=r.world.cores(),
    )  # fmt: skip
    everything = plain[rungs.EVERYTHING]
    whole = plain[rungs.DDP] if everything.missing else everything
    parts_s = _parts_s(plain)
    return Ladder(
        what=r.lines()[:6],
        ranks_per_node=r.world.local_size,
        rungs=_with_shares(_with_limits(plain, law), _rate(whole)),
        law=law,
        parts_s=parts_s,
        predicted=1 / law.whole_s(parts_s),
        peak=bounds.in_words(r.precision),
        mfu_pct=bounds.utilization.mfu_pct(_rate(whole)),
        memory_pct=bounds.utilization.memory_pct(_rate(whole)),
        fits_in_memory=None if dataset is None else int(dataset.size_bytes.sum()) < _memory_bytes(),
    )


def _measured(rung: Rung, turns: Sequence[AllRanksTurn], bounds: Limits) -> Measured:
    rates = [turn.images_per_second for turn in turns]
    mean, (low, high) = float(np.mean(rates)), interval_of_mean(rates)
    steps_ms = [ms for turn in turns for ms in turn.steps_ms]
    p50, p95 = np.quantile(steps_ms, (0.5, 0.95)).tolist() if steps_ms else (None, None)
    limit, limit_by = bounds.images_per_second(rung.name), "the network's operations and bytes"
    if rung.name == rungs.ALL_REDUCE and rung.size_bytes is not None:
        limit, limit_by = (
            bounds.all_reduce(rung.size_bytes, rung.images),
            "one all-reduce of 64 MiB",
        )
    return Measured(
        name=rung.name,
        about=rungs.ABOUT[rung.name],
        images_per_second=mean,
        low=low,
        high=high,
        turns=len(rates),
        step_ms_p50=p50,
        step_ms_p95=p95,
        cores=float(np.mean([turn.cores for turn in turns])),
        bytes_per_second=_speed(rung, mean, bounds.ranks),
        limit=limit,
        limit_unfused=bounds.images_per_second(rung.name, fused=False),
        limit_by=limit_by if limit else None,
    )


def _speed(rung: Rung, images_per_second: float, ranks: int) -> float | None:
    """Return bytes per second of all ranks; of an all-reduce, those of one rank's buffer."""
    if rung.size_bytes is None:
        return None
    buffers = 1 if rung.name == rungs.ALL_REDUCE else ranks
    return images_per_second / rung.images * rung.size_bytes * buffers


def half_width_pct(turns: Sequence[AllRanksTurn]) -> float:
    """Return the half-width of a rate's interval, in percent of the mean; infinite for one turn."""
    rates = [turn.images_per_second for turn in turns]
    if len(rates) < 2:
        return float("inf")
    return 100 * (interval_of_mean(rates)[1] / float(np.mean(rates)) - 1)


def _rate(rung: Measured) -> float:
    assert rung.images_per_second is not None, f"{rung.name} was not measured"
    return rung.images_per_second


def _parts_s(plain: Mapping[str, Measured]) -> dict[Part, float]:
    """Return the seconds per image of each part of a step, measured alone."""
    names: dict[Part, str] = {
        "data": rungs.LOADER, "compute": rungs.OPTIMIZER, "all-reduce": rungs.ALL_REDUCE,
    }  # fmt: skip
    return {part: 1 / _rate(plain[name]) for part, name in names.items() if not plain[name].missing}


def _with_limits(plain: Mapping[str, Measured], law: Law) -> list[Measured]:
    """Add the limits of the loader, which is decoding, and of whole steps, by the law."""
    limits = {name: rung.limit for name, rung in plain.items()}
    if (decoding := plain[rungs.DECODE].images_per_second) is not None:
        limits[rungs.LOADER] = decoding
    limit_by = {rungs.LOADER: "decoding alone"}
    steps: dict[str, dict[Part, str]] = {
        rungs.DDP: {"compute": rungs.OPTIMIZER, "all-reduce": rungs.ALL_REDUCE},
        rungs.EVERYTHING: {
            "data": rungs.LOADER, "compute": rungs.OPTIMIZER, "all-reduce": rungs.ALL_REDUCE,
        },
    }  # fmt: skip
    for name, parts in steps.items():
        known = {part: limit for part, rung in parts.items() if (limit := limits[rung]) is not None}
        if plain[name].missing is None and known:
            limits[name] = 1 / law.whole_s({part: 1 / limit for part, limit in known.items()})
            limit_by[name] = "the limits of " + ", ".join(known)
    return [
        replace(rung, limit=limits[name], limit_by=limit_by.get(name, rung.limit_by))
        if limits[name] is not None and rung.missing is None else rung
        for name, rung in plain.items()
    ]  # fmt: skip


def _with_shares(measured: list[Measured], whole: float) -> list[Measured]:
    """Add what each rung of the step adds to the one below, in percent of the whole step's time."""
    by_name = {rung.name: rung for rung in measured}
    shares, below_s = {}, 0.0
    for name in (rungs.FORWARD, rungs.BACKWARD, rungs.OPTIMIZER, rungs.DDP, rungs.EVERYTHING):
        if by_name[name].missing is None:
            seconds = 1 / _rate(by_name[name])
            shares[name] = 100 * (seconds - below_s) * whole
            below_s = seconds
    return [replace(rung, share_pct=shares.get(rung.name)) for rung in measured]


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
