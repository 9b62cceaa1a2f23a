"""What a user can get wrong: each time one line that helps, exit code 2, and nothing half-written.

Every case is a command as a user types it. All are started side by side, since most of a case's
time is the import of torch.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest
import torch
from helpers import draw_tree, icons_flags, train

from harness.logging.schema import Result
from harness.run_folder.folder import read_state


@dataclass(frozen=True)
class Place:
    """Where a case runs: its own empty folder; the data and the run that all cases share."""

    cwd: Path
    icons: Path
    finished: Path

    @property
    def run(self) -> Path:
        """The run folder that the flags of all cases mean."""
        return self.cwd / "runs" / "icons-s0"


def nothing(place: Place) -> None:
    """All is said by the flags."""


def file(name: str, text: str = "") -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        (place.cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (place.cwd / name).write_text(text)

    return prepare


def tree(root: Path, *, side: int = 32, classes: int = 5) -> Path:
    return draw_tree(
        root, classes=classes, per_class=4, size=lambda number: (side, side), suffix=".png"
    )


def class_without_images(place: Place) -> None:
    (tree(place.cwd / "data") / "class9").mkdir()


def no_image_at_all(place: Place) -> None:
    (place.cwd / "data" / ".git").mkdir(parents=True)


def lacks_a_class(place: Place) -> None:
    tree(place.cwd / "data", classes=4)


def lies_flat(place: Place) -> None:
    tree(place.cwd, classes=1)
    (place.cwd / "class0").rename(place.cwd / "data")


def broken_header(place: Place) -> None:
    (tree(place.cwd / "data") / "class3" / "bad.jpg").write_bytes(b"\xff\xd8\xff not really")


def tiny_images(place: Place) -> None:
    tree(place.cwd / "data", side=20)


def other_weights(place: Place) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, place.cwd / "weights.pt")


def a_run_there(state: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        copytree(place.finished, place.run)
        (place.run / "state").write_text(f"{state}\n")

    return prepare


@dataclass(frozen=True)
class Case:
    """Flags on top of a good run's; how the line begins that must be said."""

    flags: str
    says: str
    prepare: Callable[[Place], None] = nothing


DATA, WEIGHTS = "--data.train {cwd}/data", "--model.weights {cwd}/weights.pt"

CASES = {
    "misspelt_flag": Case(
        "--optim.momentun 0.8",
        "--optim.momentun: no such flag; did you mean --optim.momentum?",
    ),
    "wrong_type": Case("--optim.momentum high", "--optim.momentum: expected number, got high"),
    "missing_folder": Case(
        DATA, "{cwd}/data: No such file or directory; give a folder with one folder per class"
    ),
    "a_file_as_folder": Case(DATA, "{cwd}/data: Not a directory; give a folder", file("data")),
    "empty_folder": Case(
        DATA, "{cwd}/data: is empty; give a folder with one folder of images per", no_image_at_all
    ),
    "class_without_images": Case(
        DATA,
        "{cwd}/data/class9: holds no .jpg, .jpeg, .png file; remove it or fill it",
        class_without_images,
    ),
    "other_classes": Case(
        "--data.val {cwd}/data",
        "{cwd}/data: has no class folder class4, which {icons} has (1 such)",
        lacks_a_class,
    ),
    "flat_validation_folder": Case(
        "--data.val {cwd}/data",
        "{cwd}/data: images lie flat in it, without class folders; move each into a folder named "
        "after its class",
        lies_flat,
    ),
    "fewer_images_than_a_batch": Case(
        "--train.global-batch 51",
        "{icons}: 50 images are fewer than one train.global_batch of 51; lower it",
    ),
    "broken_header": Case(
        DATA,
        "{cwd}/data/class3/bad.jpg: its header is not one of a JPEG or PNG; remove or replace it",
        broken_header,
    ),
    "too_small_to_crop": Case(
        f"{DATA} --data.pad-px 5",
        "{cwd}/data/class0/0000.png: 20 px and data.pad_px 5 on each side are less than "
        "data.image_px 32; use data.augment resized_crop",
        tiny_images,
    ),
    "no_weights": Case(WEIGHTS, "model.weights: {cwd}/weights.pt: No such file or directory"),
    "weights_that_are_none": Case(
        WEIGHTS, "model.weights: {cwd}/weights.pt: not a checkpoint", file("weights.pt", "<html>")
    ),
    "weights_that_do_not_fit": Case(
        WEIGHTS, "model.weights: {cwd}/weights.pt does not fit resnet20: it has no", other_weights
    ),
    "unwritable_root": Case(
        "--run.root {cwd}/file/sub",
        "{cwd}/file/sub/icons-s0: Not a directory; set --run.root to a folder you can write",
        file("file"),
    ),
    "no_run_in_the_folder": Case(
        "",
        "runs/icons-s0: is not empty and holds no run; choose another --run.name",
        file("runs/icons-s0/thesis.tex"),
    ),
    "a_file_in_its_place": Case(
        "", "runs/icons-s0: is a file; choose another --run.name", file("runs/icons-s0")
    ),
    "another_run_in_the_folder": Case(
        "--optim.momentum 0.8 --run.seed 1",
        "runs/icons-s0: holds a run with another run.seed (0 there, 1 here), optim.momentum (0.9 "
        "there, 0.8 here); choose another --run.name, or --run.restart to move it aside",
        a_run_there("finished"),
    ),
    "decoding_without_gpu": Case("--data.decode gpu", "data.decode: gpu was asked for, but this"),
    "no_gpu": Case("--engine.device cuda", "engine.device: cuda was asked for, but torch sees no"),
    "fp16_without_gpu": Case(
        "--engine.precision fp16", "engine.precision: fp16 needs a GPU; use bf16, fp32 or auto"
    ),
}
ON_A_GPU_THESE_ARE_GOOD = {"decoding_without_gpu", "no_gpu", "fp16_without_gpu"}
Outcome = tuple[subprocess.CompletedProcess[str], set[str], Place]


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def outcome(case: Case, place: Place) -> Outcome:
    case.prepare(place)
    before = files(place.cwd)
    flags = case.flags.format(cwd=place.cwd, icons=place.icons).split()
    done = train(*icons_flags(place.icons), *flags, cwd=place.cwd)
    return done, files(place.cwd) - before, place


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, icons: Path, finished_run: Path
) -> dict[str, Future[Outcome]]:
    pool = ThreadPoolExecutor(os.cpu_count())
    places = {name: Place(tmp_path_factory.mktemp(name), icons, finished_run) for name in CASES}
    return {name: pool.submit(outcome, CASES[name], place) for name, place in places.items()}


def said(stderr: str) -> str:
    """The one line, after `error: `."""
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, outcomes: dict[str, Future[Outcome]], request: pytest.FixtureRequest
) -> None:
    if name in ON_A_GPU_THESE_ARE_GOOD and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done, new_files, place = outcomes[name].result()
    assert done.returncode == 2
    line = said(done.stderr)
    assert line.startswith(CASES[name].says.format(cwd=place.cwd, icons=place.icons))
    assert done.stderr.splitlines() == [f"error: {line}"]
    assert new_files <= {"data/.harness-index.npz"}


def test_a_bad_config_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("optim: {momentun: 0.8}")
    done = train("recipe.yaml", "--run.seed", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert said(done.stderr) == (
        "recipe.yaml: optim.momentun: no such setting; did you mean momentum?"
    )
    assert files(tmp_path) == {"recipe.yaml"}


def test_line_breaks_do_not_break_the_line(tmp_path: Path) -> None:
    done = train("--data.source", "synthetic", "--model.name", "a\n\nb", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said(done.stderr).endswith("got a b")


def test_under_torchrun_it_is_said_once(tmp_path: Path, icons: Path) -> None:
    done = train(
        *icons_flags(icons), "--train.global-batch", "11", ranks=2, cwd=tmp_path, launched=True
    )
    message = "train.global_batch: 11 does not divide over 2 ranks; use 10 or 12"
    assert done.returncode == 1, "torchrun turns every failure into 1"
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [f"error: {message}"]
    report = lines[lines.index("Root Cause (first observed failure):") :]
    assert any(message in line for line in report)
    assert any("exitcode  : 2" in line for line in report)
    assert files(tmp_path) == set()


def test_whichever_rank_ends_first_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun may end rank 0 before it can speak."""
    said_by = []
    for rank in (1, 0):
        own = tmp_path / "attempt_0" / str(rank)
        own.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(own / "error.json"))
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        done = train("--optim.momentun", "0.8", cwd=tmp_path)
        assert done.returncode == 2
        assert "no such flag" in json.loads((own / "error.json").read_text())["message"]["message"]
        said_by += [rank] if done.stderr else []
    assert said_by == [1]


def test_a_failure_before_the_claim_leaves_the_old_run_alone(
    tmp_path: Path, icons: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, icons, finished_run)
    a_run_there("finished")(place)
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = train(*icons_flags(icons), cwd=tmp_path, launched=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: ImportError: broken\n")
    assert read_state(place.run) == "finished"
    assert not (place.run / "failure.json").exists()


def test_a_finished_run_is_left_alone(tmp_path: Path, icons: Path, finished_run: Path) -> None:
    place = Place(tmp_path, icons, finished_run)
    a_run_there("finished")(place)
    before = {path: path.stat().st_mtime_ns for path in place.run.rglob("*")}
    done = train(*icons_flags(icons), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "runs/icons-s0: " in done.stdout
    assert "--run.restart" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in place.run.rglob("*")} == before


def test_restart_moves_the_old_run_aside(tmp_path: Path, icons: Path, finished_run: Path) -> None:
    place = Place(tmp_path, icons, finished_run)
    a_run_there("failed")(place)
    done = train(*icons_flags(icons), "--run.restart", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    new, old = sorted(place.run.parent.iterdir())
    assert (new.name, old.name[:9]) == ("icons-s0", "icons-s0.")
    assert (read_state(new), read_state(old)) == ("finished", "failed")
    runs = [Result.model_validate_json((path / "result.json").read_text()) for path in (new, old)]
    assert runs[0].run_id != runs[1].run_id
    assert runs[0].result_fingerprint == runs[1].result_fingerprint
    # The new config says what was run, not that it was a restart.
    assert (new / "config.yaml").read_text() == (old / "config.yaml").read_text()
