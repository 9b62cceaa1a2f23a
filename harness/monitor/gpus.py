"""What nvidia-smi says of the GPUs: the fields that decide how fast and how well they compute.

Its XML is read, not its tables: names of fields are documented in the DTD that each version
carries (v11 to v13 are known here), and what a version or a GPU lacks is null.
"""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from harness.monitor.nvml import SLOWED
from harness.system.deadline import NoAnswer, within


class SmiFails(Exception):
    """nvidia-smi is there and does not work; its message."""


@dataclass(frozen=True)
class Gpu:
    """One GPU; null is what nvidia-smi does not tell.

    Attributes:
        slowed: reasons for which clocks are held down right now, besides idleness and settings.
        uncorrected_errors: of memory, since the driver was loaded.
        repair_pending: rows or pages wait for a reset to be replaced.
    """

    name: str
    uuid: str
    mig: bool
    memory_gib: float | None
    memory_used_gib: float | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    power_cap_w: float | None
    default_power_cap_w: float | None
    slowed: tuple[str, ...]
    ecc: bool | None
    uncorrected_errors: int | None
    repair_pending: bool
    pcie_width: float | None
    max_pcie_width: float | None
    max_pcie_generation: float | None
    nvlinks: int | None
    nvlinks_active: int | None


@dataclass(frozen=True)
class Smi:
    """The driver, the newest CUDA that it supports, and its GPUs."""

    driver: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]


_REASONS = (
    "clocks_event_reasons/clocks_event_reason_",
    "clocks_throttle_reasons/clocks_throttle_reason_",
)
_POWER = ("gpu_power_readings", "power_readings")
_CAPS = ("current_power_limit", "enforced_power_limit", "power_limit")
_UNCORRECTED = (
    "sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded",
    "dram_uncorrectable",
)  # fmt: skip


def ask(limit_s: float) -> Smi | None:
    """What nvidia-smi says; null where there is none.

    Raises:
        SmiFails: it says that it fails, or says nothing.
    """
    try:
        xml = within(limit_s, lambda: _run("-q", "-x"))
        links = within(limit_s, lambda: _run("nvlink", "--status", fails=""))
    except FileNotFoundError:
        return None
    except NoAnswer as error:
        raise SmiFails(str(error)) from None
    return parse(xml, links)


def parse(xml: str, links: str = "") -> Smi:
    """The facts in the output of `nvidia-smi -q -x` and of `nvidia-smi nvlink --status`.

    Raises:
        SmiFails: the first is no such output.
    """
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        raise SmiFails(" ".join(xml.split())[:200] or "it prints nothing") from None
    active = _links(links)
    gpus = tuple(_gpu(element, active) for element in root.iterfind("gpu"))
    return Smi(_text(root, "driver_version"), _text(root, "cuda_version"), gpus)


def _run(*words: str, fails: str | None = None) -> str:
    done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if fails is not None:
        return fails
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    raise SmiFails(said[:200] or f"exit code {done.returncode}")


def _gpu(gpu: ET.Element, links: dict[str, list[bool]]) -> Gpu:
    uuid = _text(gpu, "uuid") or ""
    power = next((part for part in _POWER if gpu.find(part) is not None), _POWER[0])
    caps = (_number(gpu, f"{power}/{name}") for name in _CAPS)
    memory, used = (_number(gpu, f"fb_memory_usage/{name}") for name in ("total", "used"))
    errors = [_number(gpu, f"ecc_errors/volatile/{name}") for name in _UNCORRECTED]
    told = [int(number) for number in errors if number is not None]
    ecc = _text(gpu, "ecc_mode/current_ecc")
    pending = (
        "remapped_rows/remapped_row_pending", "remapped_rows/remapped_row_failure",
        "retired_pages/pending_retirement", "retired_pages/pending_blacklist",
    )  # fmt: skip
    link = "pci/pci_gpu_link_info"
    return Gpu(
        name=_text(gpu, "product_name") or "GPU of no name",
        uuid=uuid,
        mig=_text(gpu, "mig_mode/current_mig") == "Enabled",
        memory_gib=memory / 1024 if memory is not None else None,
        memory_used_gib=used / 1024 if used is not None else None,
        clock_mhz=_number(gpu, "clocks/sm_clock"),
        max_clock_mhz=_number(gpu, "max_clocks/sm_clock"),
        power_cap_w=next((cap for cap in caps if cap is not None), None),
        default_power_cap_w=_number(gpu, f"{power}/default_power_limit"),
        slowed=tuple(
            reason
            for reason in SLOWED
            if any(_text(gpu, place + reason) == "Active" for place in _REASONS)
        ),
        ecc=None if ecc is None else ecc == "Enabled",
        uncorrected_errors=sum(told) if told else None,
        repair_pending=any(_text(gpu, place) == "Yes" for place in pending),
        pcie_width=_number(gpu, f"{link}/link_widths/current_link_width"),
        max_pcie_width=_number(gpu, f"{link}/link_widths/max_link_width"),
        max_pcie_generation=_number(gpu, f"{link}/pcie_gen/max_link_gen"),
        nvlinks=len(links[uuid]) if uuid in links else None,
        nvlinks_active=sum(links[uuid]) if uuid in links else None,
    )


def _links(text: str) -> dict[str, list[bool]]:
    """UUID of a GPU -> whether each of its NVLinks is up: one that is not has no rate."""
    found: dict[str, list[bool]] = {}
    links: list[bool] = []
    for line in text.splitlines():
        if gpu := re.match(r"GPU \d+: .*\(UUID: (\S+)\)", line):
            links = found.setdefault(gpu[1], [])
        elif link := re.match(r"\s+Link \d+: (.*)", line):
            rate = re.match(r"[\d.]+", link[1])
            links.append(rate is not None and float(rate[0]) > 0)
    return {uuid: links for uuid, links in found.items() if links}


def _text(element: ET.Element, path: str) -> str | None:
    """Text of a field; null where it is missing, or not known on this GPU."""
    text = (element.findtext(path) or "").strip()
    return None if text in ("", "N/A", "[N/A]", "None") else text


def _number(element: ET.Element, path: str) -> float | None:
    """Number of a field such as `81920 MiB`, `500.00 W` or `16x`."""
    found = re.match(r"-?\d+(\.\d+)?", _text(element, path) or "")
    return float(found[0]) if found else None
