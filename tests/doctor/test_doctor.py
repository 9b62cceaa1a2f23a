"""`harness doctor resume`: it sees every difference, kills for real, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from helpers import ROOT, TINY, on_gpu
from rich.console import Console

import harness.__main__ as command
from harness.doctor.chaos import plan, processes
from harness.doctor.chaos.compare import compare, loss_difference_pct
from harness.doctor.chaos.kills import KINDS
from harness.doctor.chaos.starts import Watch
from harness.logging.schema import Repeats, Result, Row, fields_that_repeat

Refused = Callable[..., str]


# what differs


@pytest.fixture
def other(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of the finished run, to spoil."""
    return Path(copytree(finished_run, tmp_path / "killed"))


def found(finished_run: Path, other: Path, **how: float) -> list[str]:
    return [str(each) for each in compare(finished_run, other, **how)]


def change(path: Path, spoil: Callable[[Any], None]) -> None:
    state = torch.load(path, weights_only=True)
    spoil(state)
    torch.save(state, path)


def flip_last_bit(tensor: torch.Tensor) -> None:
    tensor.view(-1).view(torch.int32)[3] ^= 1


def change_row(path: Path, number: int, **fields: Any) -> None:
    lines = (path / "rows.jsonl").read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | fields)
    (path / "rows.jsonl").write_text("\n".join(lines) + "\n")


def row_of(path: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((path / "rows.jsonl").read_text().splitlines()[number]))


def test_a_copy_is_the_same(finished_run: Path, other: Path) -> None:
    times = {"attempt": 7, "train_s": 1.5, "wall_s": 2.5, "images_per_second": 3.5}
    change_row(other, 0, **times, step_ms_p50=9.0, data_wait_pct=0.5, memory_peak_gib=8.0)
    assert found(finished_run, other) == []


@pytest.mark.parametrize(
    ("record", "how", "names"),
    [
        (Row, "same", "schema_version kind epoch step images_seen lr events val_images"),
        (Row, "bits", "loss train_top1_pct train_top5_pct loss_scale val_loss val_top1_pct "
         "val_top5_pct"),
        (Result, "same", "digests steps images_seen epochs val_images world_size "
         "result_fingerprint train_digest val_digest"),
        (Result, "bits", "val_loss val_correct1 val_correct5 val_top1_pct best_val_top1_pct "
         "best_epoch"),
    ],
)  # fmt: skip
def test_what_is_held_against_the_other_run(
    record: type[Row | Result], how: Repeats, names: str
) -> None:
    assert set(names.split()) <= set(fields_that_repeat(record, how))


def test_one_bit_of_a_weight(finished_run: Path, other: Path) -> None:
    change(other / "checkpoints" / "final.pt", lambda s: flip_last_bit(s["model"]["fc.weight"]))
    (only,) = found(finished_run, other)
    assert only.startswith("final.pt: model.fc.weight: 1 of 320 values differ, first at 3: ")


def test_one_bit_of_the_momentum(finished_run: Path, other: Path) -> None:
    (newest,) = other.glob("checkpoints/step-*.pt")
    momenta = torch.load(newest, weights_only=True)["optimizer"]["state"]
    number = next(n for n, each in momenta.items() if each["momentum_buffer"].shape == (16,))

    def spoil(state: Any) -> None:
        flip_last_bit(state["optimizer"]["state"][number]["momentum_buffer"])

    change(newest, spoil)
    (only,) = found(finished_run, other)
    name = f"{newest.name}: optimizer.state.{number}.momentum_buffer"
    assert only.startswith(f"{name}: 1 of 16 values differ")


def test_zero_is_not_minus_zero_and_nan_is_nan(finished_run: Path, other: Path) -> None:
    mine = copytree(finished_run, other.with_name("mine"))
    for path, zero in ((mine, 0.0), (other, -0.0)):
        change(
            path / "checkpoints" / "final.pt",
            lambda s, zero=zero: s.update(a=torch.tensor([math.nan, zero]), b=zero),  # type: ignore[misc]
        )
    assert found(mine, other) == [
        "final.pt: a: 1 of 2 values differ, first at 1: 0.0 undisturbed, -0.0 killed",
        "final.pt: b: 0.0 undisturbed, -0.0 killed",
    ]


def test_tensors_of_other_shapes_and_names(finished_run: Path, other: Path) -> None:
    def spoil(state: Any) -> None:
        state["model"]["fc.bias"] = state["model"]["fc.bias"].double()
        state["more"] = torch.zeros(0)

    change(other / "checkpoints" / "final.pt", spoil)
    assert found(finished_run, other) == [
        "final.pt: model.fc.bias: torch.float32 [5] undisturbed, torch.float64 [5] killed",
        "final.pt: more: only in one of the two",
    ]


def test_a_loss_in_the_last_digit(finished_run: Path, other: Path) -> None:
    row = row_of(other, 0)
    spoilt = math.nextafter(row["loss"], 9)
    change_row(other, 0, loss=spoilt)
    assert found(finished_run, other) == [
        f"rows.jsonl: train row of step {row['step']}: loss: "
        f"{row['loss']} undisturbed, {spoilt} killed"
    ]


@pytest.mark.parametrize("field", ["lr", "train_top1_pct", "val_loss", "val_top1_pct", "epoch"])
def test_other_fields_of_a_row(finished_run: Path, other: Path, field: str) -> None:
    number = 1 if field.startswith("val") else 0
    change_row(other, number, **{field: row_of(other, number)[field] + 1e-9})
    (only,) = found(finished_run, other)
    assert f": {field}: " in only


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda rows: [*rows[:1], *rows], "train row of step 5: occurs 2 times"),
        (lambda rows: rows[1:], "train row of step 5: missing"),
        (lambda rows: rows[::-1], "val row of step 5: out of order"),
        (
            lambda rows: [rows[0].replace('"step":5', '"step":4'), *rows],
            "train row of step 4: not in the other run",
        ),
        (lambda rows: [*rows, rows[1][:20]], "line 3, which is torn: not in the other run"),
    ],
)
def test_rows_once_and_in_order(
    finished_run: Path, other: Path, spoil: Callable[[list[str]], list[str]], what: str
) -> None:
    rows = (other / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 2
    (other / "rows.jsonl").write_text("\n".join(spoil(rows)) + "\n")
    (first,) = compare(finished_run, other)
    assert str(first) == f"rows.jsonl: {what}"
    assert not first.bits


def test_the_record(finished_run: Path, other: Path) -> None:
    result = json.loads((other / "result.json").read_text())
    result["digests"][0]["order"] = "0" * 16
    (other / "result.json").write_text(json.dumps(result))
    (other / "failure.json").write_text("{}")
    (other / "state").write_text("failed\n")
    with (other / "attempts.jsonl").open("a") as file:
        file.write('{"attempt": 2, "from_')
    said = found(finished_run, other)
    assert [each.split(": ")[0] for each in said] == [
        "state", "failure.json", "attempts.jsonl", "result.json",
    ]  # fmt: skip
    assert said[2] == "attempts.jsonl: 2 lines: [1]"
    assert said[3].startswith("result.json: digests: ")


def test_a_run_that_went_back(finished_run: Path, other: Path) -> None:
    line = json.loads((other / "attempts.jsonl").read_text())
    tries = [line | {"attempt": n, "from_step": step} for n, step in ((1, 0), (2, 4), (3, 2))]
    (other / "attempts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in tries))
    assert found(finished_run, other) == [
        "attempts.jsonl: went back: from steps [0, 4, 2]",
        "result.json: attempt: 3 undisturbed, 1 killed",
    ]


def test_within_a_bound(finished_run: Path, other: Path) -> None:
    """Where no equal bits are promised, losses are near, and the stream is the same."""
    loss = row_of(other, 0)["loss"]
    change_row(other, 0, loss=1.01 * loss, train_top1_pct=99.0)
    change(other / "checkpoints" / "final.pt", lambda s: flip_last_bit(s["model"]["fc.weight"]))
    assert found(finished_run, other, bound_pct=2.0) == []
    assert loss_difference_pct(finished_run, other) == pytest.approx(1.0)
    (only,) = found(finished_run, other, bound_pct=0.5)
    assert "train row of step 5: loss: " in only
    change_row(other, 0, loss=loss, lr=0.3)
    (only,) = found(finished_run, other, bound_pct=2.0)
    assert "train row of step 5: lr: " in only


# what the user gives


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Refused:
    """Give the command; returns its one line. Nothing may be left."""
    err = Console(stderr=True, soft_wrap=True, highlight=False)
    monkeypatch.setattr(command, "err", err)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def call(*words: str | Path) -> str:
        before = list(tmp_path.iterdir())
        with pytest.raises(SystemExit) as ended:
            command.main(["doctor", "resume", *map(str, words)])
        captured = capsys.readouterr()
        assert (ended.value.code, captured.err.count("\n")) == (2, 1)
        assert list(tmp_path.iterdir()) == before
        return captured.err.removeprefix("error: ").rstrip("\n")

    return call


def test_bad_input_is_one_line(refused: Refused, icons: Path, tmp_path: Path) -> None:
    data = ("--data.train", icons, "--data.val", icons)
    assert "must be at least 1" in refused("--kills", "0")
    assert "no/such.yaml: No such file" in refused("no/such.yaml")
    assert "--model.nmae: no such flag; did you mean" in refused("--model.nmae", "resnet20")
    assert "model.name" in refused("--kills", "3", "--model.name", "resnet21", "--seed", "1")
    assert "/no/images: No such file or directory" in refused("--data.train", "/no/images")
    for flag in ("--run.root", "--run.name", "--schedule.max-steps=3"):
        assert "harness doctor resume sets it by itself" in refused(flag, "3")
    assert "--steps" in refused("--schedule.max-steps", "3")
    assert "10 does not divide over 3 ranks" in refused(*TINY, *data, "--train.global-batch", "10")
    scoring = tmp_path / "eval.yaml"
    scoring.write_text("run: {mode: eval}\nmodel: {weights: x}\ndata: {val: demo}\n")
    assert "eval trains no step" in refused(scoring)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").touch()
    assert "is not empty" in refused("--keep", tmp_path / "kept")
    assert "File exists" in refused("--keep", scoring)


# what it starts


def test_the_guard_ends_what_a_killed_doctor_leaves() -> None:
    mark = f"guard-test-{os.getpid()}"
    code = f"""
import os, signal, subprocess, sys, time
from harness.doctor.chaos import processes
processes.Guard({mark!r})
environ = os.environ | {{processes.MARK: {mark!r} + "-1."}}
for _ in range(3):
    subprocess.Popen(["sleep", "600"], env=environ, start_new_session=True)
print(len(processes.marked({mark!r})), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.stdout == "3\n"
    until = time.monotonic() + 20
    while processes.marked(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes.marked(mark) == []


def left_in(tmp_path: Path) -> list[processes.Process]:
    """Processes of a trial whose temporary files lie here; other trials may run meanwhile."""
    found = []
    for each in processes.marked(""):
        with suppress(OSError):  # it may have gone meanwhile
            if str(tmp_path).encode() in Path(f"/proc/{each.pid}/environ").read_bytes():
                found.append(each)
    return found


@pytest.mark.parametrize(
    ("on_gpu", "asked", "bucket_mb"),
    [(True, (), "1.0"), (True, ("--engine.compile", "false"), "0.05"), (False, (), "0.05"),
     (False, ("--engine.compile", "true"), "1.0")],
)  # fmt: skip
def test_buckets_of_a_trial_are_as_small_as_what_is_compiled_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    on_gpu: bool, asked: tuple[str, ...], bucket_mb: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(plan, "_resolved", lambda *_: None)
    words = ["--model.name", "resnet20", "--data.source", "synthetic", *asked]
    made = plan.make(words, ranks=2, steps=4, folder=tmp_path)
    assert made.args[made.args.index("--engine.bucket-mb") + 1] == bucket_mb


def doctor(
    icons: Path, tmp_path: Path, *words: str, root: Path = ROOT, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """A trial on the icons: 4 steps per epoch, several buckets. No process may be left of it."""
    flags = [
        *TINY, "--data.train", str(icons), "--data.val", str(icons), "--data.augment", "pad_crop",
        *("--train.global-batch", "12", "--eval.local-batch", "8", "--schedule.epochs", "12"),
        *("--ranks", "3"), *on_gpu(),
    ]  # fmt: skip
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "harness", "doctor", "resume", *flags, *words],
        cwd=root, env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "120"},
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert not left_in(tmp_path)
    return done


def test_the_last_row_is_read_whole_while_the_file_is_cut(tmp_path: Path) -> None:
    # A start that resumes cuts old rows off, perhaps between finding the file's end and reading.
    watch = Watch(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert watch.new_step == 2
    rows.write_text('{"step": 3, "note": "' + 10_000 * "x" + '"}\n')
    assert watch.new_step is None
    rows.write_text(rows.read_text() + '{"step": 4}\n')
    assert watch.new_step == 4


@pytest.mark.gpu_too
@pytest.mark.slow
def test_a_run_that_fails_by_itself(icons: Path, tmp_path: Path) -> None:
    words = ("--ranks", "1", "--steps", "4", "--optim.lr-per-256", "1e30")
    done = doctor(icons, tmp_path, *words)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "undisturbed: ended by itself, with exit code 1" in done.stderr
    assert "the loss is nan" in done.stdout, "the end of its log"
    (folder,) = (tmp_path / "tmp").iterdir()
    *_, last = done.stdout.splitlines()
    assert last == f"the run folders and logs are in {folder}"


@pytest.mark.gpu_too
@pytest.mark.slow
def test_a_kill_of_each_kind(icons: Path, tmp_path: Path) -> None:
    kills = len(KINDS)
    # Kills of three ranks, whose sums have an order: test_faults.py.
    done = doctor(icons, tmp_path, "--ranks", "1", "--kills", str(kills), "--steps", "32")
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        assert f": {kind}" in done.stdout
    assert sum(f"kill {n + 1}/{kills}: " in done.stdout for n in range(kills)) == kills
    assert "all refused" in done.stdout or "its orphans finished" in done.stdout
    *_, verdict, last = done.stdout.splitlines()
    assert verdict.startswith("the same bits: yes")
    assert last.startswith("the run folders were removed")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.gpu_too
@pytest.mark.slow
def test_a_sick_harness_is_found_out(icons: Path, tmp_path: Path) -> None:
    """One that goes on with other momentum than it had."""
    sick = tmp_path / "checkout"
    for name in ("harness", "launch", "configs"):
        copytree(ROOT / name, sick / name)
    file = sick / "harness" / "checkpoint" / "saver.py"
    healthy = '    optimizer.load_state_dict(optimizer.state_dict() | {"state": values})\n'
    assert healthy in file.read_text()
    file.write_text(file.read_text().replace(healthy, ""))
    keep = tmp_path / "keep"
    # With this seed the kill is one of everything, once some steps are saved.
    words = ("--ranks", "1", "--kills", "1", "--steps", "18", "--seed", "6", "--keep", str(keep))
    done = doctor(icons, tmp_path, *words, root=sick)
    assert done.returncode == 1, done.stdout + done.stderr
    *_, verdict, last = done.stdout.splitlines()
    assert verdict.startswith("the same bits: no: killed: rows.jsonl: train row of step ")
    assert "control: a second undisturbed run" in done.stdout
    assert last == f"the run folders and logs are in {keep}"
    assert (keep / "killed" / "result.json").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
