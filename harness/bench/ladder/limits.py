"""Limits: the speed of light for each rung, from the network's graph and the machine's peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.bench.ladder import rungs
from harness.models.flops import Costs, roofline_s
from harness.monitor import peaks, probes
from harness.trainer.mfu import Utilisation, costs_of, utilisation
from harness.trainer.resolve import Resolved

LARGE_BYTES = 64 * probes.MIB
"""A sum over ranks so large that only bandwidth counts."""


@dataclass(frozen=True)
class Limits:
    """What bounds this machine, and this network's costs.

    Attributes:
        peak: of one rank's device: printed, or measured.
        measured: of the same, measured; the same numbers where none are printed.
        all_reduce_bytes_per_s: of a large sum over all ranks; null with one rank.
        copy_bytes_per_s: to the GPU; null without one.
    """

    costs: Costs
    peak: peaks.Peaks
    measured: peaks.Peaks
    all_reduce_bytes_per_s: float | None
    ranks: int

    def images_per_second(self, name: str, *, fused: bool = True) -> float | None:
        """Images of all ranks per second that a computing rung cannot exceed; null for others."""
        parts = {
            rungs.FORWARD: self.costs.forward,
            rungs.BACKWARD: self.costs.forward + self.costs.backward,
            rungs.OPTIMIZER: self.costs.forward + self.costs.backward,
            rungs.DDP: self.costs.forward + self.costs.backward,
        }
        if name not in parts:
            return None
        seconds = self._seconds(parts[name], fused)
        if name in (rungs.OPTIMIZER, rungs.DDP):
            seconds += self._seconds(self.costs.optimizer, fused=False)
        return self.ranks / seconds

    def _seconds(self, ops: Any, fused: bool) -> float:
        return roofline_s(ops, self.peak.flops_per_s, self.peak.bytes_per_s, fused=fused)

    def all_reduce(self, size_bytes: float, images: int) -> float | None:
        """Images per second if sums over ranks ran at full bandwidth."""
        if self.all_reduce_bytes_per_s is None:
            return None
        return images * self.all_reduce_bytes_per_s / size_bytes

    def in_words(self, precision: str) -> str:
        """The peaks of one rank's device."""
        peak, own = self.peak, self.measured
        told = (
            f"{peak.flops_per_s / 1e12:,.3g} TFLOP/s in {precision}, "
            f"{peak.bytes_per_s / 1e9:,.4g} GB/s of memory ({peak.source})"
        )
        if own == peak:
            return told
        return (
            f"{told}; a matrix product reaches {own.flops_per_s / 1e12:,.3g}, "
            f"a copy {own.bytes_per_s / 1e9:,.4g}"
        )

    @property
    def utilisation(self) -> Utilisation:
        """Shares of the peaks, at a rate."""
        return utilisation(self.costs, self.peak, self.ranks)


def find(resolved: Resolved, classes: int) -> Limits:
    """Count and measure; a collective call."""
    world, costs = resolved.world, costs_of(resolved, classes)
    measured = peaks.measured(world.device, resolved.precision)
    speed = None
    if world.size > 1:
        speed = LARGE_BYTES / probes.all_reduce_s(world, LARGE_BYTES, limit_s=1)
    return Limits(
        costs,
        peaks.printed_for(world.device, resolved.precision) or measured,
        measured,
        speed,
        world.size,
    )
