"""A pynvml of GPUs that are not there."""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import partial
from typing import Any

import pynvml

FakeGpu = dict[str, Any]
"""What NVML knows of a GPU: `Name` is what nvmlDeviceGetName returns, a function is called."""


class FakePynvml(types.ModuleType):
    """Knows what it is given, and raises NVMLError at what it is not: as the real one does.

    Args:
        system: what it knows of the driver, as of a GPU.
        missing: functions that this version of the package does not have.
        error: with which nvmlInit fails: its name, and what it says.
    """

    NVMLError = type("NVMLError", (Exception,), {})
    NVMLError_LibraryNotFound = type("NVMLError_LibraryNotFound", (NVMLError,), {})

    def __init__(
        self, gpus: Sequence[FakeGpu], system: dict[str, Any] | None = None,
        missing: Sequence[str] = (), error: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__("pynvml")
        self.gpus, self.system, self.missing, self.error = gpus, system or {}, missing, error

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name in self.missing:
            raise AttributeError(name)
        assert hasattr(pynvml, name), f"the real one has no {name}"
        return partial(self._call, name)

    def _call(self, name: str, *args: Any) -> Any:
        if name == "nvmlInit":
            if self.error is not None:
                raise getattr(self, self.error[0])(self.error[1])
            return None
        if name == "nvmlDeviceGetCount":
            return len(self.gpus)
        if name == "nvmlDeviceGetHandleByIndex":
            return self.gpus[args[0]]
        if name == "nvmlDeviceGetHandleByUUID":
            value = {gpu["UUID"]: gpu for gpu in self.gpus}.get(args[0])
        elif name.startswith("nvmlSystemGet"):
            value = self.system.get(name.removeprefix("nvmlSystemGet"))
        else:
            gpu, *args = args
            value = gpu.get(name.removeprefix("nvmlDeviceGet"))
        if value is None:
            raise self.NVMLError("Not Supported")
        return value(*args) if callable(value) else value
