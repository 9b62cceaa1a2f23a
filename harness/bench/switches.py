"""Switches: what a sweep tries by itself, each against the run as it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from harness import cli
from harness import config as cfg
from harness.rules import rules

_CHANGES_LEARNING = frozenset(
    {"engine.precision", "engine.send_gradients", "train.max_local_batch"}
)
"""Switches by which the result may change by more than rounding."""


def changes_learning(key: str) -> bool:
    """Whether a switch may change the accuracy, not only the last bits."""
    return key in _CHANGES_LEARNING


def candidates(config: cfg.Config, *, ranks: int, cores: int, on_gpu: bool) -> dict[str, list[str]]:
    """Values to try for each setting, as flags write them; the one that is asked for is left out.

    Args:
        cores: CPU cores of a rank.
    """
    known = dict(_all(config, ranks=ranks, cores=cores, on_gpu=on_gpu))
    asked = cfg.flat(config)
    tried = {}
    for key, values in known.items():
        now = cli.as_text(asked[key])
        others = [
            value for value in dict.fromkeys(values) if value != now and _fits(config, key, value)
        ]
        if others:
            tried[key] = others
    return tried


def _fits(config: cfg.Config, key: str, value: str) -> bool:
    """Whether the value goes together with all else that is asked for."""
    section, name = key.split(".")
    sections = config.model_dump()
    sections[section][name] = value
    return not any(broken for broken, _ in rules(cfg.Config.model_validate(sections)))


def _all(
    config: cfg.Config, *, ranks: int, cores: int, on_gpu: bool
) -> Iterator[tuple[str, list[str]]]:
    engine = config.engine
    yield "engine.precision", ["bf16", "fp16", "tf32", "fp32"] if on_gpu else ["bf16", "fp32"]
    yield "engine.channels_last", ["true", "false"]
    compiled = on_gpu if engine.compile == "auto" else engine.compile
    yield "engine.compile", ["false" if compiled else "true"]
    yield "engine.fused_optimizer", ["true" if engine.fused_optimizer is False else "false"]
    if compiled:
        modes = ["default", "max-autotune-no-cudagraphs"]
        yield "engine.compile_mode", [*modes, *["reduce-overhead", "max-autotune"] * on_gpu]
    if ranks > 1:
        yield "engine.bucket_mb", ["10.0", "25.0", "100.0"]
        yield "engine.static_graph", ["true", "false"]
        yield "engine.bucket_view", ["true", "false"]
        yield "engine.send_gradients", ["fp32", "bf16"]
        if compiled:
            yield "engine.compile_ddp", ["true", "false"]
    each = config.train.global_batch // ranks
    yield "train.max_local_batch", [str(each // n) for n in (1, 2, 4) if each % n == 0 < each // n]
    if config.data.source == "synthetic":
        return
    if on_gpu:
        yield "data.decode", ["gpu", "cpu"]
    yield "data.threads", [str(n) for n in (max(1, cores // 2), cores, 2 * cores)]
    yield "data.prefetch_batches", ["1", "2", "4"]
    yield "data.read_ahead_batches", ["0", "4"]
