"""Load weights from torchvision or a file into a network, completely or not at all."""

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from harness.errors import BadInput

State = dict[str, Tensor]
HOLDERS = ("state_dict", "model")
"""The keys under which a checkpoint may hold the state dict."""
WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
"""Prefixes that torch.compile and DDP add to every key; they may be nested in either order."""
CLASSIFIERS = ("fc", "linear", "classifier", "head")
"""Names of the last layer in published files."""
OLD_DENSE_LAYER = re.compile(r"(.*\.denselayer\d+\.(?:norm|conv))\.([12]\..*)")
"""torchvision's DenseNets were saved when names could hold dots: `norm.1` is `norm1` now."""


def load_weights(model: nn.Module, spec: str, model_name: str) -> None:
    """Load `torchvision:ENTRY` or a file into `model`, completely or not at all.

    Raises:
        BadInput: the weights are unknown, cannot be downloaded or read, or do not fit `model`.
    """
    source, _, entry = spec.partition(":")
    if source == "torchvision":
        state = _from_torchvision(entry, model_name)
    else:
        state = _state_dict(_read(Path(spec)), spec)
    state = _our_keys(state, _classifier(model.state_dict()))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # files from before torch 0.4.1 lack its counter
            state.setdefault(f"{name}.num_batches_tracked", torch.tensor(0))
    _check_fit(state, model, spec, model_name)
    model.load_state_dict(state, strict=True)


def _from_torchvision(entry: str, model_name: str) -> State:
    from torchvision import models  # takes a second, and few runs need it

    if model_name not in models.list_models(module=models):
        raise BadInput(f"model.weights: torchvision has no weights for {model_name}; name a file")
    entries = models.get_model_weights(model_name).__members__
    if entry not in entries:
        raise BadInput(
            f"model.weights: torchvision has no {entry!r} for {model_name}; "
            f"it has {', '.join(entries)}"
        )
    url = entries[entry].url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not cached.exists():
        _download(url, cached)
    return _state_dict(_read(cached), str(cached))


def _download(url: str, path: Path) -> None:
    """Download a file whose name ends with its hash, and check that; `path` is never partial."""
    digest = path.stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:
        raise BadInput(
            f"model.weights: no download of {url} ({_first_line(error)}); "
            f"fetch it where there is a network and put it at {path}"
        ) from error


def _read(path: Path) -> Any:
    """Return the content of a checkpoint file, without running any code in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"model.weights: {path}: {error.strerror or error}") from error
    # On other files the unpickler may raise any exception, such as KeyError.
    except Exception as error:
        objects: list[str] = []
        if isinstance(error, UnpicklingError):
            with suppress(ValueError, RuntimeError, UnpicklingError):
                objects = get_unsafe_globals_in_checkpoint(str(path))
        if objects:
            why = (
                f"holds Python objects ({', '.join(sorted(objects)[:3])}), which are refused "
                "as reading them runs code; save its state dict alone"
            )
        else:
            why = f"not a checkpoint of plain tensors ({_first_line(error)})"
        raise BadInput(f"model.weights: {path}: {why}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].split('. ')[0]}".rstrip(": ")


def _state_dict(content: Any, name: str) -> State:
    if not isinstance(content, dict):
        raise BadInput(f"model.weights: {name}: no state dict but a {type(content).__name__}")
    state = next((content[key] for key in HOLDERS if isinstance(content.get(key), dict)), content)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise BadInput(
                f"model.weights: {name}: no state dict, neither itself nor under "
                f"{' or '.join(map(repr, HOLDERS))}: {key!r} is of type {type(value).__name__}"
            )
    return dict(state)


def _classifier(keys: Iterable[str]) -> str:
    layers = {key.split(".")[0] for key in keys}
    return next((name for name in CLASSIFIERS if name in layers), CLASSIFIERS[0])


def _our_keys(state: State, classifier: str) -> State:
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = {OLD_DENSE_LAYER.sub(r"\1\2", key): value for key, value in state.items()}
    theirs = _classifier(state)
    names = {f"{theirs}.{part}": f"{classifier}.{part}" for part in ("weight", "bias")}
    return {names.get(key, key): value for key, value in state.items()}


def _check_fit(state: State, model: nn.Module, name: str, model_name: str) -> None:
    ours: State = model.state_dict()
    missing = [key for key in ours if key not in state]
    unexpected = [key for key in state if key not in ours]
    reshaped = [key for key in ours if key in state and ours[key].shape != state[key].shape]
    if missing:
        what, cause = f"it has no {missing[0]}", "another model or shortcut"
    elif unexpected:
        what, cause = f"its {unexpected[0]} has no place", "another model or shortcut"
    elif reshaped:
        key = reshaped[0]
        what = f"its {key} is {_shape(state[key])}, here {_shape(ours[key])}"
        only_classifier = all(key.split(".")[0] == _classifier(ours) for key in reshaped)
        cause = "another number of classes" if only_classifier else "another model or stem"
    else:
        return
    raise BadInput(f"model.weights: {name} does not fit {model_name}: {what}; probably {cause}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
