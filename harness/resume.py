"""Resume: all that a training needs to go on with the same bits, taken between two steps."""

from __future__ import annotations

import torch

from harness.checkpoint import Staging, State, capture, restore
from harness.events import Event
from harness.train import Training


def open_sums(t: Training) -> dict[str, torch.Tensor]:
    """What each rank has counted since the last log point, and seen in this epoch, on the device.

    A collective; the host reads nothing.
    """
    correct, losses = t.counts.open_period()
    seen = torch.from_numpy(t.digest.words()).to(correct.device, non_blocking=True)
    words = t.resolved.world.gather_tensor(torch.cat([seen, correct, losses.view(torch.int64)]))
    return {
        "seen": words[:, :3],
        "correct": words[:, 3:5],
        "losses": words[:, 5:].contiguous().view(torch.float64),
    }


def state(t: Training, sums: dict[str, torch.Tensor], staging: Staging) -> State:
    """All that is needed to go on from here, copied to host memory."""
    position = {
        "step": t.step,
        "images_seen": t.images_seen,
        "events": [tuple(event) for event in t.events],
    }
    taken = capture(t.model.net, t.optimizer, t.scaler, staging)
    return {**taken, **staging.copy(sums, "sums"), **position, "clock": t.clock.state()}


def go_on(t: Training, state: State | None, spent_s: float) -> None:
    """Take up, on all ranks, the checkpoint that rank 0 holds.

    Args:
        state: what `state` gave; None on the other ranks.
        spent_s: time of all earlier attempts.
    """
    world, big = t.resolved.world, ("model", "optimizer")
    small = {key: value for key, value in (state or {}).items() if key not in big}
    small = world.from_main(small)
    if state is not None:
        restore(state, t.model.net, t.optimizer)
    # One reader of the file: the ranks' bits are the same, and one node may do without the folder.
    momenta = [each["momentum_buffer"] for each in t.optimizer.state.values()]
    world.broadcast_([*t.model.net.state_dict().values(), *momenta])
    t.scaler.load_state_dict(small["scaler"])
    t.step = small["step"]
    t.events = [Event(*each) for each in small["events"]]
    per_rank = t.resolved.split.global_batch // world.size
    t.counts.go_on(small["correct"], small["losses"], world, per_rank)
    if world.is_main:
        t.digest.go_on(small["seen"].sum(0).numpy())
    t.clock.go_on(small["clock"], spent_s)
