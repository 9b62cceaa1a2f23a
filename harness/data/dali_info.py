"""Which DALI is installed, and what its errors mean. Does not import DALI."""

import ctypes
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from harness.errors import RunFailed

PACKAGES = {"nvidia-dali-cuda110": 11, "nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
"""DALI's packages -> the CUDA version that each is built for. All install into the same folder."""

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
    """The installed DALI."""

    version: str | None  # read from the installed files; None if there are none
    cuda: int | None  # major version of the CUDA that it is built for; None if unknown
    packages: tuple[str, ...]  # those of PACKAGES; if more than one, they overwrote each other


def installed() -> Dali:
    """Return the DALI that would be imported; a build from source has files but no package."""
    packages = tuple(name for name in PACKAGES if version_of(name))
    text = ""
    if origin := _origin():
        with suppress(OSError):
            text = Path(origin).read_text()
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^__cuda_version__ = int\('(\d+)\.", text, re.MULTILINE)
    return Dali(
        version[1] if version else next(map(version_of, packages), None),
        int(cuda[1]) if cuda else next((PACKAGES[name] for name in packages), None),
        packages,
    )


def misfit(dali: Dali, driver: int | None = None) -> tuple[str, str] | None:
    """Return what is wrong with the installation and what to do; None if it is good.

    Args:
        driver: major version of the CUDA that the driver supports; None if no GPU is used.
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
    """Return the versions of DALI and its codecs, for the record of a run."""
    dali = installed()
    nvimgcodec = [f"nvidia-nvimgcodec-cu{n}" for n in (dali.cuda, 13, 12) if n]
    nvjpeg = [f"nvidia-nvjpeg-cu{dali.cuda}", "nvidia-nvjpeg", "nvidia-nvjpeg-cu12"]
    return {
        "dali": dali.version,
        "dali_cuda": None if dali.cuda is None else str(dali.cuda),
        "nvimgcodec": next(filter(None, map(version_of, nvimgcodec)), None),
        "nvjpeg": next(filter(None, map(version_of, nvjpeg)), None),
    }


def has_nvjpeg(cuda: int | None) -> bool:
    """Return whether nvJPEG's library loads; without it DALI silently decodes on the CPU."""
    names = [f"libnvjpeg.so.{cuda}" if cuda else "libnvjpeg.so", "libnvjpeg.so"]
    folders = [Path("/usr/local/cuda/lib64")]
    if origin := _origin():
        packages = Path(origin).parents[1]
        folders += [packages / "nvjpeg" / "lib", packages / f"cu{cuda}" / "lib"]
    # Names without a folder are searched in the linker's default paths.
    places = [*names, *(str(folder / name) for folder in folders for name in names)]
    for library in dict.fromkeys(places):
        with suppress(OSError):
            ctypes.CDLL(library)
            return True
    return False


def driver_cuda() -> int | None:
    """Return the major version of the CUDA that the driver supports; None without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000 or None


def machine_error(error: RuntimeError) -> Exception | None:
    """Convert an error of DALI that is not about an image: no memory, or CUDA; None for others."""
    text = str(error)
    if (line := _first_line(text, _NO_MEMORY) or _first_line(text, _CUDA)) is None:
        return None
    if not _NO_MEMORY.search(text):
        return RunFailed(f"data: a CUDA error in DALI, not in an image: {line}")
    advice = "set --data.prefetch-batches 1, --data.largest-px 0,0 or --data.decode cpu"
    if "on host" in line or "bad_alloc" in line:
        return RunFailed(f"data: DALI got no memory from the host: {line}; {advice}")
    return torch.OutOfMemoryError(f"DALI decodes on this GPU too: {advice}; {line}")


def _first_line(text: str, pattern: re.Pattern[str]) -> str | None:
    lines = (line.strip() for line in text.splitlines())
    match = next((line for line in lines if pattern.search(line)), None)
    # Without source locations.
    return match and re.sub(r"\[\S+:\d+\]\s*", "", match)[:200]


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _origin() -> str | None:
    try:
        spec = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no `nvidia` package at all
        return None
    return spec.origin if spec else None
