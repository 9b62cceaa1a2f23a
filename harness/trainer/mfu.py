"""Utilization: which share of a device's peaks the network's own work comes to, at some rate."""

from dataclasses import dataclass

from harness.models.flops import Costs, flops, moved_bytes, training_costs
from harness.monitor.peaks import Peaks, printed_for
from harness.trainer.resolve import Resolved


@dataclass(frozen=True)
class Utilization:
    """What a training image asks of a device that can do so much."""

    flops: float  # of forward and backward pass and optimizer, per image; a multiply-add is two
    moved_bytes: float  # likewise, if all between matrix products is fused: none can go below
    peak: Peaks
    ranks: int

    def mfu_pct(self, images_per_second: float) -> float:
        """Share of the peak operations that are the network's, at this rate of all ranks.

        Model FLOPs utilization: what is computed again does not count (Chowdhery et al. 2022, 4.1).
        """
        return 100 * self.flops * images_per_second / self.ranks / self.peak.flops_per_s

    def memory_pct(self, images_per_second: float) -> float:
        """Share of the peak bandwidth that fused operations would need, at this rate."""
        return 100 * self.moved_bytes * images_per_second / self.ranks / self.peak.bytes_per_s


def utilization(costs: Costs, peak: Peaks, ranks: int) -> Utilization:
    """Of a step whose costs are known."""
    return Utilization(flops(costs.step), moved_bytes(costs.step, fused=True), peak, ranks)


def costs_of(resolved: Resolved, classes: int) -> Costs:
    """Count the operations of a run's step; takes a second or so."""
    config = resolved.config
    return training_costs(
        config.model, classes, image_px=config.data.image_px, images=resolved.split.local_batch,
        precision=resolved.precision, momentum=config.optim.momentum > 0,
    )  # fmt: skip


def of_printed_peaks(resolved: Resolved, classes: int) -> Utilization | None:
    """Of a GPU whose peaks are printed; for others, a run has no time to measure any."""
    world = resolved.world
    peak = printed_for(world.device, resolved.precision)
    if peak is None or world.shares_gpu:  # ranks that share a GPU have no peak of their own
        return None
    return utilization(costs_of(resolved, classes), peak, world.size)
