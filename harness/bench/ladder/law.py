"""Law: how the parts of a step make up the whole, and so what binds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["data", "compute", "all-reduce"]


@dataclass(frozen=True)
class Law:
    """Seconds of the whole from the seconds of its parts, each measured alone.

    Attributes:
        shared: parts use the same CPU cores, so that their times add up; else they overlap, and
            the longest counts.
    """

    shared: bool

    def whole_s(self, parts_s: Mapping[Part, float]) -> float:
        """Seconds of all parts together."""
        return sum(parts_s.values()) if self.shared else max(parts_s.values())

    def binds(self, parts_s: Mapping[Part, float]) -> Part:
        """The part that takes longest: of shared cores, or of all that goes on at once."""
        return max(parts_s, key=lambda part: parts_s[part])

    def without_s(self, part: Part, parts_s: Mapping[Part, float]) -> float:
        """Seconds of the whole if a part cost nothing: as far as the next thing that binds."""
        rest = {name: seconds for name, seconds in parts_s.items() if name != part}
        return self.whole_s(rest) if rest else 0.0

    def in_words(self) -> str:
        """For a person."""
        if self.shared:
            return "the parts share the CPU cores, so that their times add up"
        return "the parts overlap, so that the longest counts"


def law_of(*, on_gpu: bool, loader_threads: int, compute_threads: int, cores: int) -> Law:
    """A GPU computes while the CPU decodes; on a CPU, if they want more cores than there are."""
    return Law(shared=not on_gpu and loader_threads + compute_threads > cores)
