"""`harness doctor`: real looks at this machine, alone and with three ranks; planted faults show."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import ROOT, TINY, on_gpu
from ranks import in_ranks, python
from wandb_fixtures import no_account, server  # noqa: F401
from wandb_standin import StandIn

from harness.commands.doctor import read_config
from harness.data.files import Bytes, TreeFiles
from harness.doctor import files, limits, machine, network, software
from harness.doctor.check import PlannedRun
from harness.doctor.report import Report
from harness.monitor import probes

NEEDED = {
    "GPUs", "versions", "CPU cores", "matrix product", "/dev/shm", "open files", "locked memory",
    "run folder", "cache folder", "temporary folder", "training data", "rank 0's address",
    "ranks agree", "world size", "all-reduce", "clock skew", "W&B", "console",
}  # fmt: skip


def flags(icons: Path) -> list[str]:
    """A large batch in small parts: what hides an all-reduce, however loaded this machine is."""
    return [
        *TINY, "--data.train", str(icons), "--train.global-batch", "3000",
        *("--train.max-local-batch", "20", "--eval.local-batch", "16", "--engine.device", "auto"),
        *on_gpu(),
    ]  # fmt: skip


def doctor(
    *words: str | Path,
    ranks: int = 1,
    cwd: Path,
    script: str | None = None,
    before: Callable[[], None] | None = None,
    **environ: str,
) -> subprocess.CompletedProcess[str]:
    """The command as a user types it: alone, or under torchrun."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    if ranks == 1 and script is None and before is None:
        return python("-m", "harness", "doctor", *words, cwd=cwd, environ=clean | environ)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    if script is not None:
        (cwd / "script.py").write_text(script)
        launcher.append(str(cwd / "script.py"))
    else:
        launcher += ["-m", "harness"]
    return subprocess.run(
        [*launcher, "doctor", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=120, preexec_fn=before,
        env=clean | {"PYTHONPATH": str(ROOT)} | environ,
    )  # fmt: skip


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.all_checks()}


def value(report: Report, name: str) -> str:
    (found,) = {check.value for check in report.all_checks() if check.name == name}
    return found


def planned_run(words: list[str], expect_gpus: int | None = None, **environ: str) -> PlannedRun:
    """As the command asks, where `environ` and the W&B account are all of the environment."""
    account = {name: text for name, text in os.environ.items() if name.startswith("WANDB")}
    return machine.plan_run(read_config(words), expect_gpus, account | environ)


def look(words: list[str], expect_gpus: int | None = None, **environ: str) -> Report:
    report, code = machine.examine(planned_run(words, expect_gpus, **environ))
    assert report is not None
    assert code == (report.verdict == "red")
    return report


@pytest.fixture(scope="module")
def healthy(icons: Path) -> Report:
    """This machine without a fault."""
    return look(flags(icons))


def changed(healthy: Report, faulty: Report) -> dict[str, str]:
    """What a fault has made another color."""
    before, after = statuses(healthy), statuses(faulty)
    assert before.keys() == after.keys()
    return {name: status for name, status in after.items() if status != before[name]}


# whole runs


@pytest.mark.gpu_too
def test_alone_it_prints_one_json_object_and_leaves_nothing(icons: Path, tmp_path: Path) -> None:
    done = doctor(*flags(icons), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    report = Report.model_validate_json(done.stdout)
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert json.loads(done.stdout)["schema_version"] == 1
    assert statuses(report).keys() >= NEEDED
    assert report.host == socket.gethostname()
    assert (report.ranks, report.other_nodes, report.verdict != "red") == (1, [], True)
    assert all(check.do for check in report.checks if check.status in ("yellow", "red"))
    facts = report.facts
    assert facts["torch"] == torch.__version__
    for name in ("matmul_tflops", "read_images_per_second", "run_folder_mb_per_s", "cores"):
        assert facts[name] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu_too
@pytest.mark.slow
def test_three_ranks_give_one_screen(icons: Path, tmp_path: Path) -> None:
    done = doctor(*flags(icons), ranks=3, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    names = {line[12:31].strip() for line in lines[:-1] if not line.startswith("examining")}
    assert names >= NEEDED
    by_name = {line[12:31].strip(): line for line in lines}
    assert "3 ranks: the same versions and git commit" in by_name["ranks agree"]
    assert " answers in " in by_name["rank 0's address"]
    assert "2 gradient buckets of resnet20" in by_name["all-reduce"]
    assert by_name["clock skew"].startswith("green")
    assert "next: torchrun --nproc-per-node 3 launch/train.py --model.name resnet20" in lines[-1]


@pytest.mark.slow
def test_expected_gpus_missing_with_several_ranks(icons: Path, tmp_path: Path) -> None:
    done = doctor(*flags(icons), "--expect-gpus", "99", ranks=3, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("red         GPUs")]
    assert "of 99 expected; -> " in line
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("red: ")]
    assert last.startswith("red: GPUs (1 node")


@pytest.mark.slow
def test_a_rank_that_fails_ends_all(icons: Path, tmp_path: Path) -> None:
    script = """
import os
from harness.__main__ import main
from harness.doctor import network

def broken(*_):
    raise RuntimeError("planted")

if __name__ == "__main__":
    if os.environ["RANK"] == "2":
        network.all_reduce = broken
    main()
"""
    done = doctor(*flags(icons), ranks=3, cwd=tmp_path, script=script)
    assert done.returncode == 1
    assert f"error: {socket.gethostname()}, rank 2 of 3: all-reduce failed: planted" in done.stderr


def test_bad_input_ends_with_2_before_torch(tmp_path: Path) -> None:
    for words, said in (
        (["--model.nmae", "resnet20"], "--model.nmae: no such flag; did you mean"),
        (["no/such.yaml"], "no/such.yaml: No such file"),
        (["--expect-gpus", "-1"], "must be at least 0"),
        (["--model.name", "resnet20", "--model.stem", "imagenet"], "model.stem"),
        (["nodes", "no/such.json"], "no/such.json: No such file"),
    ):
        done = doctor(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert said in done.stderr
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)


# planted faults, alone: each shows where it belongs, and nowhere else


@pytest.mark.slow
def test_expected_gpus_are_missing(healthy: Report, icons: Path) -> None:
    assert changed(healthy, look(flags(icons), expect_gpus=99)) == {"GPUs": "red"}
    assert changed(healthy, look(flags(icons), SLURM_GPUS_ON_NODE="99")) == {"GPUs": "red"}
    cpu = [*flags(icons), "--engine.device", "cpu"]
    report = look(cpu, expect_gpus=99)
    assert {check.name: check.status for check in report.checks}["GPUs"] == "not checked"


def test_run_folder_that_cannot_be_written(healthy: Report, icons: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [*flags(icons), "--run.root", str(tmp_path / "file" / "runs")]
    assert changed(healthy, look(words)) == {"run folder": "red"}


@pytest.mark.slow
def test_full_disks(
    healthy: Report, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path, mib=4) as disk:
        words = [*flags(icons), "--run.root", str(disk / "runs")]
        report = look(words)
        assert changed(healthy, report) == {"run folder": "red"}
        assert "No space left on device" in value(report, "run folder")
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(disk / "inductor"))
        assert changed(healthy, look(flags(icons))) == {"temporary folder": "red"}
    with small_disk(tmp_path, mib=600) as disk:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(disk))
        assert changed(healthy, look(flags(icons))) == {"temporary folder": "yellow"}


def test_too_little_shared_memory(
    healthy: Report, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataLoader's workers need it, for micro-batches of both sets; DALI does not."""
    torchvision = ["--data.source", "torchvision", "--train.global-batch", "20000"]
    large = ["--train.max-local-batch", "20000"]
    with small_disk(tmp_path, mib=64) as disk:
        monkeypatch.setattr(files, "SHM", disk)
        assert changed(healthy, look(flags(icons))) == {}
        assert changed(healthy, look([*flags(icons), *torchvision])) == {}
        assert changed(healthy, look([*flags(icons), *torchvision, *large])) == {"/dev/shm": "red"}
        large = ["--eval.local-batch", "20000"]
        assert changed(healthy, look([*flags(icons), *torchvision, *large])) == {"/dev/shm": "red"}


@pytest.mark.slow
def test_too_few_open_files(icons: Path, tmp_path: Path) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    done = doctor(*flags(icons), "--json", cwd=tmp_path, before=lower)
    report = Report.model_validate_json(done.stdout)
    assert [name for name, status in statuses(report).items() if status == "red"] == ["open files"]
    assert done.returncode == 1


def test_data_that_never_answers(
    healthy: Report, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that nobody writes to stands for a dead disk: opening it waits for ever."""
    monkeypatch.setattr(limits, "READ_DEADLINE_S", 1.0)
    (tmp_path / "images" / "class0").mkdir(parents=True)
    os.mkfifo(tmp_path / "images" / "class0" / "0.jpg")
    words = [*flags(icons), "--data.train", str(tmp_path / "images")]
    report = look(words)
    assert changed(healthy, report) == {"training data": "red"}
    assert value(report, "training data").endswith("images: no answer within 1 s")


@pytest.mark.slow
def test_data_that_comes_slowly(
    healthy: Report, icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(files: TreeFiles, sample: int, *, soon: bool = False) -> Bytes:
        time.sleep(0.2)
        return files.read(sample)

    monkeypatch.setattr(limits, "READ_S", 1.5)
    monkeypatch.setattr(TreeFiles, "mapped", slowly)
    report = look(flags(icons))
    assert changed(healthy, report) == {"training data": "yellow"}
    (check,) = [check for check in report.checks if check.name == "training data"]
    assert "images/s: copy the data to a local disk" in check.do


@pytest.mark.parametrize("kind", ["missing", "flat", "file", "nothing given"])
def test_data_that_is_none(healthy: Report, icons: Path, tmp_path: Path, kind: str) -> None:
    folder = {"missing": tmp_path / "no", "flat": icons / "class0", "file": tmp_path / "file"}
    (tmp_path / "file").touch()
    words = [*flags(icons), "--data.train", str(folder.get(kind, "null"))]
    status = "not checked" if kind == "nothing given" else "red"
    assert changed(healthy, look(words)) == {"training data": status}


def test_wandb(healthy: Report, icons: Path, server: StandIn) -> None:  # noqa: F811
    online = [*flags(icons), "--log.wandb", "online"]
    report = look(online)
    assert changed(healthy, report) == {"W&B": "green"}
    assert "a key, and http://127.0.0.1:" in value(report, "W&B")
    assert (server.store.runs, server.unknown) == ({}, [])
    assert changed(healthy, look(online, WANDB_BASE_URL="http://127.0.0.1:9")) == {"W&B": "yellow"}
    nowhere = "https://no-such-host.invalid"
    assert changed(healthy, look(online, WANDB_BASE_URL=nowhere)) == {"W&B": "yellow"}


def test_wandb_without_a_key(healthy: Report, icons: Path, no_account: None) -> None:  # noqa: F811
    report = look([*flags(icons), "--log.wandb", "auto"])
    assert changed(healthy, report) == {"W&B": "yellow"}
    assert changed(healthy, look([*flags(icons), "--log.wandb", "offline"])) == {}


def test_wandb_that_is_switched_off_is_not_asked(
    icons: Path,
    server: StandIn,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*flags(icons), "--log.wandb", "auto"]
    asked = server.fail(status=500)
    for name, says, mode in (("MODE", "dryrun", "offline"), ("DISABLED", "true", "off")):
        monkeypatch.setenv(f"WANDB_{name}", says)
        facts = network.collect(planned_run(words))
        assert (facts["wandb"]["mode"], asked.hits) == (mode, 0)


def test_rank_0_has_no_address(healthy: Report, icons: Path) -> None:
    report = look(flags(icons), MASTER_ADDR="no-such-host.invalid", MASTER_PORT="29500")
    assert changed(healthy, report) == {"rank 0's address": "red"}
    report = look(flags(icons), MASTER_ADDR="localhost", MASTER_PORT="29500")
    assert changed(healthy, report) == {"rank 0's address": "green"}


def test_the_name_of_this_host_does_not_resolve(
    healthy: Report, icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain torchrun would wait for it without an end, before it starts a rank."""
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    report = look(flags(icons))
    assert changed(healthy, report) == {"rank 0's address": "red"}
    (check,) = [check for check in report.checks if check.name == "rank 0's address"]
    assert check.value.startswith("this host's name, no-such-host.invalid: does not resolve")
    assert "torchrun --local-addr 127.0.0.1" in check.do


# planted faults with three ranks


def _healthy() -> Any:
    return mock.patch.object(limits, "LOOKUP_S", limits.LOOKUP_S)


def _other_commit() -> Any:
    return mock.patch.object(software, "git_state", return_value=("0" * 40, False))


def _other_driver() -> Any:
    versions = software.versions() | {"driver": "1.2.3"}
    return mock.patch.object(software, "versions", return_value=versions)


def _late_clock() -> Any:
    def five_seconds_ago() -> int:
        return time.time_ns() - 5_000_000_000

    return mock.patch.object(probes, "wall_clock_ns", five_seconds_ago)


def _few_files() -> Any:
    return mock.patch.object(resource, "getrlimit", return_value=(64, 64))


def _slow_network() -> Any:
    return mock.patch.object(network.limits, "BACKWARD_SHARE", 1e-9)


RANK_FAULTS: dict[str, tuple[int, Callable[[], Any], dict[str, str]]] = {
    "none": (2, _healthy, {}),
    "another commit": (2, _other_commit, {"ranks agree": "red"}),
    "another driver": (1, _other_driver, {"ranks agree": "yellow"}),
    "a clock 5 s behind": (2, _late_clock, {"clock skew": "yellow"}),
    "few open files": (1, _few_files, {"open files": "red"}),
    "a slow network": (0, _slow_network, {"all-reduce": "yellow"}),
}


def _examine_with_faults(words: list[str], ports: list[int]) -> list[tuple[str | None, int]]:
    found = []
    for (rank, fault, _), port in zip(RANK_FAULTS.values(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        run = machine.plan_run(read_config(words), None, os.environ)
        with fault() if run.world.rank == rank else _healthy():
            report, code = machine.examine(run)
        found.append((report.model_dump_json() if report else None, code))
    return found


@pytest.mark.slow
def test_faults_of_one_rank_of_three(icons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    ranks = in_ranks(3, _examine_with_faults, flags(icons), [free_port() for _ in RANK_FAULTS])
    assert [[code for _, code in rank] for rank in ranks[1:]] == 2 * [
        [code for _, code in ranks[0]]
    ]
    reports = [Report.model_validate_json(text) for text, _ in ranks[0]]
    baseline = dict(zip(RANK_FAULTS, reports, strict=True))["none"]
    for (name, (_, _, expected)), report in zip(RANK_FAULTS.items(), reports, strict=True):
        assert changed(baseline, report) == expected, name
        assert report.ranks == 3
    assert value(baseline, "ranks agree").startswith("3 ranks")
    said = dict(zip(RANK_FAULTS, reports, strict=True))
    assert "git_commit is 0000000000" in value(said["another commit"], "ranks agree")
    assert "on rank 2" in value(said["another commit"], "ranks agree")
    assert value(said["a clock 5 s behind"], "clock skew").startswith("5,00")


@pytest.mark.gpu_too
@pytest.mark.slow
def test_the_alarm_rings_and_names_what_hangs(icons: Path, tmp_path: Path) -> None:
    script = """
import time
from harness.__main__ import main
from harness.doctor import limits, machine
limits.TOTAL_S = 3.0
machine.COLLECTORS["GPUs"] = lambda _: time.sleep(600)
main()
"""
    done = doctor(*flags(icons), cwd=tmp_path, script=script)
    assert done.returncode == 1
    assert "not finished within 3 s, at: " in done.stderr


@pytest.mark.gpu
def test_on_a_gpu(icons: Path) -> None:
    report = look(flags(icons), expect_gpus=torch.cuda.device_count())
    by_name = statuses(report)
    assert by_name["GPUs"] in ("green", "yellow")
    assert by_name["versions"] == "green"
    assert by_name["GPU memory errors"] != "red"
    assert report.facts["matmul_tflops"] > 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def small_disk(tmp_path: Path, mib: int) -> Iterator[Path]:
    """A file system of a few MiB; skips where this user may not mount one."""
    at = tmp_path / f"disk-{mib}"
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(at)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
