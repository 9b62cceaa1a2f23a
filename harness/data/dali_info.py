"""DALI from outside: which one is installed, and what its errors mean. Imports nothing of it."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from harness.errors import RunFailed

PACKAGES = {"nvidia-dali-cuda110": 11, "nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
"""Package of DALI -> the CUDA that it is built for. All of them fill the same folder."""

_NO_MEMORY = re.compile(
    r"Can't allocate|CUDA allocation failed|bad_alloc|out of memory|OUT_OF_MEMORY"
    r"|MemoryAllocation|ALLOCATOR_FAILURE|allocator functions"
)
_CUDA = re.compile(
    r"CUDA (?:runtime|driver) API error|\bcudaError[A-Z]|\bCUDA_ERROR_|nvJPEG error"
    r"|NVJPEG_STATUS_(?:EXECUTION_FAILED|ARCH_MISMATCH|INTERNAL_ERROR)"
)


@dataclass(frozen=True)
class Dali:
    """What is installed of DALI.

    Attributes:
        version: as the installed files say; null without any.
        cuda: major version of the CUDA that it is built for, where that can be known.
        packages: those of PACKAGES that are installed: more than one have overwritten each other.
    """

    version: str | None
    cuda: int | None
    packages: tuple[str, ...]


def installed() -> Dali:
    """Which DALI an import would give; a source build has files, but none of the packages."""
    packages = tuple(name for name in PACKAGES if version_of(name))
    text = _source()
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^__cuda_version__ = int\('(\d+)\.", text, re.MULTILINE)
    return Dali(
        version[1] if version else next(map(version_of, packages), None),
        int(cuda[1]) if cuda else next((PACKAGES[name] for name in packages), None),
        packages,
    )


def misfit(dali: Dali, driver: int | None = None) -> tuple[str, str] | None:
    """What is wrong with the installation, and what to do.

    Args:
        driver: major version of the CUDA that the driver knows; null where no GPU is used.
    """
    if dali.version is None:
        return (
            "DALI is not installed",
            "install nvidia-dali-cuda120 (or -cuda130), or set --data.source torchvision",
        )
    if len(dali.packages) > 1:
        return (
            f"{' and '.join(dali.packages)} are installed over each other",
            f"pip uninstall {' '.join(dali.packages)}, then install one of them",
        )
    if driver and dali.cuda and driver < dali.cuda:
        return (
            f"the driver knows CUDA {driver}, DALI needs {dali.cuda}",
            f"install nvidia-dali-cuda{driver}0, or a newer driver",
        )
    return None


def versions() -> dict[str, str | None]:
    """Of DALI and of the codecs that it decodes by, as the record of a run holds them."""
    dali = installed()
    codecs = {
        name: next(filter(None, map(version_of, packages)), None)
        for name, packages in {
            "nvimgcodec": [f"nvidia-nvimgcodec-cu{n}" for n in (dali.cuda, 13, 12) if n],
            "nvjpeg": [f"nvidia-nvjpeg-cu{dali.cuda}", "nvidia-nvjpeg", "nvidia-nvjpeg-cu12"],
        }.items()
    }
    cuda = None if dali.cuda is None else str(dali.cuda)
    return {"dali": dali.version, "dali_cuda": cuda, **codecs}


def nvjpeg_is_there(cuda: int | None) -> bool:
    """Whether a library of nvJPEG loads; without one, DALI decodes on the CPU and says nothing."""
    names = [f"libnvjpeg.so.{cuda}" if cuda else "libnvjpeg.so", "libnvjpeg.so"]
    folders = [Path("/usr/local/cuda/lib64")]
    if origin := _origin():
        packages = Path(origin).parents[1]
        folders += [packages / "nvjpeg" / "lib", packages / f"cu{cuda}" / "lib"]
    # By name alone: where the linker looks by itself.
    places = [*names, *(str(folder / name) for folder in folders for name in names)]
    return any(map(_loads, dict.fromkeys(places)))


def driver_cuda() -> int | None:
    """Major version of the CUDA that the driver knows; null without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000 or None


def fault_of(error: RuntimeError) -> Exception | None:
    """What an error of DALI is, where it is the machine's: no memory, or CUDA; else null.

    Returns:
        torch.OutOfMemoryError for a GPU's memory, RunFailed for all else.
    """
    text = str(error)
    what = sentence(text, _NO_MEMORY) or sentence(text, _CUDA)
    if what is None:
        return None
    if not _NO_MEMORY.search(text):
        return RunFailed(f"data: a CUDA error in DALI, not in an image: {what}")
    less = "set --data.prefetch-batches 1, --data.largest-px 0,0 or --data.decode cpu"
    if "on host" in what or "bad_alloc" in what:
        return RunFailed(f"data: DALI got no memory from the host: {what}; {less}")
    return torch.OutOfMemoryError(f"DALI decodes on this GPU too: {less}; {what}")


def sentence(text: str, about: re.Pattern[str]) -> str | None:
    """The first line of DALI's report that is about this, without places in its source."""
    lines = (line.strip() for line in text.splitlines())
    found = next((line for line in lines if about.search(line)), None)
    return found and re.sub(r"\[\S+:\d+\]\s*", "", found)[:200]


def version_of(package: str) -> str | None:
    """Of an installed package; null without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _origin() -> str | None:
    try:
        spec = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # nothing of NVIDIA at all
        return None
    return spec.origin if spec else None


def _source() -> str:
    origin = _origin()
    try:
        return Path(origin).read_text() if origin else ""
    except OSError:
        return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
