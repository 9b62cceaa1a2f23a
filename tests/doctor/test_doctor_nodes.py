"""Doctor's reading of NVML, its judgement of GPUs, and the joining of several nodes."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from fake_pynvml import FakeGpu, FakePynvml
from helpers import TINY

import harness.__main__ as command
from harness.commands.doctor import read_config
from harness.distributed import World
from harness.doctor import gpus, machine, nodes, software
from harness.doctor.check import Check, Facts, PlannedRun
from harness.doctor.gpus import gpu_facts, inventory
from harness.doctor.report import Report
from harness.errors import RunFailed
from harness.monitor.gpus import Nvml

H100 = "NVIDIA H100 80GB HBM3"
IDLE, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, SW_POWER_CAP = 0x01, 0x08, 0x20, 0x40, 0x04
MIB = 2**20


def fake_h100(bus: str, **facts: object) -> FakeGpu:
    """As NVML of driver 580 knows it, at rest."""
    gpu: FakeGpu = {
        "Name": H100, "UUID": f"GPU-{bus}", "Serial": "1650000000000", "MigMode": [0, 0],
        "CurrPcieLinkWidth": 16, "MaxPcieLinkWidth": 16, "MaxPcieLinkGeneration": 5,
        "CurrentClocksEventReasons": IDLE, "ClockInfo": 345, "MaxClockInfo": 1980,
        "CurrentEccMode": 1, "TotalEccErrors": 0, "RemappedRows": (0, 0, 0, 0),
        "EnforcedPowerLimit": 700_000, "PowerManagementLimit": 700_000,
        "PowerManagementDefaultLimit": 700_000, "MemoryInfo": memory(used_mib=1),
        "NvLinkState": links(),
    }  # fmt: skip
    return gpu | facts


def memory(used_mib: int, total_mib: int = 81559) -> Callable[[int], SimpleNamespace]:
    def info(version: int) -> SimpleNamespace:
        assert version == pynvml.nvmlMemory_v2, "without what the driver keeps for itself"
        return SimpleNamespace(total=total_mib * MIB, used=used_mib * MIB)

    return info


def links(*down: int) -> Callable[[int], int | None]:
    """18 NVLinks; it has no others."""
    return lambda link: None if link >= 18 else int(link not in down)


SYSTEM = {"DriverVersion": "580.65.06", "CudaDriverVersion_v2": 13000}
T4: FakeGpu = {
    "Name": "Tesla T4", "UUID": "GPU-t4", "RetiredPagesPendingStatus": 1, "TotalEccErrors": 2,
    "CurrentClocksThrottleReasons": IDLE | HW_SLOWDOWN | HW_THERMAL, "ClockInfo": 585,
    "PowerManagementLimit": 70_000, "PowerManagementDefaultLimit": 70_000,
    "EnforcedPowerLimit": 60_000,
}  # fmt: skip
"""As an older driver knows it."""


# NVML


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """What the inventory has of such GPUs."""

    def with_these(
        *gpus: FakeGpu, limit_s: float = 60.0, system: dict[str, Any] = SYSTEM, **more: Any
    ) -> SimpleNamespace:
        monkeypatch.setitem(sys.modules, "pynvml", FakePynvml(gpus, system, **more))
        facts = inventory(limit_s)
        return SimpleNamespace(
            **facts | {"gpus": [SimpleNamespace(**gpu) for gpu in facts["gpus"]]}
        )

    return with_these


Read = Callable[..., SimpleNamespace]


def test_a_new_driver_is_read(read: Read) -> None:
    driver = read(fake_h100("1A"), fake_h100("1B"))
    assert (driver.driver, driver.driver_cuda, len(driver.gpus)) == ("580.65.06", "13.0", 2)
    gpu = driver.gpus[1]
    assert (gpu.name, gpu.uuid, gpu.mig, gpu.ecc) == (H100, "GPU-1B", False, True)
    assert gpu.memory_gib == pytest.approx(79.65, abs=0.01)
    assert (gpu.clock_mhz, gpu.max_clock_mhz) == (345, 1980)
    assert (gpu.power_cap_w, gpu.default_power_cap_w) == (700, 700)
    assert (gpu.pcie_width, gpu.max_pcie_width, gpu.max_pcie_generation) == (16, 16, 5)
    assert (gpu.uncorrected_errors, gpu.repair_pending, gpu.slowed) == (0, False, ())
    assert (gpu.nvlinks, gpu.nvlinks_active) == (18, 18)


def test_an_old_driver_is_read_and_what_it_lacks_is_null(read: Read) -> None:
    old = {"DriverVersion": "515.105.01", "CudaDriverVersion_v2": 11070}
    driver = read(T4, system=old, missing=["nvmlDeviceGetCurrentClocksEventReasons"])
    assert (driver.driver, driver.driver_cuda) == ("515.105.01", "11.7")
    (gpu,) = driver.gpus
    assert gpu.slowed == ("hw_thermal_slowdown", "hw_slowdown")
    assert (gpu.uncorrected_errors, gpu.repair_pending) == (2, True)
    assert (gpu.power_cap_w, gpu.default_power_cap_w) == (60, 70)
    assert (gpu.ecc, gpu.max_clock_mhz, gpu.pcie_width, gpu.nvlinks) == (None, None, None, None)
    assert (gpu.memory_gib, gpu.memory_used_gib, gpu.mig) == (None, None, False)
    uncapped = {name: value for name, value in T4.items() if name != "EnforcedPowerLimit"}
    assert read(uncapped).gpus[0].power_cap_w == 70
    assert read({}).gpus[0].name == "unnamed GPU"


def test_links_that_are_down_are_counted_and_those_that_lead_nowhere_are_not(read: Read) -> None:
    first, second, alone = read(
        fake_h100("1A", NvLinkState=links(3)), fake_h100("1B"),
        fake_h100("1C", NvLinkState=links(*range(18))),
    ).gpus  # fmt: skip
    assert (first.nvlinks_active, second.nvlinks_active, first.nvlinks) == (17, 18, 18)
    assert (alone.nvlinks, alone.nvlinks_active) == (None, None)


def test_a_driver_that_fails_or_is_not_there(read: Read) -> None:
    missing = read(error=("NVMLError_LibraryNotFound", "NVML Shared Library Not Found"))
    assert (missing.driver, missing.driver_error, missing.gpus) == (None, None, [])
    failing = read(error=("NVMLError", "Driver Not Loaded"))
    assert (failing.driver_error, failing.gpus) == ("Driver Not Loaded", [])
    hanging = read(fake_h100("1A", Name=lambda: time.sleep(600)), limit_s=1.0)
    assert (hanging.driver_error, hanging.gpus) == ("no answer within 1 s", [])


def test_here_the_real_nvml_is_read_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    facts = inventory(60.0)
    assert facts["driver_error"] is None
    if torch.cuda.is_available():
        assert len(facts["gpus"]) >= torch.cuda.device_count()
    else:
        assert facts["driver"] or not facts["gpus"]


# judging GPUs


def dali_of(*cudas: int) -> Facts:
    packages = [f"nvidia-dali-cuda{cuda}0" for cuda in cudas]
    return {"version": "2.4.0" if cudas else None, "cuda": max(cudas, default=None),
            "packages": packages}  # fmt: skip


HEALTHY = (fake_h100("1A"), fake_h100("1B"))


def facts_of(gpus: Sequence[FakeGpu] = HEALTHY, **more: Any) -> Facts:
    """Facts of local rank 0 on a node with these GPUs."""
    listed = [gpu_facts(Nvml(handle=gpu)) for gpu in gpus]
    facts: Facts = {
        "gpus": listed, "torch_gpus": len(listed), "gpus_expected": len(listed),
        "driver_error": None, "cuda_error": None, "driver": "580.65.06", "driver_cuda": "13.0",
        "dali": dali_of(12), "compiler": None, "own_gpu": {},
        "nccl_available": True, "host": "node1", "rank": 0,
        "versions": software.versions() | {
            "cuda": "13.0", "harness": "1", "git_commit": None, "git_dirty": None
        },
    }  # fmt: skip
    return facts | more


@pytest.fixture(autouse=True)
def fake_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakePynvml([]))


@pytest.fixture(scope="module")
def run() -> PlannedRun:
    return machine.plan_run(read_config([*TINY]), None, {})


def bad(facts: Facts, run: PlannedRun) -> dict[str, Check]:
    """Checks of GPUs and software that are yellow or red."""
    checks = [*gpus.judge([facts], run), *software.judge([facts], run)]
    return {check.name: check for check in checks if check.status in ("yellow", "red")}


def test_healthy_gpus_are_green(run: PlannedRun) -> None:
    assert bad(facts_of(), run) == {}
    by_name = {check.name: check.value for check in gpus.judge([facts_of()], run)}
    assert by_name["GPUs"] == f"2 x {H100}, 80 GiB each"
    assert by_name["GPU clocks, power"] == (
        "345 MHz now, at most 1,980 MHz, power cap 700 W of 700 W"
    )
    assert by_name["GPU memory errors"] == "none; ECC is on"
    assert by_name["NVLink"] == "18 links up of 18 per GPU"
    assert by_name["PCIe"] == "x16 of x16, generation 5"


@pytest.mark.parametrize(
    ("sick", "name", "status"),
    [
        ({"Name": "NVIDIA A100-SXM4-80GB"}, "GPUs", "yellow"),
        ({"MemoryInfo": memory(used_mib=65720)}, "GPUs", "yellow"),
        ({"MigMode": [1, 1]}, "GPUs", "yellow"),
        ({"EnforcedPowerLimit": 500_000}, "GPU clocks, power", "yellow"),
        ({"CurrentClocksEventReasons": SW_THERMAL}, "GPU throttling", "yellow"),
        ({"CurrentClocksEventReasons": HW_THERMAL | IDLE}, "GPU throttling", "red"),
        ({"TotalEccErrors": 1}, "GPU memory errors", "red"),
        ({"RemappedRows": (0, 0, 1, 0)}, "GPU memory errors", "yellow"),
        ({"RemappedRows": (0, 0, 0, 1)}, "GPU memory errors", "yellow"),
        ({"CurrPcieLinkWidth": 8}, "PCIe", "yellow"),
        ({"NvLinkState": links(3)}, "NVLink", "yellow"),
    ],
)
def test_a_sick_gpu_is_named(run: PlannedRun, sick: FakeGpu, name: str, status: str) -> None:
    found = bad(facts_of([fake_h100("1A"), fake_h100("1B", **sick)]), run)
    assert {each: check.status for each, check in found.items()} == {name: status}
    if not {"Name", "MigMode"} & sick.keys():
        assert "GPU 1" in found[name].value


def test_other_ranks_that_compute_already_are_no_fault(run: PlannedRun) -> None:
    """While local rank 0 waits for the driver, they hold memory and are at their power caps."""
    at_work = {"MemoryInfo": memory(used_mib=1124), "CurrentClocksEventReasons": SW_POWER_CAP}
    busy = [fake_h100(bus, **at_work) for bus in ("1A", "1B")]
    alone = bad(facts_of(busy), run)
    assert {each: check.status for each, check in alone.items()} == {"GPUs": "yellow"}
    own = [{"uuid": f"GPU-{bus}", "memory_used_gib": 0.01, "slowed": ()} for bus in ("1A", "1B")]
    ranks = [facts_of(busy, own_gpu=own[0]), {"own_gpu": own[1]}]
    assert all(check.status == "green" for check in gpus.judge(ranks, run))
    own[1] |= {"memory_used_gib": 40.0, "slowed": ("sw_thermal_slowdown", "sw_power_cap")}
    by_name = {check.name: check for check in gpus.judge(ranks, run)}
    assert "GPU 1: 40.0 GiB in use" in by_name["GPUs"].value
    assert by_name["GPU throttling"].value == "GPU 1: too hot (driver)"


def test_each_rank_looks_at_its_gpu_itself(
    monkeypatch: pytest.MonkeyPatch, run: PlannedRun
) -> None:
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: f"GPU-{device.index}")
    slowed, used = (), 0.5
    nvml = SimpleNamespace(slowed=lambda: slowed, memory_used_gib=lambda: used)
    monkeypatch.setattr(gpus, "Nvml", lambda device: nvml)
    world = replace(run.world, local_rank=1, device=torch.device("cuda", 1))
    facts = gpus.collect(replace(run, world=world))
    assert facts["own_gpu"] == {"uuid": "GPU-1", "memory_used_gib": 0.5, "slowed": ()}
    slowed = used = None  # an old driver: what local rank 0 has read stands
    assert gpus.collect(replace(run, world=world))["own_gpu"] == {"uuid": "GPU-1"}
    on_cpu = replace(run.world, local_rank=1, device=torch.device("cpu"))
    assert gpus.collect(replace(run, world=on_cpu))["own_gpu"] == {}


def test_a_link_that_is_down_is_named(run: PlannedRun) -> None:
    found = bad(facts_of([fake_h100("1A", NvLinkState=links(3)), fake_h100("1B")]), run)
    assert "17 to 18 links up of 18 per GPU; fewer: GPU 0" in found["NVLink"].value


@pytest.mark.parametrize(
    ("more", "name", "said"),
    [
        ({"gpus_expected": 8}, "GPUs", "2 of 8 expected"),
        ({"driver_error": "no answer"}, "GPUs", "the NVIDIA driver fails: no answer"),
        ({"cuda_error": "unknown error", "torch_gpus": 0}, "versions",
         "the driver lists 2 GPUs, torch sees none: unknown error"),
        ({"driver_cuda": "12.4", "cuda_error": "too old", "torch_gpus": 0}, "versions",
         "the driver supports CUDA 12.4, torch needs 13.0"),
        ({"dali": dali_of(14)}, "versions", "the driver knows CUDA 13, DALI needs 14"),
        ({"dali": dali_of()}, "versions", "DALI is not installed"),
        ({"dali": dali_of(12, 13)}, "versions",
         "nvidia-dali-cuda120 and nvidia-dali-cuda130 are installed over each other"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_red_once(
    run: PlannedRun, more: dict[str, Any], name: str, said: str
) -> None:
    found = bad(facts_of(**more), run)
    assert {each: check.status for each, check in found.items()} == {name: "red"}
    assert said in found[name].value
    assert found[name].do


# several nodes


def test_nodes_that_do_not_reach_each_other_are_told_how_to_name_the_network(
    run: PlannedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with ... connect error")

    monkeypatch.setattr(machine, "process_group", fail)
    monkeypatch.setattr(machine, "COLLECTORS", {"software": lambda _: facts_of()})
    monkeypatch.setattr(machine, "_obstacle", lambda *_: None)
    for size, said in ((8, False), (16, True)):
        many = replace(run, world=World(0, 0, size, 8, torch.device("cpu")))
        with pytest.raises(RunFailed, match="connectFullMesh") as raised:
            machine.examine(many)
        assert ("GLOO_SOCKET_IFNAME" in str(raised.value)) is said


@pytest.fixture(scope="module")
def report(icons: Path) -> Report:
    words = [*TINY, "--data.train", str(icons), "--engine.device", "cpu"]
    found, _ = machine.examine(machine.plan_run(read_config(words), None, {}))
    assert found is not None
    return found


def write(tmp_path: Path, report: Report, **facts: dict[str, Any]) -> list[str]:
    """Reports of four nodes, some with other facts; their files."""
    files = []
    for host in ("node1", "node2", "node3", "node4"):
        one = copy.deepcopy(report).model_copy(
            update={"host": host, "facts": report.facts | facts.get(host, {})}
        )
        file = tmp_path / f"{host}.json"
        file.write_text(f"a warning of some library\n{one.model_dump_json()}\n")
        files.append(str(file))
    return files


def joined(capsys: pytest.CaptureFixture[str], *files: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        command.main(["doctor", "nodes", *files])
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().out


def test_equal_nodes_are_green(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = joined(capsys, *write(tmp_path, report))
    assert code == 0
    assert said.splitlines()[-1] == "green: 4 nodes, all alike"


def test_a_slow_node_is_named(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"matmul_tflops": 0.5 * report.facts["matmul_tflops"]}
    files = write(tmp_path, report, node3=slow)
    code, said = joined(capsys, *files)
    assert code == 0
    assert "yellow: node3: matmul_tflops " in said
    assert "50 % below the median of the others" in said
    assert said.splitlines()[-1] == "yellow: of 4 nodes, unlike the others: node3"
    assert sum(line.startswith("yellow: node") for line in said.splitlines()) == 1
    code, said = joined(capsys, *files[1:3])  # of two, the slower one
    assert said.splitlines()[-1] == "yellow: of 2 nodes, unlike the others: node3"
    nearly = {"matmul_tflops": 0.75 * report.facts["matmul_tflops"]}
    code, said = joined(capsys, *write(tmp_path, report, node3=nearly))
    assert said.splitlines()[-1] == "green: 4 nodes, all alike"


def test_another_version_is_red(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = joined(capsys, *write(tmp_path, report, node2={"torch": "2.13.0"}))
    assert code == 1
    assert f"red: node2: torch is 2.13.0, on others {torch.__version__}" in said
    assert said.splitlines()[-1].endswith("leave them out: sbatch --exclude node2")


def test_a_node_without_a_report_is_red_and_the_others_are_shown(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, report)
    Path(files[3]).write_text("")
    Path(files[0]).write_text('error: node1, rank 0: no end within 90 s, at: disks\n{"host": 3}\n')
    code, said = joined(capsys, *files)
    assert code == 1
    assert f"red: node4: report: {files[3]} holds no report: the file is empty" in said
    assert said.splitlines()[-1].endswith("sbatch --exclude node1,node4")


def test_what_a_node_itself_calls_red_is_told(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, report)
    check = Check(name="GPUs", status="red", value="7 of 8 expected", do="take another node")
    sick = report.model_copy(update={"host": "node1", "checks": [check], "verdict": "red"})
    Path(files[0]).write_text(sick.model_dump_json())
    code, said = joined(capsys, *files)
    assert code == 1
    assert "red: node1: GPUs: 7 of 8 expected; -> take another node" in said


def test_no_majority_names_all(report: Report) -> None:
    two = [
        nodes.Node(host=host, facts=report.facts | {"torch": version}, checks=[])
        for host, version in (("node1", "a"), ("node2", "b"))
    ]
    assert [(found.host, found.status) for found in nodes.outliers(two)] == [
        ("node1", "red"), ("node2", "red"),
    ]  # fmt: skip
