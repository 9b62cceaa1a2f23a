"""Doctor's reading of nvidia-smi, its judgement of GPUs, and the joining of several nodes.

The output of nvidia-smi is written here after its DTDs (v11, v12, v13) and public recordings.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import TINY

import harness.__main__ as command
from harness.distributed import World
from harness.doctor import gpus, machine, nodes, software
from harness.doctor.check import Asked, Check, Facts
from harness.doctor.report import Report
from harness.doctor.words import read_config
from harness.errors import RunFailed
from harness.monitor import gpus as smi

GPU = """
  <gpu id="00000000:{bus}:00.0">
    <product_name>{name}</product_name>
    <mig_mode><current_mig>Disabled</current_mig></mig_mode>
    <mig_devices>None</mig_devices>
    <serial>1650000000000</serial>
    <uuid>GPU-{bus}</uuid>
    <pci><pci_gpu_link_info>
      <pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
      <link_widths>
        <max_link_width>16x</max_link_width><current_link_width>16x</current_link_width>
      </link_widths>
    </pci_gpu_link_info></pci>
    <clocks_event_reasons>
      <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
      <clocks_event_reason_sw_power_cap>Not Active</clocks_event_reason_sw_power_cap>
      <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
      <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
      <clocks_event_reason_sw_thermal_slowdown>Not Active</clocks_event_reason_sw_thermal_slowdown>
    </clocks_event_reasons>
    <fb_memory_usage>
      <total>81559 MiB</total><reserved>551 MiB</reserved><used>1 MiB</used><free>81007 MiB</free>
    </fb_memory_usage>
    <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <ecc_errors>
      <volatile>
        <sram_correctable>0</sram_correctable>
        <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
        <sram_uncorrectable_secded>0</sram_uncorrectable_secded>
        <dram_correctable>3</dram_correctable>
        <dram_uncorrectable>0</dram_uncorrectable>
      </volatile>
    </ecc_errors>
    <retired_pages><pending_retirement>N/A</pending_retirement></retired_pages>
    <remapped_rows><remapped_row_pending>No</remapped_row_pending></remapped_rows>
    <gpu_power_readings>
      <current_power_limit>700.00 W</current_power_limit>
      <default_power_limit>700.00 W</default_power_limit>
    </gpu_power_readings>
    <module_power_readings><current_power_limit>N/A</current_power_limit></module_power_readings>
    <clocks><graphics_clock>345 MHz</graphics_clock><sm_clock>345 MHz</sm_clock></clocks>
    <applications_clocks>
      <graphics_clock>Requested functionality has been deprecated</graphics_clock>
    </applications_clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
  </gpu>"""

LOG = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>580.65.06</driver_version>
  <cuda_version>13.0</cuda_version>
  <attached_gpus>2</attached_gpus>{}
</nvidia_smi_log>
"""

H100 = "NVIDIA H100 80GB HBM3"
XML = LOG.format(GPU.format(bus="1A", name=H100) + GPU.format(bus="1B", name=H100))
LINKS = "".join(
    f"GPU {number}: {H100} (UUID: GPU-{bus})\n"
    + "".join(f"\t Link {link}: 26.562 GB/s\n" for link in range(18))
    for number, bus in enumerate(("1A", "1B"))
)

OLD = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v11.dtd">
<nvidia_smi_log>
  <driver_version>515.105.01</driver_version>
  <cuda_version>11.7</cuda_version>
  <gpu id="00000000:00:1E.0">
    <product_name>Tesla T4</product_name>
    <uuid>GPU-t4</uuid>
    <clocks_throttle_reasons>
      <clocks_throttle_reason_hw_slowdown>Active</clocks_throttle_reason_hw_slowdown>
      <clocks_throttle_reason_hw_thermal_slowdown>Active</clocks_throttle_reason_hw_thermal_slowdown>
      <clocks_throttle_reason_sw_power_cap>Not Active</clocks_throttle_reason_sw_power_cap>
    </clocks_throttle_reasons>
    <fb_memory_usage><total>15360 MiB</total><used>1032 MiB</used></fb_memory_usage>
    <ecc_errors><volatile>
      <sram_uncorrectable>0</sram_uncorrectable><dram_uncorrectable>2</dram_uncorrectable>
    </volatile></ecc_errors>
    <retired_pages><pending_retirement>Yes</pending_retirement></retired_pages>
    <remapped_rows>N/A</remapped_rows>
    <power_readings>
      <power_limit>70.00 W</power_limit><default_power_limit>70.00 W</default_power_limit>
      <enforced_power_limit>60.00 W</enforced_power_limit>
    </power_readings>
    <clocks><sm_clock>585 MHz</sm_clock></clocks>
  </gpu>
</nvidia_smi_log>
"""


# nvidia-smi


def test_a_new_driver_is_read() -> None:
    found = smi.parse(XML, LINKS)
    assert (found.driver, found.cuda, len(found.gpus)) == ("580.65.06", "13.0", 2)
    gpu = found.gpus[1]
    assert (gpu.name, gpu.uuid, gpu.mig, gpu.ecc) == (H100, "GPU-1B", False, True)
    assert gpu.memory_gib == pytest.approx(79.65, abs=0.01)
    assert (gpu.clock_mhz, gpu.max_clock_mhz) == (345, 1980)
    assert (gpu.power_cap_w, gpu.default_power_cap_w) == (700, 700)
    assert (gpu.pcie_width, gpu.max_pcie_width, gpu.max_pcie_generation) == (16, 16, 5)
    assert (gpu.uncorrected_errors, gpu.repair_pending, gpu.slowed) == (0, False, ())
    assert (gpu.nvlinks, gpu.nvlinks_active) == (18, 18)


def test_an_old_driver_is_read_and_what_it_lacks_is_null() -> None:
    (gpu,) = smi.parse(OLD).gpus
    assert gpu.slowed == ("hw_thermal_slowdown", "hw_slowdown")
    assert (gpu.uncorrected_errors, gpu.repair_pending) == (2, True)
    assert (gpu.power_cap_w, gpu.default_power_cap_w) == (60, 70)
    assert (gpu.ecc, gpu.max_clock_mhz, gpu.pcie_width, gpu.nvlinks) == (None, None, None, None)


def test_links_that_are_down_are_counted_and_unknown_lines_are_not() -> None:
    text = LINKS.replace("Link 3: 26.562 GB/s", "Link 3: <inactive>", 1)
    text += "\nNVML: Unable to retrieve NVLink information as all links are inActive\n"
    first, second = smi.parse(XML, text).gpus
    assert (first.nvlinks_active, second.nvlinks_active, first.nvlinks) == (17, 18, 18)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVIDIA-SMI has failed because it couldn'; exit 9", "NVIDIA-SMI has failed"),
        ("echo no xml", "no xml"),
        ("exit 0", "it prints nothing"),
        ("sleep 600", "no answer within 1 s"),
    ],
)
def test_an_nvidia_smi_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    plant(tmp_path, monkeypatch, script)
    with pytest.raises(smi.SmiFails, match=said):
        smi.ask(1.0)


def test_nvidia_smi_is_asked_or_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xml").write_text(XML)
    (tmp_path / "links").write_text(LINKS)
    at = f'case "$1" in -q) cat {tmp_path}/xml;; *) cat {tmp_path}/links;; esac'
    plant(tmp_path, monkeypatch, at)
    assert smi.ask(10.0) == smi.parse(XML, LINKS)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert smi.ask(10.0) is None


def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


# judging GPUs


def dali_of(*cudas: int) -> Facts:
    packages = [f"nvidia-dali-cuda{cuda}0" for cuda in cudas]
    return {"version": "2.4.0" if cudas else None, "cuda": max(cudas, default=None),
            "packages": packages}  # fmt: skip


def facts_of(xml: str = XML, links: str = LINKS, **more: Any) -> Facts:
    """Facts of local rank 0 on a node whose GPUs are those of the XML."""
    found = smi.parse(xml, links)
    listed = [vars(gpu) for gpu in found.gpus]
    facts: Facts = {
        "gpus": listed, "gpus_of_torch": len(listed), "gpus_expected": len(listed), "smi": None,
        "cuda_error": None, "driver": found.driver, "driver_cuda": found.cuda,
        "dali": dali_of(12), "compiler": None, "own_gpu": {},
        "nccl_there": True, "host": "node1", "rank": 0,
        "versions": software.versions() | {
            "cuda": "13.0", "harness": "1", "git_commit": None, "git_dirty": None
        },
    }  # fmt: skip
    return facts | more


@pytest.fixture(scope="module")
def asked() -> Asked:
    return machine.ask(read_config([*TINY]), None, {})


def bad(facts: Facts, asked: Asked) -> dict[str, Check]:
    """Checks of GPUs and software that are yellow or red."""
    checks = [*gpus.judge([facts], asked), *software.judge([facts], asked)]
    return {check.name: check for check in checks if check.status in ("yellow", "red")}


def test_healthy_gpus_are_green(asked: Asked) -> None:
    assert bad(facts_of(), asked) == {}
    by_name = {check.name: check.value for check in gpus.judge([facts_of()], asked)}
    assert by_name["GPUs"] == f"2 x {H100}, 80 GiB each"
    assert by_name["GPU clocks, power"] == (
        "345 MHz now, at most 1,980 MHz, power cap 700 W of 700 W"
    )
    assert by_name["GPU memory errors"] == "none; ECC is on"
    assert by_name["NVLink"] == "18 links up of 18 per GPU"
    assert by_name["PCIe"] == "x16 of x16, generation 5"


@pytest.mark.parametrize(
    ("healthy", "sick", "name", "status"),
    [
        (H100, "NVIDIA A100-SXM4-80GB", "GPUs", "yellow"),
        ("<used>1 MiB", "<used>65720 MiB", "GPUs", "yellow"),
        ("<current_mig>Disabled", "<current_mig>Enabled", "GPUs", "yellow"),
        ("<current_power_limit>7", "<current_power_limit>5", "GPU clocks, power", "yellow"),
        ("sw_thermal_slowdown>Not A", "sw_thermal_slowdown>A", "GPU throttling", "yellow"),
        ("hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active", "GPU throttling", "red"),
        ("<dram_uncorrectable>0", "<dram_uncorrectable>1", "GPU memory errors", "red"),
        ("row_pending>No", "row_pending>Yes", "GPU memory errors", "yellow"),
        ("<current_link_width>16x", "<current_link_width>8x", "PCIe", "yellow"),
    ],
)  # fmt: skip
def test_a_sick_gpu_is_named(asked: Asked, healthy: str, sick: str, name: str, status: str) -> None:
    before, _, after = XML.rpartition(healthy)  # of the second GPU
    found = bad(facts_of(before + sick + after), asked)
    assert {each: check.status for each, check in found.items()} == {name: status}
    if (healthy, sick) != (H100, "NVIDIA A100-SXM4-80GB") and "MIG" not in found[name].value:
        assert "GPU 1" in found[name].value


def test_other_ranks_that_compute_already_are_no_fault(asked: Asked) -> None:
    """While local rank 0 waits for nvidia-smi, they hold memory and are at their power caps."""
    busy = XML.replace("<used>1 MiB", "<used>1124 MiB").replace(
        "sw_power_cap>Not Active", "sw_power_cap>Active"
    )
    alone = bad(facts_of(busy), asked)
    assert {each: check.status for each, check in alone.items()} == {"GPUs": "yellow"}
    own = [{"uuid": f"GPU-{bus}", "memory_used_gib": 0.01, "slowed": ()} for bus in ("1A", "1B")]
    ranks = [facts_of(busy, own_gpu=own[0]), {"own_gpu": own[1]}]
    assert all(check.status == "green" for check in gpus.judge(ranks, asked))
    own[1] |= {"memory_used_gib": 40.0, "slowed": ("sw_thermal_slowdown", "sw_power_cap")}
    by_name = {check.name: check for check in gpus.judge(ranks, asked)}
    assert "GPU 1: 40.0 GiB in use" in by_name["GPUs"].value
    assert by_name["GPU throttling"].value == "GPU 1: too hot (driver)"


def test_each_rank_looks_at_its_gpu_itself(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: f"GPU-{device.index}")
    slowed, used = (), 0.5
    told = SimpleNamespace(slowed=lambda: slowed, memory_used_gib=lambda: used)
    monkeypatch.setattr(gpus, "Nvml", lambda device: told)
    world = replace(asked.world, local_rank=1, device=torch.device("cuda", 1))
    facts = gpus.look(replace(asked, world=world))
    assert facts["own_gpu"] == {"uuid": "GPU-1", "memory_used_gib": 0.5, "slowed": ()}
    slowed = used = None  # an old driver: nvidia-smi's word stands
    assert gpus.look(replace(asked, world=world))["own_gpu"] == {"uuid": "GPU-1"}
    on_cpu = replace(asked.world, local_rank=1, device=torch.device("cpu"))
    assert gpus.look(replace(asked, world=on_cpu))["own_gpu"] == {}


def test_a_link_that_is_down_is_named(asked: Asked) -> None:
    links = LINKS.replace("Link 3: 26.562 GB/s", "Link 3: <inactive>", 1)
    found = bad(facts_of(links=links), asked)
    assert {each: check.status for each, check in found.items()} == {"NVLink": "yellow"}
    assert "17 to 18 links up of 18 per GPU; fewer: GPU 0" in found["NVLink"].value


@pytest.mark.parametrize(
    ("more", "name", "said"),
    [
        ({"gpus_expected": 8}, "GPUs", "2 of 8 expected"),
        ({"smi": "no answer within 15 s"}, "GPUs", "nvidia-smi fails: no answer within 15 s"),
        ({"cuda_error": "unknown error", "gpus_of_torch": 0}, "versions",
         "nvidia-smi lists 2 GPUs, torch sees none: unknown error"),
        ({"driver_cuda": "12.4", "cuda_error": "too old", "gpus_of_torch": 0}, "versions",
         "the driver knows CUDA 12.4, torch needs 13.0"),
        ({"dali": dali_of(14)}, "versions", "the driver knows CUDA 13, DALI needs 14"),
        ({"dali": dali_of()}, "versions", "DALI is not installed"),
        ({"dali": dali_of(12, 13)}, "versions",
         "nvidia-dali-cuda120 and nvidia-dali-cuda130 are installed over each other"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_red_once(
    asked: Asked, more: dict[str, Any], name: str, said: str
) -> None:
    found = bad(facts_of(**more), asked)
    assert {each: check.status for each, check in found.items()} == {name: "red"}
    assert said in found[name].value
    assert found[name].do


# several nodes


def test_nodes_that_do_not_reach_each_other_are_told_how_to_name_the_network(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with ... connect error")

    monkeypatch.setattr(machine, "process_group", fail)
    monkeypatch.setattr(machine, "ALONE", {"software": lambda _: facts_of()})
    monkeypatch.setattr(machine, "_blocked", lambda *_: None)
    for size, said in ((8, False), (16, True)):
        many = replace(asked, world=World(0, 0, size, 8, torch.device("cpu")))
        with pytest.raises(RunFailed, match="connectFullMesh") as raised:
            machine.examine(many, SimpleNamespace())
        assert ("GLOO_SOCKET_IFNAME" in str(raised.value)) is said


@pytest.fixture(scope="module")
def report(icons: Path) -> Report:
    words = [*TINY, "--data.train", str(icons), "--engine.device", "cpu"]
    found, _ = machine.examine(machine.ask(read_config(words), None, {}))
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
    assert said.splitlines()[-1].endswith("leave out: sbatch --exclude node2")


def test_a_node_without_a_report_is_red_and_the_others_are_shown(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path, report)
    Path(files[3]).write_text("")
    Path(files[0]).write_text('error: node1, rank 0: no end within 90 s, at: disks\n{"host": 3}\n')
    code, said = joined(capsys, *files)
    assert code == 1
    assert f"red: node4: report: {files[3]} holds none: the file is empty" in said
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
