"""The checks of prove_gpu: what each runs, in order of value, and what the results must come to."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(tempfile.gettempdir()) / "prove"
BOX, DATA, RUNS, LOGS = (HERE / name for name in ("box", "data", "runs", "logs"))
TESTS = Path(__file__).resolve().parents[1]
Command = list[str]


def train(name: str, config: str, *flags: str, ranks: int = 1) -> Command:
    """A training; several ranks share the GPU."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [
        *(sys.executable, *(several if ranks > 1 else [])),
        *("launch/train.py", f"configs/{config}.yaml"),
        *("--run.root", str(RUNS), "--run.name", name, "--run.restart", "true"),
        *("--log.wandb", "off", *(["--engine.backend", "gloo"] if ranks > 1 else []), *flags),
    ]  # fmt: skip


def harness(*words: str) -> Command:
    return [sys.executable, "-m", "harness", *words]


def tests(marks: str, *files: str) -> Command:
    """Those of some files, by name without `test_`; of none: of all."""
    named = [str(path) for name in files for path in TESTS.rglob(f"test_{name}.py")]
    several = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-v", "-m", marks, "-p", "no:cacheprovider", *several),
        *("--no-header", "--continue-on-collection-errors", *(named or ["tests"])),
    ]  # fmt: skip


SYNTHETIC = (
    *("--data.source", "synthetic", "--data.synthetic-images", "51200"),
    *("--data.synthetic-val-images", "1000"),
)
SMALL = (
    *(*SYNTHETIC, "--model.name", "resnet18", "--data.image-px", "128", "--data.eval-resize-px"),
    *("0", "--train.global-batch", "128", "--schedule.max-steps", "12", "--log.every-steps", "1"),
    *("--checkpoint.every-steps", "12"),
)
GRAPHS = ("--engine.compile-mode", "reduce-overhead")
EXACT = ("--engine.deterministic", "true")
SAMPLE = tuple(f"--data.{part}={DATA}/imagenet-sample" for part in ("train", "val"))
IMAGENETTE = (f"--data.train={DATA}/imagenette/train", f"--data.val={DATA}/imagenette/val")
DOCTOR = (
    *("--data.source", "synthetic", "--data.synthetic-images", "4000"),
    *("--data.synthetic-val-images", "200", "--model.name", "resnet18", "--data.image-px", "64"),
    *("--data.eval-resize-px", "0", "--train.global-batch", "66", "--steps", "30"),
)


def rn50(name: str, images: int, steps: int, *flags: str) -> Command:
    every = ("--log.every-steps", str(steps // 3))
    length = ("--train.global-batch", str(images), "--schedule.max-steps", str(steps))
    return train(name, "resnet50_90ep", *SYNTHETIC, *length, *every, *flags)


def small(name: str, *flags: str, ranks: int = 1) -> Command:
    return train(name, "resnet50_90ep", *SMALL, *flags, ranks=ranks)


def ladder(decode: str) -> Command:
    return harness(
        *("bench", "ladder", "configs/resnet50_90ep.yaml", *SAMPLE, "--train.global-batch", "128"),
        *("--data.decode", decode, "--minutes", "1", "--out", str(RUNS / f"ladder-{decode}")),
    )


def scored(decode: str) -> Command:
    """Published weights on the test images of CIFAR-10."""
    return train(
        f"scored-{decode}", "cifar10_resnet20_short", "--run.mode", "eval",
        *("--model.weights", str(DATA / "resnet20.th"), "--data.val", f"{DATA}/cifar10/test"),
        *("--data.mean", "0.485,0.456,0.406", "--data.std", "0.229,0.224,0.225"),
        *("--engine.precision", "fp32", "--data.decode", decode),
    )  # fmt: skip


# What the results come to: each returns a line, and raises AssertionError where that is wrong.


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RUNS / name / "result.json").read_text())
    return content


def rate(name: str) -> str:
    content = result(name)
    keys = ("images_per_second", "step_ms_p50", "data_wait_pct", "mfu_pct", "images_per_joule",
            "memory_peak_gib", "recompiles", "graph_breaks", "val_top1_pct")  # fmt: skip
    return ", ".join(f"{key} {content[key]:.5g}" for key in keys if content.get(key) is not None)


def start_up(first: str, again: str) -> str:
    spent = [result(name)["accounts_s"].get("compile", 0.0) for name in (first, again)]
    assert spent[1] < spent[0] / 2, f"compiling took {spent[0]:.0f} s, and again {spent[1]:.0f} s"
    return f"compiling {spent[0]:.0f} s, then {spent[1]:.0f} s; {rate(again)}"


def losses(name: str) -> list[float]:
    rows = map(json.loads, (RUNS / name / "rows.jsonl").open())
    return [row["loss"] for row in rows if row["kind"] == "train"]


def momentum(name: str) -> Any:
    """The sum of a run's gradients, each step's a little smaller than the next's: a vector."""
    import torch

    (path,) = (RUNS / name / "checkpoints").glob("step-*.pt")
    state = torch.load(path, map_location="cpu", weights_only=False)["optimizer"]["state"]
    return torch.cat([each["momentum_buffer"].flatten() for each in state.values()])


def same_gradients(first: str, *others: str, within: float = 0.2) -> str:
    """But for rounding. Half of a batch left out makes them differ by more than half."""
    expected = momentum(first)
    far = [float((momentum(name) - expected).norm() / expected.norm()) for name in others]
    line = ", ".join(f"{name} {away:.4f}" for name, away in zip(others, far, strict=True))
    assert all(math.isfinite(away) and away <= within for away in far), f"away from {first}: {line}"
    return f"away from {first}: {line}"


def finite(name: str) -> str:
    values = losses(name)
    assert all(map(math.isfinite, values)), values
    return f"losses {values[0]:.3f} to {values[-1]:.3f}"


def accurate(name: str, least_pct: float) -> str:
    assert result(name)["val_top1_pct"] >= least_pct, rate(name)
    return rate(name)


def falling(name: str) -> str:
    values = losses(name)
    assert values[-1] < values[0], values
    return f"loss {values[0]:.3f} to {values[-1]:.3f}"


def same_bits(first: str, again: str) -> str:
    import torch

    states = [
        torch.load(RUNS / name / "checkpoints" / "final.pt", map_location="cpu")["model"]
        for name in (first, again)
    ]
    other = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    assert not other, f"{len(other)} of {len(states[0])} tensors differ, first {other[0]}"
    return "the same bits"


def launches(out: str) -> str:
    (trial, *_) = json.loads((RUNS / out / "sweep.json").read_text())["trials"]
    assert trial["facts"]["launches_per_step"] > 0, trial["facts"]
    return f"{trial['facts']['launches_per_step']} graphs a step, {trial['ratio']:.3f} times"


def right(*names: str) -> str:
    """Pillow has 8,103 of the 10,000 right."""
    counts = {name: result(name)["val_correct1"] for name in names}
    assert all(abs(count - 8103) <= 30 for count in counts.values()), counts
    return ", ".join(f"{name} {count} of 10000" for name, count in counts.items())


@dataclass(frozen=True)
class Check:
    """Commands, one after the other.

    Attributes:
        limit_s: of all of them together.
        proves: what it shows, in short; tests/README.md has the table.
        verdict: what the results come to; by default the last line that was printed.
        needs: `dali`, or a name in DATA, without which it is left out.
        measures: a time, and so has the GPU to itself.
        gate: without which no other is worth its time.
        code: with which the last command must end.
        says: what the last command's log must have, where it is one to be refused.
    """

    name: str
    limit_s: int
    proves: str
    commands: tuple[Command, ...]
    verdict: Callable[[], str] | None = None
    needs: tuple[str, ...] = ()
    code: int = 0
    says: str = ""
    measures: bool = False
    gate: bool = False


MACHINE = (
    "import torch, triton, platform; print(platform.python_version(), torch.__version__, "
    "torch.version.cuda, torch.backends.cudnn.version(), triton.__version__, "
    "torch.cuda.get_device_name())"
)
SWITCHES = (
    ("cudnn_all", 120, ("--engine.cudnn-benchmark-limit", "0")),
    ("padded_stem", 100, ("--engine.pad-stem", "true")),
    ("descent", 200, ("--engine.coordinate-descent", "true")),
    ("autotune", 290, ("--engine.compile-mode", "max-autotune-no-cudagraphs")),
)
DECODERS = ("cpu", "split", "gpu")
GPU_FIRST = ("distributed", "loop", "resume", "optim", "checkpoint", "setup", "dali")
DALI = ("dali",)
CHECKS = (
    Check("machine", 40, "driver, versions, compiler",
          (["nvidia-smi"], ["gcc", "--version"], [sys.executable, "-c", MACHINE]), gate=True),
    Check("first_steps", 60, "a training starts, steps, evaluates and ends",
          (small("first", "--engine.compile", "false"),), lambda: finite("first"), gate=True),
    Check("graphs_ranks", 280, "CUDA graphs under DDP, with and without bucket views (A1, A2)",
          (small("two", "--train.max-local-batch", "32", ranks=2),
           small("twog", "--train.max-local-batch", "32", *GRAPHS, ranks=2),
           small("twonv", "--train.max-local-batch", "32", *GRAPHS,
                 "--engine.bucket-view", "false", ranks=2)),
          lambda: same_gradients("two", "twog", "twonv")),
    Check("graphs_accumulate", 180, "CUDA graphs add up gradients: as without (A1)",
          (small("acc", "--train.max-local-batch", "64"),
           small("accg", "--train.max-local-batch", "64", *GRAPHS)),
          lambda: same_gradients("acc", "accg")),
    Check("tests_without_images", 150, "collectives of 3 ranks, NVML, nvidia-smi, SGD, staging",
          (tests("gpu and not slow", "distributed", "stragglers", "optim", "checkpoint",
                 "doctor_machine"),)),
    Check("resume", 240, "kills on NCCL: the same bits",
          (harness("doctor", "resume", *DOCTOR, "--kills", "3"),)),
    Check("resume_three_ranks", 240, "kills of 3 ranks on one GPU: the same bits",
          (harness("doctor", "resume", *DOCTOR, "--kills", "3", "--ranks", "3",
                   "--engine.backend", "gloo"),)),
    Check("bits", 120, "engine.deterministic: the same bits",
          (small("d1", *EXACT), small("d2", *EXACT)), lambda: same_bits("d1", "d2")),
    Check("sweep", 200, "graphs are counted, arms set up one after the other (A11, A13)",
          (harness("bench", "sweep", "configs/resnet50_90ep.yaml", *SMALL, "--ranks", "1",
                   "--minutes", "1", "--arm", "engine.compile-mode=reduce-overhead",
                   "--out", str(RUNS / "sweep-graphs")),), lambda: launches("sweep-graphs")),
    Check("compile_32", 240, "graphs for rn50_32 and rn50_32_graphs are in the cache",
          (rn50("c32", 32, 6), rn50("c32g", 32, 6, *GRAPHS))),
    Check("fp16", 80, "GradScaler: losses are finite",
          (small("h", "--engine.precision", "fp16"),), lambda: finite("h")),
    Check("small_buckets", 40, "a bucket that compiled DDP refuses is one line (A3)",
          (small("tiny", "--engine.bucket-mb", "0.5"),), code=2, says="engine.bucket_mb: "),
    Check("dali_tests", 280, "mixed decoding, DLPack, resume and evaluation of 3 ranks, no waiting",
          (tests("gpu and not slow", *GPU_FIRST),), needs=DALI),
    Check("dali_quickstart", 100, "the quickstart on a GPU: over 90 % top-1",
          (train("q", "quickstart", "--data.decode", "gpu"),), lambda: accurate("q", 90), DALI),
    Check("dali_graphs", 90, "300 steps of CUDA graphs with GPU decoding (A19)",
          (train("dg", "resnet50_90ep", *IMAGENETTE, "--model.name", "resnet18",
                 "--data.image-px", "128", "--data.eval-resize-px", "146", "--data.decode", "gpu",
                 "--train.global-batch", "64", "--schedule.max-steps", "300", *GRAPHS),),
          lambda: falling("dg"), (*DALI, "imagenette")),
    Check("dali_scores", 120, "published weights score the same with each decoder (A21)",
          tuple(map(scored, DECODERS)), lambda: right(*(f"scored-{each}" for each in DECODERS)),
          (*DALI, "cifar10", "resnet20.th")),
    Check("dali_bits", 120, "GPU decoding twice: the same bits, or decode cpu is needed (A20)",
          tuple(train(name, "resnet50_90ep", *SAMPLE, "--model.name", "resnet18", *EXACT,
                      "--train.global-batch", "64", "--schedule.max-steps", "6",
                      "--data.decode", "gpu") for name in ("d3", "d4")),
          lambda: same_bits("d3", "d4"), (*DALI, "imagenet-sample")),
    Check("rn50_256", 120, "the whole path on NCCL; speed, MFU, joules, costliest kernels",
          (rn50("a", 256, 150, "--profile.steps", "100:110"),), lambda: rate("a"), measures=True),
    Check("rn50_32", 80, "how far 32 images fill a GPU (A7)",
          (rn50("s32", 32, 300),), lambda: rate("s32"), measures=True),
    Check("rn50_32_graphs", 120, "what CUDA graphs give there",
          (rn50("g32", 32, 300, *GRAPHS),), lambda: rate("g32"), measures=True),
    Check("rn50_256_eager", 50, "what compiling gives",
          (rn50("e", 256, 90, "--engine.compile", "false"),), lambda: rate("e"), measures=True),
    Check("rn50_256_again", 50, "compiled graphs are found, nothing is compiled; same speed",
          (rn50("b", 256, 150),), lambda: start_up("a", "b"), measures=True),
    *(Check(f"dali_ladder_{decode}", 110, "which decoder is best end to end, what binds (A8, A9)",
            (ladder(decode),), needs=(*DALI, "imagenet-sample"), measures=True)
      for decode in DECODERS),
    Check("dali_auto", 90, "which decoder is chosen, and by what (A8)",
          (train("auto", "resnet50_90ep", *SAMPLE, "--train.global-batch", "128",
                 "--run.dry-run", "true"),), needs=(*DALI, "imagenet-sample"), measures=True),
    *(Check(f"rn50_{name}", limit_s, "whether the switch makes it faster than rn50_256",
            (rn50(name, 256, 120, *flags),), lambda name=name: rate(name),  # type: ignore[misc]
            measures=True)
      for name, limit_s, flags in SWITCHES),
    Check("dali_imagenette", 240, "real photos end to end: accuracy near the CPU's",
          (train("i", "resnet50_90ep", *IMAGENETTE, "--model.name", "resnet18",
                 "--train.global-batch", "128", "--schedule.epochs", "12", "--schedule.decay",
                 "cosine", "--schedule.warmup-epochs", "2"),), lambda: rate("i"),
          (*DALI, "imagenette")),
    Check("dali_all_tests", 290, "whole runs, signals, faults, ladder, doctor, recipes",
          (tests("gpu and not slow"),), needs=DALI),
    Check("dali_slow_tests", 290, "the long ones", (tests("gpu and slow"),), needs=DALI),
)  # fmt: skip
