"""Model how the times of a step's parts make up the time of the whole step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["data", "compute", "all-reduce"]


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
