"""The ranks of one variant of a sweep: set a run up, then train a turn whenever the sweep asks.

Started by `VariantProcess`, under torchrun or alone. Each rank has its own connection to the sweep,
so that no collective waits, and holds the device, while another variant is measured.
"""

import json
import os
import socket
import sys
import time
from typing import Any

import torch

from harness import __version__
from harness.bench.ladder.rungs import Rung, bucket_sizes, training_rung
from harness.bench.loop import Opened, opened, world_of_bench
from harness.bench.sweep.process import Connection, Gone
from harness.config import load
from harness.errors import HarnessError, one_line
from harness.trainer import setup
from harness.trainer.loop import Training
from harness.trainer.metrics import memory_peak_gib

MOST_STEPS = 1000


def main() -> None:
    """Connect, set up, measure until the sweep closes the connection; failures are sent as well."""
    task = json.loads(sys.argv[1])
    host, _, port = task["address"].rpartition(":")
    connection = Connection(socket.create_connection((host, int(port)), timeout=60))
    try:
        _serve(task["words"], task["token"], connection)
    except Gone:
        pass
    except BaseException as error:
        line = one_line(error)
        if not isinstance(error, HarnessError):
            line = f"{type(error).__name__}: {line}"
        connection.send(error=line, memory=isinstance(error, torch.OutOfMemoryError))
        raise
    finally:
        connection.close()
    # Not sys.exit: the others of a broken group would be waited for.
    sys.stdout.flush()
    os._exit(0)


def _serve(args: list[str], token: str, connection: Connection) -> None:
    config = load.load(args, prog="harness bench")
    world = world_of_bench(config.engine.backend)
    connection.send(token=token, rank=world.rank)
    began = time.perf_counter()
    with opened(config, world) as run:
        rung = training_rung(run.t, run.train_set)
        connection.send(set_up_s=time.perf_counter() - began, **_facts(run))
        per_step_s, warm = None, setup.graph_counts()["graphs"]
        while (turn_s := connection.recv().get("turn_s")) is not None:
            if per_step_s is None:
                rung.turn(2)  # what compiles late has compiled by then
                per_step_s = rung.turn(2).seconds / 2
            # The same number on all ranks: they train together.
            steps = world.from_main(max(1, min(MOST_STEPS, round(turn_s / per_step_s))))
            slowest_s = max(world.gather(rung.turn(steps).seconds))
            counts = setup.graph_counts()
            recompiles, rate = counts["graphs"] - warm, rung.images * steps / slowest_s
            connection.send(images_per_second=rate, recompiles=recompiles, breaks=counts["breaks"])
        launches = _launches(run.t, rung)
        connection.send(launches_per_step=launches, memory_peak_gib=memory_peak_gib(world))


def _facts(run: Opened) -> dict[str, Any]:
    """Return facts of the variant; `came_to`: values of settings that are `auto`, 0 or null."""
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
        "buckets": len(bucket_sizes(run.t)) or None,
        **setup.graph_counts(),
    }


def _launches(t: Training, rung: Rung) -> int | None:
    if not t.resolved.world.on_gpu:
        return None
    kinds, before = torch.profiler.ProfilerActivity, t.step
    # The CPU's calls of CUDA are recorded only if the GPU is profiled too.
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        rung.turn(1)  # and steps before it; at its end the device is done
    calls = [n.count for n in profile.key_averages() if n.key.startswith("cudaGraphLaunch")]
    return int(sum(calls)) // (t.step - before)


if __name__ == "__main__":
    main()
