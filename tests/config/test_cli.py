"""The `harness` command, in this process: what it shows, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from helpers import ROOT
from rich.console import Console

import harness.__main__ as command
from harness import __version__
from harness.commands import data as data_verb
from harness.commands import show as show_verb
from harness.data import demo
from harness.results import show

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command: exit code, stdout, stderr."""
    # Consoles hold the stream that was there when they were made.
    err = Console(stderr=True, soft_wrap=True, highlight=False)
    monkeypatch.setattr(command, "err", err)
    out = Console(soft_wrap=True, highlight=False, width=120)
    for module in (data_verb, show_verb, show):
        monkeypatch.setattr(module, "out", out)

    def call(*given: str | Path) -> tuple[int, str, str]:
        code = 0
        try:
            command.main([str(word) for word in given])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def own_run(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of the finished run, to spoil."""
    return Path(copytree(finished_run, tmp_path / "runs" / "icons-s0"))


def refusal(outcome: tuple[int, str, str]) -> str:
    """The one line of a refusal."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


# show


def test_show_run(run: Run, finished_run: Path) -> None:
    code, out, err = run("show", finished_run)
    assert (code, err) == (0, "")
    result = json.loads((finished_run / "result.json").read_text())
    assert f"{finished_run}  finished" in out
    assert f"resnet20, {result['parameters']:,} parameters, 5 classes" in out
    assert f"{result['val_top1_pct']:.2f} %" in out
    assert f"of 50; {result['protocol']}" in out
    assert "10 = 1 rank x 1 x 10" in out
    assert result["result_fingerprint"] in out
    for account in result["accounts_s"]:
        assert account in out


def test_show_runs(run: Run, finished_run: Path, own_run: Path) -> None:
    code, out, err = run("show", "runs", finished_run.parent, own_run.parent)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "icons-s0" in line]
    assert len(lines) == 2
    for word in ("finished", "1.0", "resnet20", "1 x cpu"):
        assert all(word in line for line in lines)


def test_runs_are_looked_for_in_runs(
    run: Run, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.parent.parent)
    assert "icons-s0" in run("show", "runs")[1]


def test_show_a_failed_run(run: Run, own_run: Path) -> None:
    (own_run / "result.json").unlink()
    (own_run / "state").write_text("failed\n")
    message = "loss is not finite at step 3 [/nope] :bug:"
    (own_run / "failure.json").write_text(json.dumps({"rank": 1, "message": message}))
    code, out, _ = run("show", own_run)
    assert code == 0
    assert f"{own_run}  failed" in out
    assert message in out
    assert "val_top1_pct" in out, "the last row"
    code, out, _ = run("show", "runs", own_run.parent)
    assert code == 0
    assert "failed" in out


def test_show_a_run_that_has_only_begun(run: Run, own_run: Path) -> None:
    (own_run / "result.json").unlink()
    (own_run / "rows.jsonl").unlink()
    (own_run / "state").write_text("running\n")
    assert "no row yet" in run("show", own_run)[1]
    assert run("show", "runs", own_run.parent)[0] == 0


def test_a_torn_failure_is_named(run: Run, own_run: Path) -> None:
    (own_run / "failure.json").write_text('{"rank": 1, "mess')
    code, out, _ = run("show", own_run)
    assert code == 0
    assert f"{own_run / 'failure.json'}: cannot be read" in out


def test_names_with_brackets_are_shown_as_they_are(run: Run, finished_run: Path) -> None:
    odd = copytree(finished_run, finished_run.parent.parent / "odd" / "x[red]y")
    assert "x[red]y" in run("show", odd)[1]
    assert "x[red]y" in run("show", "runs", odd.parent)[1]


def test_a_torn_last_row_is_ignored(run: Run, own_run: Path) -> None:
    with (own_run / "rows.jsonl").open("a") as rows:
        rows.write('{"schema_version":1,"kind":"tra')
    code, out, err = run("show", "runs", own_run.parent)
    assert (code, err) == (0, "")
    assert "icons-s0" in out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"kind":', "line 2: JSON: invalid json"),
        ('{"schema_version": 2}', "line 2: schema_version: input should be 1"),
        ("", "line 2: JSON: invalid json"),
    ],
)
def test_a_broken_row_is_named(run: Run, own_run: Path, line: str, problem: str) -> None:
    path = own_run / "rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    for words in (("show", own_run), ("show", "runs", own_run.parent)):
        assert refusal(run(*words)).startswith(f"{path}: {problem}")


def test_a_result_of_another_version_is_named(run: Run, own_run: Path) -> None:
    path = own_run / "result.json"
    result = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(result))
    assert refusal(run("show", own_run)).startswith(f"{path}: schema_version: ")
    path.write_text("")
    assert refusal(run("show", own_run)).startswith(f"{path}: JSON: ")


def test_what_is_no_run(run: Run, tmp_path: Path) -> None:
    hint = "holds no run; start one: launch/train.py"
    assert refusal(run("show", "runs", tmp_path)) == f"{tmp_path}: {hint}"
    assert refusal(run("show", tmp_path)).startswith(f"{tmp_path}: is not a run folder")
    assert refusal(run("show", "nope")).startswith("nope: no such run folder")
    assert refusal(run("show", "runs", tmp_path / "x")).startswith(f"{tmp_path}/x: no such folder")
    assert refusal(run("show", "a", "b")).startswith("show a: takes one run folder")


def test_showing_runs_needs_no_torch(finished_run: Path) -> None:
    code = (
        "import sys; from harness.__main__ import main; "
        f"main(['show', 'runs', {str(finished_run.parent)!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_show_model(run: Run) -> None:
    code, out, err = run("show", "model", "resnet50")
    assert (code, err) == (0, "")
    assert "25,557,032" in out
    small = run("show", "model", "resnet20")[1]
    assert "one image of 32 x 32 px, 10 classes" in small
    layers = run("show", "model", "resnet20", "--layers", "--classes", "7", "--image-px", "64")[1]
    assert "one image of 64 x 64 px, 7 classes" in layers
    assert len(layers.splitlines()) > 2 * len(small.splitlines())


def test_show_no_model(run: Run) -> None:
    wrong = refusal(run("show", "model", "resnet15"))
    assert wrong == "model.name: no model 'resnet15'; did you mean resnet152?"
    assert refusal(run("show", "model")).startswith("show model: name one network")
    assert refusal(run("show", "model", "a", "b")).startswith("show model: name one network")
    assert refusal(run("show", "model", "resnet18", "--image-px", "-1")).startswith("data.image_px")
    assert refusal(run("show", "model", "resnet18", "--classes", "x")) == (
        "--classes: must be a valid integer, got x; see: harness show --help"
    )


# data


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(demo, "VAL_IMAGES", 10)


@pytest.mark.usefixtures("small_demo")
def test_data_demo(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "demo"
    code, out, err = run("data", "demo", folder)
    assert (code, err) == (0, "")
    assert "20 + 10 images of 10 classes" in out
    assert f"--data.train {folder}/train --data.val {folder}/val" in out
    assert refusal(run("data", "demo", folder)) == f"{folder}: exists already; give a new folder"
    assert len(list(folder.rglob("*.jpg"))) == 30


@pytest.mark.usefixtures("small_demo")
def test_data_demo_elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert refusal(run("data", "demo", "file")) == "file: exists already; give a new folder"
    assert refusal(run("data", "demo", ".")) == ".: exists already; give a new folder"
    assert refusal(run("data", "demo", "file/x")) == (
        "file/x: Not a directory; give a folder that can be written"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(28, "No space left on device"), 2, "error: {}: No space left on device; give a "),
        (OSError("encoder error -2"), 2, "error: {}: encoder error -2; give a folder that can"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_half_drawn_folder_leaves_nothing(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    draw_one = demo._draw_one

    def fails_at_7(folder: Path, split: str, number: int) -> None:
        if number == 7:
            raise error
        draw_one(folder, split, number)

    monkeypatch.setattr(demo, "_draw_one", fails_at_7)
    ended, _, err = run("data", "demo", tmp_path / "demo")
    assert ended == code
    assert err.startswith(says.format(tmp_path / "demo"))
    assert list(tmp_path.iterdir()) == []


# words


@pytest.mark.parametrize(
    "words",
    ["", "data", "data demo", "show", "bench", "bench overhead", "bench checkpoint", "bench data"],
)
def test_help_of_each_verb(run: Run, words: str) -> None:
    code, out, err = run(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: harness {words}".strip())


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "VERB: is missing; see: harness --help"),
        ("frobnicate", "frobnicate: no such command; see: harness --help"),
        ("shwo runs", "shwo: no such command; did you mean show?"),
        ("data", "VERB: is missing; see: harness data --help"),
        ("data demi", "demi: no such command; did you mean demo?"),
        ("data demo", "DIR: is missing; see: harness data demo --help"),
        ("data demo a b", "b: unexpected argument; see: harness data demo --help"),
        ("data get cifar11 a", "SET: 'cifar11' is not one of 'cifar10', 'cifar100'; see: harness"),
        ("data pack a b --in-order --shuffle-seed 0", "--shuffle-seed: not allowed with --in-o"),
        ("show", "WHAT: is missing; see: harness show --help"),
        ("show runs --onl x", "--onl: no such option; did you mean --only?"),
        ("show runs --x", "--x: no such option; see: harness show --help"),
        ("compare a b --margin top1", "--margin: write METRIC=VALUE with a value above 0, not top"),
        (
            "bench checkpoint --every 0",
            "--every: must be at least 1, got 0; see: harness bench checkpoint --h",
        ),
        (
            "bench overhead --threads -1",
            "--threads: must be at least 0, got -1; see: harness bench overhead",
        ),
        ("bench overhead --model resnet19", "--model: no model 'resnet19'; did you mean resnet18?"),
        ("bench ladder --minutes 0", "--minutes: must be more than 0, not 0; see: harness bench l"),
        ("bench ladder --minutes", "--minutes: requires an argument; see: harness --help"),
        ("bench ladder --engine.thread 2", "--engine.thread: no such flag; did you mean --engine"),
        ("bench scaling --ranks 1,x", "--ranks: write numbers from 1 on, as 1,2,4, not 1,x"),
        ("bench data", "DIR: is missing; see: harness bench data --help"),
    ],
)
def test_wrong_words(run: Run, words: str, says: str) -> None:
    assert refusal(run(*words.split())).startswith(says)
