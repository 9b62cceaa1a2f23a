"""The ranks of one variant of a sweep: set a run up, then train a turn whenever the sweep asks.

Started by `VariantProcess`, under torchrun or alone. Each rank has its own connection to the sweep,
so that no collective waits, and holds the device, while another variant is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch

from harness import __version__
from harness.bench.ladder.rungs import Rung, bucket_sizes, training_rung
from harness.bench.loop import TIMEOUT_S, Opened, opened, world_of_bench
from harness.bench.sweep.wire import Gone, Wire
from harness.config import load
from harness.errors import HarnessError
from harness.monitor.clock import Clock
from harness.monitor.watchdog import Watchdog
from harness.system.process import Signals
from harness.trainer import setup
from harness.trainer.control import StepControl, Vote
from harness.trainer.loop import Training, set_up
from harness.trainer.metrics import memory_peak_gib

MOST_STEPS = 1000


def main() -> None:
    """Connect, set up, measure until the sweep closes the connection; failures are sent as well."""
    asked = json.loads(sys.argv[1])
    wire = Wire.to(asked["address"])
    try:
        serve(asked["words"], asked["token"], wire)
    except Gone:
        pass
    except BaseException as error:
        wire.say(error=_in_a_line(error), memory=isinstance(error, torch.OutOfMemoryError))
        raise
    finally:
        wire.close()
    # Not sys.exit: the others of a broken group would be waited for.
    sys.stdout.flush()
    os._exit(0)


def serve(words: list[str], token: str, wire: Wire) -> None:
    """Set up, say what came of it, answer each request for a turn.

    Raises:
        Gone: the bench has hung up.
    """
    config = load.load(words, prog="harness bench")
    world = world_of_bench(config.engine.backend)
    wire.say(token=token, rank=world.rank)
    began = time.perf_counter()
    with opened(config, world) as run:
        vote = Vote(TIMEOUT_S)
        control = StepControl(vote, Signals(), Watchdog(), lambda: False)
        net = setup.network(run.resolved, run.train_set.classes)
        t = set_up(run.resolved, net, Clock(world.device), control)
        rung = training_rung(t, run.train_set)
        wire.say(set_up_s=time.perf_counter() - began, **_facts(run, t))
        per_step_s, warm = None, setup.graph_counts()["graphs"]
        while (turn_s := wire.hear().get("turn_s")) is not None:
            per_step_s = per_step_s or _per_step_s(rung)
            steps = max(1, min(MOST_STEPS, round(turn_s / per_step_s)))
            rate = _turn(run, rung, steps)
            counts = setup.graph_counts()
            recompiles = counts["graphs"] - warm
            wire.say(images_per_second=rate, recompiles=recompiles, breaks=counts["breaks"])
        wire.say(launches_per_step=_launches(t, rung), memory_peak_gib=memory_peak_gib(world))


def _in_a_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, HarnessError) else f"{type(error).__name__}: {message}"


def _per_step_s(rung: Rung) -> float:
    """Of this rank; what compiles late has compiled by then."""
    rung.turn(2)
    return rung.turn(2).seconds / 2


def _turn(run: Opened, rung: Rung, steps: int) -> float:
    world = run.resolved.world
    steps = world.from_main(steps)  # begun together
    slowest_s: float = max(world.gather(rung.turn(steps).seconds))
    return rung.images * steps / slowest_s


def _facts(run: Opened, t: Training) -> dict[str, Any]:
    """Of the arm; `came_to`: what settings that are `auto`, 0 or null have come to."""
    r = run.resolved
    came_to = {
        "engine.precision": r.precision,
        "engine.compile": r.compiled,
        "engine.threads": r.threads,
        "data.threads": r.loader.threads,
        "data.decode": r.loader.decode,
        "train.max_local_batch": r.split.local_batch,
    }
    return {
        "torch": torch.__version__,
        "harness": __version__,
        "on_gpu": r.world.on_gpu,
        "cores": r.world.cores(),
        "came_to": {key: load.as_text(value) for key, value in came_to.items()},
        "buckets": len(bucket_sizes(t)) or None,
        **setup.graph_counts(),
    }


def _launches(t: Training, rung: Rung) -> int | None:
    """CUDA graphs replayed in one step; null without a GPU."""
    if not t.resolved.world.on_gpu:
        return None
    kinds, before = torch.profiler.ProfilerActivity, t.step
    # What the CPU asks of CUDA is seen only where the GPU is watched too.
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        rung.turn(1)  # and steps before it; at its end the device is done
    calls = [n.count for n in profile.key_averages() if n.key.startswith("cudaGraphLaunch")]
    return int(sum(calls)) // (t.step - before)


if __name__ == "__main__":
    main()
