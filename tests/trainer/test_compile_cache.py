"""Compiled graphs, kept with the run: for which machine, whole or not at all, and found again."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_net
import torch
from helpers import TINY
from ranks import in_ranks, python
from trainings import make_config, make_resolved

from harness.distributed import from_environment, process_group
from harness.errors import BadInput
from harness.logging.schema import Result
from harness.monitor.clock import Clock
from harness.run_folder.folder import RunFolder
from harness.system import folders
from harness.trainer.compile_cache import archive, cache, key
from harness.trainer.compile_cache.cache import kept
from harness.trainer.resolve import Resolved

AUTOTUNE = "max-autotune-no-cudagraphs"
FACTS = {"machine": {"cpu": "this one"}}


@pytest.fixture
def resolved(photos: Path) -> Resolved:
    config = make_config(photos, engine={"compile": True, "bucket_mb": 1})
    return make_resolved(config, from_environment("cpu", {}))[0]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's own folder; where a test has torch read and write is forgotten after it."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """A folder as inductor fills it."""
    folder = tmp_path / "graphs"
    for name in ("ab/kernel.so", "ab/kernel.cpp", "fxgraph/cd/graph", "locks/kernel.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.Random(name).randbytes(2000))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def in_kept(
    resolved: Resolved, base: Path, run: RunFolder, files: dict[str, bytes] | None = None
) -> dict[str, bytes]:
    """What a warm-up finds in its folder; it leaves `files` there, or is killed if there are none.

    A kill is an exception here: neither lets anything happen after the warm-up.
    """
    os.environ[cache.VARIABLE] = str(base)
    with kept(resolved, run, Clock(torch.device("cpu")), classes=4):
        mine = Path(os.environ[cache.VARIABLE])
        found = files_of(mine)
        mine.mkdir(parents=True, exist_ok=True)
        if files is None:
            (mine / "kernel.so").write_bytes(b"cut sh")
            raise KeyboardInterrupt
        for name, content in files.items():
            (mine / name).write_bytes(content)
    return found


def run_folder(path: Path, attempt: int = 1) -> RunFolder:
    path.mkdir(exist_ok=True)
    lines = [json.dumps({"attempt": number + 1}) for number in range(attempt)]
    (path / "attempts.jsonl").write_text("\n".join(lines) + "\n")
    return RunFolder(path, f"id-{path.name}", attempt)


def test_every_fact_changes_the_key(resolved: Resolved) -> None:
    facts = key.facts(resolved, classes=4)
    keys = {key.key_of(facts)}
    for part, values in facts.items():
        for name in values:
            other = facts | {part: values | {name: "another"}}
            keys.add(key.key_of(other))
    assert len(keys) == 1 + sum(map(len, facts.values()))
    assert facts["machine"]["cpu"]["flags" if "flags" in facts["machine"]["cpu"] else "Features"]
    assert facts["machine"]["compiler"]


def key_here() -> str:
    return key.key_of(key.machine(from_environment("cpu", {})))


@pytest.mark.parametrize(
    ("variables", "same"),
    [
        ({"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": "/elsewhere"}, True),
        ({"ATEN_CPU_CAPABILITY": "default"}, False),
        ({"CXX": "another-compiler", "TORCHINDUCTOR_CACHE_DIR": "/elsewhere"}, False),
        ({"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}, False),
    ],
)
def test_a_machine_has_one_key_and_another_vector_width_or_compiler_another(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], same: bool
) -> None:
    here = key_here()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (there,) = in_ranks(1, key_here)
    assert (there == here) is same


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"run": {"seed": 7}, "schedule": {"epochs": 5}, "log": {"every_steps": 1}}, True),
        ({"engine": {"timeout_s": 7.0}, "data": {"prefetch_batches": 9}}, True),
        ({"engine": {"threads": 2}}, False),
        ({"engine": {"bucket_mb": 3.0}}, True),  # one rank has no buckets
        ({"engine": {"send_gradients": "bf16"}}, False),  # but in them it rounds
        ({"engine": {"compile": True, "bucket_mb": 1, "compile_mode": AUTOTUNE}}, False),
        ({"engine": {"pad_stem": True}}, False),
        ({"engine": {"bucket_view": False, "cudnn_benchmark_limit": 0}}, True),
        ({"engine": {"precision": "fp32"}}, False),
        ({"train": {"max_local_batch": 6}}, False),
        ({"eval": {"local_batch": 8}}, False),
        ({"model": {"name": "resnet32"}}, False),
    ],
)
def test_runs_that_differ_in_no_graph_share_them(
    photos: Path, changes: dict[str, Any], same: bool
) -> None:
    world = from_environment("cpu", {})
    changes = changes | {"engine": {"precision": "bf16"} | changes.get("engine", {})}
    one, other = (
        key.graphs(make_resolved(make_config(photos, **each), world)[0], classes=4)
        for each in ({"engine": {"precision": "bf16"}}, changes)
    )
    assert (one == other) is same


def test_what_is_packed_comes_out_again(tmp_path: Path, graphs: Path) -> None:
    path = archive.pack(graphs, tmp_path / "compile", "k", FACTS)
    assert archive.unpack(tmp_path / "compile", "k", tmp_path / "to", print) == path
    there = files_of(tmp_path / "to")
    assert json.loads(there.pop(archive.ABOUT)) == FACTS
    wanted = {name: content for name, content in files_of(graphs).items() if "locks" not in name}
    assert there == wanted
    assert archive.unpack(tmp_path / "compile", "another", tmp_path / "no", print) is None
    assert not (tmp_path / "no").exists()
    # Packed again from what came out, it is the only one.
    (tmp_path / "to" / "more").write_text("graph")
    again = archive.pack(tmp_path / "to", tmp_path / "compile", "k", FACTS)
    assert archive.names(tmp_path / "compile", "k") == [again]
    with tarfile.open(again) as packed:
        assert packed.getnames().count(archive.ABOUT) == 1


def test_a_damaged_archive_is_named_and_not_used(tmp_path: Path, graphs: Path) -> None:
    good = archive.pack(graphs, tmp_path / "compile", "k", FACTS)
    content, rng = good.read_bytes(), random.Random(0)
    for _ in range(100):
        place = rng.randrange(len(content))
        if rng.random() < 0.5:
            good.write_bytes(content[:place])
        else:
            flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
            good.write_bytes(content[:place] + flipped + content[place + 1 :])
        said: list[str] = []
        assert archive.unpack(tmp_path / "compile", "k", tmp_path / "to", said.append) is None
        assert said == [f"{good}: is damaged: not used, kept as {good}.damaged; compiling again"]
        assert not (tmp_path / "to").exists()
        assert [path.name for path in good.parent.iterdir()] == [f"{good.name}.damaged"]


def test_what_kills_cut_short_is_removed_and_not_used(tmp_path: Path, graphs: Path) -> None:
    good = archive.pack(graphs, tmp_path / "compile", "k", FACTS)
    half = good.read_bytes()[:500]
    (tmp_path / "compile" / ".k.tar.gz.123.part").write_bytes(half)
    (tmp_path / "k.123.unpacking").mkdir()
    (tmp_path / "k.123.unpacking" / "kernel.so").write_bytes(half)
    assert archive.unpack(tmp_path / "compile", "k", tmp_path / "k", print) == good
    assert list((tmp_path / "compile").iterdir()) == [good]
    assert not list(tmp_path.glob("*.unpacking"))
    assert (tmp_path / "k" / "ab" / "kernel.so").stat().st_size == 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


LARGE = {"kernel.so": random.Random(0).randbytes(400_000)}


def test_a_run_folder_on_a_full_disk_costs_a_line(
    resolved: Resolved, base: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(small_disk / "run")
    with process_group(resolved.world, 60):
        assert in_kept(resolved, base, run, LARGE) == {}
        said = capsys.readouterr().out
        assert "No space left on device: the next start may have to compile again" in said
        assert "compiled: in " in said
        assert not list((run.path / "compile").iterdir()), "what was begun is removed"
        assert in_kept(resolved, base, run, {}) == LARGE, "the node has them all the same"


def test_a_full_node_costs_a_line(
    resolved: Resolved, tmp_path: Path, base: Path, small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with process_group(resolved.world, 60):
        in_kept(resolved, base, run_folder(tmp_path / "run"), LARGE)
        found = in_kept(resolved, small_disk, run_folder(tmp_path / "run", 2), {})
    assert found == {}
    assert "compiled graphs cannot be put there" in capsys.readouterr().out
    assert not list(small_disk.glob("*.unpacking"))


def test_a_thousand_graphs_are_not_waited_for_one_by_one(
    resolved: Resolved, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waits.append(file) or fsync(file))
    many = {f"{n}.so": b"code" for n in range(1000)}
    with process_group(resolved.world, 60):
        in_kept(resolved, base, run_folder(tmp_path / "run"), many)
    assert len(waits) < 10


def test_a_tree_that_the_disk_has_not_taken_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(folders, "_LIBC", SimpleNamespace(syncfs=fail))
    with pytest.raises(OSError, match="Input/output error"):
        folders.sync_tree(tmp_path)


def test_a_warm_up_that_was_killed_leaves_nothing_to_others(
    resolved: Resolved, tmp_path: Path, base: Path
) -> None:
    with process_group(resolved.world, 60):
        with pytest.raises(KeyboardInterrupt):
            in_kept(resolved, base, run_folder(tmp_path / "run"))
        (left,) = base.glob("*.part")
        other = in_kept(resolved, base, run_folder(tmp_path / "other"), {"kernel.so": b"whole"})
        assert other == {}, "another run compiles for itself"
        assert left.exists(), "the run may be alive, for all that others know"
        again = in_kept(resolved, base, run_folder(tmp_path / "run", 2), {})
        assert again == {"kernel.so": b"whole"}
        assert not left.exists()


def test_two_runs_of_one_kind_may_start_at_once(
    resolved: Resolved, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = run_folder(tmp_path / "slow"), run_folder(tmp_path / "fast")
    with process_group(resolved.world, 60), kept(resolved, slow, Clock(torch.device("cpu")), 4):
        mine = Path(os.environ[cache.VARIABLE])
        mine.mkdir()
        (mine / "kernel.so").write_bytes(b"of the slow one")
        in_kept(resolved, base, fast, {"kernel.so": b"of the fast one"})
        os.environ[cache.VARIABLE] = str(mine)  # one process each, where they are real
    (whole,) = [path for path in base.iterdir() if path.is_dir()]
    assert os.environ[cache.VARIABLE] == str(whole)
    assert files_of(whole) == {"kernel.so": b"of the fast one"}
    said = capsys.readouterr().out
    for run in (slow, fast):
        (path,) = (run.path / "compile").iterdir()
        assert f"kept for the next start in {path}" in said
        (attempt,) = map(json.loads, (run.path / "attempts.jsonl").open())
        assert attempt["compile_s"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_nothing_is_loaded_from_a_folder_of_somebody_else(
    resolved: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    theirs = tmp_path / f"imagenet-harness-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    expected = f"{theirs}: belongs to somebody else; set {cache.VARIABLE} to a folder on this"
    with pytest.raises(BadInput, match=expected):
        kept(resolved, run_folder(tmp_path / "run"), Clock(torch.device("cpu")), 4).__enter__()


def compiled_flags(photos: Path, name: str) -> list[str]:
    """Of a network and a precision that have few kernels."""
    sets = {
        "model.name": "plain20", "engine.precision": "fp32",
        "engine.compile": "true", "engine.bucket-mb": "1",  # two buckets
        "data.train": str(photos), "data.val": str(photos), "schedule.epochs": "20",
        "train.global-batch": "12", "eval.local-batch": "7", "eval.every-epochs": "10",
        "log.every-steps": "5", "run.name": name,
    }  # fmt: skip
    args = (arg for field, value in sets.items() for arg in (f"--{field}", value))
    return [*TINY, *small_net.FLAGS, *args]


class Starts:
    """Starts of 2 ranks on a node whose compiler writes down what it is called for."""

    def __init__(self, cwd: Path) -> None:
        self.cwd, self.calls = cwd, cwd / "calls"
        (cwd / "bin").mkdir()
        there = subprocess.check_output(["which", "g++"], text=True).strip()
        wrapper = cwd / "bin" / "g++"
        wrapper.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\nexec {there} "$@"\n')
        wrapper.chmod(0o755)

    def start(self, *flags: str, node: str) -> subprocess.CompletedProcess[str]:
        """To the end of the run, or to its stop."""
        self.calls.write_text("")
        path = f"{self.cwd / 'bin'}:{os.environ['PATH']}"
        environ = os.environ | {"PATH": path, cache.VARIABLE: str(self.cwd / node)}
        return python(small_net.__file__, *flags, ranks=2, cwd=self.cwd, environ=environ,
                      timeout_s=900)  # fmt: skip

    def stop(self, name: str) -> None:
        """Tell rank 0 to stop, once the run has a row."""
        folder, deadline = self.cwd / "runs" / name, time.monotonic() + 600
        rows = folder / "rows.jsonl"
        while not (rows.exists() and rows.stat().st_size):
            assert time.monotonic() < deadline, "no row"
            time.sleep(0.02)
        os.kill(json.loads((folder / "lease.json").read_text())["pid"], signal.SIGTERM)

    def compiled(self) -> int:
        """Libraries that were made since the last start."""
        return sum("-shared" in call for call in self.calls.read_text().splitlines())

    def attempts(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.cwd / "runs" / name / "attempts.jsonl").open()]

    def final(self, name: str) -> bytes:
        return (self.cwd / "runs" / name / "checkpoints" / "final.pt").read_bytes()

    def result(self, name: str) -> Result:
        path = self.cwd / "runs" / name / "result.json"
        return Result.model_validate_json(path.read_text())


@pytest.mark.slow
def test_a_compiled_run_goes_on_on_another_node_without_compiling_and_ends_in_the_same_bits(
    tmp_path: Path, photos: Path
) -> None:
    starts = Starts(tmp_path)
    whole = starts.start(*compiled_flags(photos, "whole"), node="node1")
    assert whole.returncode == 0, whole.stderr
    assert starts.compiled() > 10
    assert "kept for the next start in runs/whole/compile/" in whole.stdout

    # Another run of the kind, on the same node: it finds the graphs there, and keeps them too.
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(starts.stop, "stopped")
        stopped = starts.start(*compiled_flags(photos, "stopped"), node="node1")
        stop.result()
    assert "stopped by SIGTERM at step " in stopped.stderr
    assert f"nothing: all found in {tmp_path}/node1/" in stopped.stdout
    assert starts.compiled() == 0

    # And goes on on a node that has none, under another path.
    goes_on = starts.start(*compiled_flags(photos, "stopped"), node="elsewhere/node2")
    assert goes_on.returncode == 0, goes_on.stderr
    assert "nothing: all found in runs/stopped/compile/" in goes_on.stdout
    assert starts.compiled() == 0
    first, last = starts.attempts("stopped")
    assert (first["from_step"], first["graphs_compiled"], last["graphs_compiled"]) == (0, 0, 0)
    assert 0 < last["from_step"] < 160
    (cold,) = starts.attempts("whole")
    assert last["graphs_found"] == cold["graphs_found"] + cold["graphs_compiled"] > 0
    for name in ("whole", "stopped"):
        result = starts.result(name)
        assert (result.compiled, result.recompiles, result.graph_breaks) == (True, 0, 0)
    assert starts.result("whole").accounts_s["compile"] >= cold["compile_s"] > 0
    assert starts.final("stopped") == starts.final("whole")
