"""Compute the upper limit of each rung from the network's operations and the machine's peaks."""

from dataclasses import dataclass
from typing import Any

from harness.bench.ladder import rungs
from harness.models.flops import Costs, roofline_s
from harness.monitor import peaks, probes
from harness.trainer.mfu import costs_of
from harness.trainer.resolve import Resolved

LARGE_BYTES = 64 * probes.MIB
"""Size of an all-reduce so large that only bandwidth counts."""


@dataclass(frozen=True)
class Limits:
    """The peaks of this machine, and the costs of this network."""

    costs: Costs  # per image
    peak: peaks.Peaks  # of one rank's device: the vendor's, or if unknown the measured ones
    measured: peaks.Peaks  # of the same device
    all_reduce_bytes_per_s: float | None  # of a large all-reduce; None with one rank
    ranks: int

    def images_per_second(self, name: str, *, fused: bool = True) -> float | None:
        """Return the limit of a compute rung, images per second of all ranks; None for others."""
        if name not in (rungs.FORWARD, rungs.BACKWARD, rungs.OPTIMIZER, rungs.DDP):
            return None
        costs = self.costs
        ops = costs.forward if name == rungs.FORWARD else costs.forward + costs.backward
        seconds = self._seconds(ops, fused)
        if name in (rungs.OPTIMIZER, rungs.DDP):
            seconds += self._seconds(costs.optimizer, fused=False)
        return self.ranks / seconds

    def _seconds(self, ops: Any, fused: bool) -> float:
        return roofline_s(ops, self.peak.flops_per_s, self.peak.bytes_per_s, fused=fused)

    def in_words(self, precision: str) -> str:
        """Describe the peaks of one rank's device."""
        peak, measured = self.peak, self.measured
        text = (
            f"{peak.flops_per_s / 1e12:,.3g} TFLOP/s in {precision}, "
            f"{peak.bytes_per_s / 1e9:,.4g} GB/s of memory ({peak.source})"
        )
        if measured == peak:
            return text
        return (
            f"{text}; a matrix product reaches {measured.flops_per_s / 1e12:,.3g}, "
            f"a copy {measured.bytes_per_s / 1e9:,.4g}"
        )


def find(resolved: Resolved, classes: int) -> Limits:
    """Count the network's operations and measure this machine's peaks; a collective call."""
    world, costs = resolved.world, costs_of(resolved, classes)
    measured = peaks.measured(world.device, resolved.precision)
    peak = peaks.printed_for(world.device, resolved.precision) or measured
    all_reduce_bytes_per_s = None
    if world.size > 1:
        all_reduce_bytes_per_s = LARGE_BYTES / probes.all_reduce_s(world, LARGE_BYTES, limit_s=1)
    return Limits(costs, peak, measured, all_reduce_bytes_per_s, world.size)
