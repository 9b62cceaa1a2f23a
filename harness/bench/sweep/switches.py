"""List the settings, and their values, that a sweep tries when no variants are named."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness import config as cfg
from harness.config import load
from harness.config.rules import CUDA_GRAPH_MODES, rules

_CHANGES_LEARNING = frozenset(
    {"engine.precision", "engine.send_gradients", "train.max_local_batch", "train.global_batch"}
)
"""Settings that may change the result by more than rounding."""


def changes_learning(keys: Iterable[str]) -> bool:
    """Return whether any of the settings may change the accuracy, not only the last bits."""
    return not _CHANGES_LEARNING.isdisjoint(keys)


def candidates(config: cfg.Config, ranks: int, facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the values to try for each setting, but for the one in use; facts as of worker.py."""
    current = {key: load.as_text(value) for key, value in cfg.flat(config).items()}
    current |= facts["came_to"]
    tried = {
        key: [value for value in values if value != current[key] and _fits(config, key, value)]
        for key, values in _all(config, ranks, current, facts)
    }
    return {key: values for key, values in tried.items() if values}


def _fits(config: cfg.Config, key: str, value: str) -> bool:
    # Whether the value agrees with the other settings.
    section, name = key.split(".")
    sections = config.model_dump()
    sections[section][name] = value
    return not any(rules(cfg.Config.model_validate(sections)))


def _all(
    config: cfg.Config, ranks: int, current: Mapping[str, str], facts: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Yield all settings and values, those of most interest first, as time may run out."""
    on_gpu, cores = facts["on_gpu"], facts["cores"]
    compiled = current["engine.compile"] == "true"
    yield "engine.compile", ["true", "false"]
    yield "engine.channels_last", ["true", "false"]
    yield "engine.precision", ["bf16", "fp16", "tf32", "fp32"] if on_gpu else ["bf16", "fp32"]
    if compiled:
        modes = ["default", "max-autotune-no-cudagraphs"]
        yield "engine.compile_mode", [*modes, *CUDA_GRAPH_MODES] if on_gpu else modes
    if on_gpu:
        if compiled and not current["engine.compile_mode"].startswith("max-autotune"):
            yield "engine.coordinate_descent", ["true", "false"]
        yield "engine.cudnn_benchmark_limit", ["10", "0"]
        yield "engine.pad_stem", ["true", "false"]
    fused = current["engine.fused_optimizer"] != "false"  # auto is fused
    yield "engine.fused_optimizer", ["false" if fused else "true"]
    if config.data.source != "synthetic":
        if on_gpu:
            yield "data.decode", ["cpu", "split", "gpu"]
            if current["data.decode"] == "gpu":
                yield "data.hw_decoder_load", ["0.0", "0.65", "0.9", "1.0"]
        yield "data.threads", [*map(str, dict.fromkeys((cores, max(1, cores // 2), 2 * cores)))]
        yield "data.prefetch_batches", ["1", "2", "4"]
        yield "data.read_ahead_batches", ["0", "4"]
    if ranks > 1:
        yield "engine.bucket_mb", ["10.0", "25.0", "100.0"]
        yield "engine.static_graph", ["true", "false"]
        yield "engine.bucket_view", ["true", "false"]
        yield "engine.send_gradients", ["fp32", "bf16"]
        if compiled:
            yield "engine.compile_ddp", ["true", "false"]
    local = int(current["train.max_local_batch"])
    yield "train.max_local_batch", [str(local // n) for n in (2, 4) if local % n == 0]
