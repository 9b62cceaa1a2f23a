"""Pulse: what every rank does between two steps besides training: be alive, vote, obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.record.stacks import Stacks
from harness.signals import Signals
from harness.world import Agreed, Ballot


@dataclass
class Pulse:
    """One beat per step and per validation batch, on all ranks alike.

    Attributes:
        save_due: whether it is time for a checkpoint; rank 0's answer counts for all.
        time_is_up: whether the training ends here; so does its.
    """

    ballot: Ballot
    signals: Signals
    stacks: Stacks | None
    save_due: Callable[[], bool]
    time_is_up: Callable[[], bool] = lambda: False

    def beat(self) -> Agreed:
        """What all ranks are to do here; raised on any rank one beat before."""
        if self.stacks is not None:
            self.stacks.alive()
        return self.ballot.cast(
            stop=self.signals.received is not None, save=self.save_due(), end=self.time_is_up()
        )
