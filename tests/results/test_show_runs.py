"""The history: every run has its line, whatever is wrong with the others; what is left to train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from harness.__main__ import main
from harness.config import Config
from harness.errors import BadInput
from harness.logging.schema import Row
from harness.results import load, source
from harness.results.show_runs import SORTS, left_s
from harness.results.wandb import api
from harness.results.wandb import rows as wandb_rows

Capture = pytest.CaptureFixture[str]
HOUR_S = 3600.0


def shown(capsys: Capture, *words: str | Path) -> tuple[str, str]:
    """What `harness show` prints: stdout, stderr."""
    main(["show", *map(str, words)])
    printed = capsys.readouterr()
    return printed.out, printed.err


def refused(capsys: Capture, *words: str | Path) -> str:
    """The last line of a refusal; nothing was shown."""
    with pytest.raises(SystemExit) as caught:
        main(["show", *map(str, words)])
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    return printed.err.splitlines()[-1].removeprefix("error: ")


def names(out: str) -> list[str]:
    """The runs of a table, in its order."""
    rows = [line.split() for line in out.splitlines()]
    return [row[0] for row in rows if len(row) > 3 and row[0] != "run"]


def line_of(out: str, name: str) -> str:
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
    return " ".join(line.split())


def begun(folder: Path, *, silent_s: float = 0.0, state: str = "running", **given: Any) -> Path:
    """A run half way through 4 epochs of 500 steps, last heard of so long ago."""
    made_run(folder, state=state, periods=40, **given)
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    half = [row for row in rows if json.loads(row)["epoch"] <= 2]
    (folder / "rows.jsonl").write_text("".join(half))
    (folder / "lease.json").write_text("{}")
    then = time.time() - silent_s
    for file in folder.iterdir():
        os.utime(file, (then, then))
    return folder


def active_at(run: Path) -> float:
    return max(file.stat().st_mtime for file in run.iterdir())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    ended = {"finished_at": "2020-01-01T12:00:00+00:00"}
    made_run(root / "a-s2", seed=2, top1_pct=76.5, **ended)
    made_run(root / "a-s10", seed=10, top1_pct=75.5, rate=900, **ended)
    begun(root / "b-s0", sections={"model": {"name": "resnet18"}}, environment={"world_size": 4})
    return root


# what is shown


def test_all_there_is_to_know(runs: Path, capsys: Capture) -> None:
    out, err = shown(capsys, "runs", runs)
    assert err == ""
    assert names(out) == ["a-s2", "a-s10", "b-s0"], "by name, numbers as numbers"
    assert line_of(out, "a-s10").startswith(
        "a-s10 finished 4.0/4 75.50 900 resnet50 8 x H100 80GB HBM3 2020-01-0"
    )
    # 1,000 steps of 256 images at 1,000 images/s, and two validations of 5 s.
    going = line_of(out, "b-s0")
    assert going.startswith("b-s0 running 2.0/4 38.00 ")
    assert " 4 min 26 s resnet18 4 x H100 80GB HBM3 " in going
    assert going.endswith(time.strftime("%H:%M", time.localtime(active_at(runs / "b-s0"))))


def test_nothing_is_cut_on_a_narrow_terminal(runs: Path) -> None:
    long = made_run(runs / ("x" * 150))
    done = subprocess.run(
        [sys.executable, "-m", "harness", "show", "runs", runs],
        cwd=ROOT, env=os.environ | {"COLUMNS": "60"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert long.name in done.stdout
    assert "…" not in done.stdout


@pytest.mark.parametrize("state", ["failed", "finished", "unknown"])
def test_no_time_is_left_of_what_does_not_go_on(
    state: str, tmp_path: Path, capsys: Capture
) -> None:
    begun(tmp_path / "a", state=state)
    assert " min " not in line_of(shown(capsys, "runs", tmp_path)[0], "a")


@pytest.mark.parametrize(("silent_s", "state"), [(0, "running"), (HOUR_S, "silent")])
def test_a_killed_run_does_not_look_alive(
    silent_s: float, state: str, tmp_path: Path, capsys: Capture
) -> None:
    run = begun(tmp_path / "a", silent_s=silent_s)
    line = line_of(shown(capsys, "runs", tmp_path)[0], "a")
    assert line.startswith(f"a {state} 2.0/4 ")
    assert "4 min 26 s" in line, "it can be started again"
    out = shown(capsys, run)[0]
    assert f"  {state}\n" in out
    assert ("without a sign of life" in out) == (state == "silent")


def test_a_heartbeat_is_a_sign_of_life(tmp_path: Path) -> None:
    run = begun(tmp_path / "a", silent_s=HOUR_S)
    (run / "lease.json").touch()
    assert load.load_run(run).state == "running"


def test_runs_that_have_only_begun(tmp_path: Path, capsys: Capture) -> None:
    for name in ("empty", "torn", "none"):
        begun(tmp_path / name)
    (tmp_path / "empty" / "rows.jsonl").write_text("")
    (tmp_path / "torn" / "rows.jsonl").write_text('{"kind":')
    (tmp_path / "none" / "rows.jsonl").unlink()
    (tmp_path / "none" / "environment.json").write_text("[")
    out, err = shown(capsys, "runs", tmp_path)
    assert err == ""
    for name in ("empty", "torn", "none"):
        assert line_of(out, name).startswith(f"{name} running 0.0/4 resnet50 ")


def test_an_end_by_steps_and_one_by_accuracy(tmp_path: Path, capsys: Capture) -> None:
    begun(tmp_path / "a", sections={"schedule": {"max_steps": 1250}})
    begun(tmp_path / "b", sections={"schedule": {"stop_at_top1_pct": 70}})
    out, _ = shown(capsys, "runs", tmp_path)
    assert " 2.0/2.5 " in line_of(out, "a")
    assert " 1 min 09 s " in line_of(out, "a"), "250 steps, one validation"
    assert " < 4 min 26 s " in line_of(out, "b")


# what is left


@given(data=st.data())
def test_time_left_is_what_walking_on_takes(data: st.DataObject) -> None:
    per_epoch = data.draw(st.integers(1, 5))
    schedule: dict[str, Any] = {
        "epochs": data.draw(st.integers(1, 5)),
        "max_steps": data.draw(st.none() | st.integers(1, 25)),
    }
    every = data.draw(st.integers(1, 3))
    config = Config.model_validate({"schedule": schedule, "eval": {"every_epochs": every}})
    end = min(schedule["epochs"] * per_epoch, schedule["max_steps"] or 25)
    rows: list[Row] = []
    for step in range(1, end + 1):
        about = {
            "attempt": 1, "epoch": step / per_epoch, "step": step, "images_seen": step,
            "train_s": 2.0 * step, "wall_s": 0.0,
        }  # fmt: skip
        rows.append(Row.model_validate({"kind": "train", **about}))
        if step == end or step % (per_epoch * every) == 0:
            rows.append(Row.model_validate({"kind": "val", **about, "val_s": 7.0}))
    now = data.draw(st.integers(1, len(rows)))
    if not any(row.kind == "val" for row in rows[:now]):
        more_s = 2.0 * (end - rows[now - 1].step)
    else:
        more_s = sum(2.0 if row.kind == "train" else 7.0 for row in rows[now:])
    assert left_s(rows[:now], config) == pytest.approx(more_s)


def test_time_left_under_a_limit_of_minutes(tmp_path: Path) -> None:
    rows = load.load_run(begun(tmp_path / "a")).rows
    assert rows[-1].train_s == pytest.approx(256, rel=0.01)
    config = Config.model_validate({"schedule": {"epochs": 4, "max_minutes": 5}})
    assert left_s(rows, config) == pytest.approx(300 - 256 + 5, abs=2)
    config = Config.model_validate({"schedule": {"epochs": 4, "max_minutes": 1}})
    assert left_s(rows, config) == 0, "its last validation is done"
    ended = [rows[-1].model_copy(update={"events": ["time is up"]})]
    assert left_s(ended, config) is None
    assert left_s([], config) is None


# damage


def break_rows(run: Path) -> str:
    with (run / "rows.jsonl").open("ab") as rows:
        rows.write(b'\xff\xfe{"kind"\n')
    return f"{run}/rows.jsonl: line 45: JSON: invalid json"


def break_result(run: Path) -> str:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"schema_version": 0}))
    return f"{run}/result.json: schema_version: input should be 1"


def tear_result(run: Path) -> str:
    (run / "result.json").write_bytes(b'{"name": "\xc3')
    return f"{run}/result.json: JSON: invalid json"


def break_config(run: Path) -> str:
    (run / "config.yaml").write_text("model:\n  name: vgg16\n")
    return f"{run}/config.yaml: model.name: was written by another version"


def tear_config(run: Path) -> str:
    (run / "config.yaml").write_text("model: [")
    return f"{run}/config.yaml: line 1: not valid YAML"


def hide_result(run: Path) -> str:
    (run / "result.json").unlink()
    (run / "result.json").mkdir()
    return f"{run}/result.json: Is a directory"


@pytest.mark.parametrize(
    "spoil", [break_rows, break_result, tear_result, break_config, tear_config, hide_result]
)
def test_one_bad_run_hides_no_other(spoil: Any, runs: Path, capsys: Capture) -> None:
    problem = spoil(runs / "a-s10")
    out, err = shown(capsys, "runs", runs)
    assert names(out) == ["a-s2", "b-s0"]
    assert err.startswith(f"left out: {problem}")
    assert err.count("\n") == 1
    assert refused(capsys, "runs", runs / "a-s10").startswith(problem)


def test_no_run_that_can_be_read(tmp_path: Path, capsys: Capture) -> None:
    problems = [break_rows(made_run(tmp_path / name)) for name in "ab"]
    with pytest.raises(SystemExit):
        main(["show", "runs", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert [problem in line for problem, line in zip(problems, lines, strict=True)] == [True] * 2
    assert lines[1].startswith("error: ")


@pytest.mark.parametrize(
    "text",
    [
        'ROW\n{"schema_version":1,\n"kind":"train"}\nROW\n',
        "ROW\nROW,ROW\nROW\n",
        "ROW\n\nROW\n",
    ],
)
def test_lines_that_are_rows_only_together_are_refused(text: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "a")
    row = (run / "rows.jsonl").read_text().splitlines()[0]
    (run / "rows.jsonl").write_text(text.replace("ROW", row))
    with pytest.raises(BadInput, match=r"rows\.jsonl: line 2: "):
        load.load_run(run)


def test_rows_are_read_while_they_are_written(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", periods=8)
    text = (run / "rows.jsonl").read_bytes()
    for cut in range(0, len(text) + 1, 53):
        (run / "rows.jsonl").write_bytes(text[:cut])
        assert len(load.load_run(run).rows) == text[:cut].count(b"\n")


# which, in which order


def test_folders_runs_and_globs(
    runs: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names(shown(capsys, "runs")[0]) == ["a-s2", "a-s10", "b-s0"]
    assert names(shown(capsys, "runs", runs / "b-s0")[0]) == ["b-s0"]
    assert names(shown(capsys, "runs", "runs/a-*")[0]) == ["a-s2", "a-s10"]
    assert names(shown(capsys, "runs", "*", runs)[0]) == ["a-s2", "a-s10", "b-s0"], "each once"
    (runs / "notes.txt").write_text("as a shell spreads runs/*")
    (runs / "plots").mkdir()
    assert len(names(shown(capsys, "runs", *sorted(runs.iterdir()))[0])) == 3
    assert refused(capsys, "runs", runs, "nope*").startswith("nope*: no such folder")


def test_runs_of_one_name_are_told_apart(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    other = made_run(tmp_path / "old" / "b-s0")
    found = names(shown(capsys, "runs", runs, other.parent)[0])
    assert set(found) == {"a-s2", "a-s10", str(runs / "b-s0"), str(other)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sort name --reverse", "b-s0 a-s10 a-s2"),
        ("--reverse", "b-s0 a-s10 a-s2"),
        ("--sort top1", "b-s0 a-s10 a-s2"),
        ("--sort images_per_second --only model=resnet50", "a-s10 a-s2"),
        ("--sort left", "b-s0 a-s2 a-s10"),
        ("--sort left --reverse", "b-s0 a-s2 a-s10"),
        ("--sort epoch --reverse", "a-s2 a-s10 b-s0"),
        ("--sort active", "a-s2 a-s10 b-s0"),
        ("--sort state --reverse", "b-s0 a-s2 a-s10"),
        ("--only state=running", "b-s0"),
        ("--only model=resnet5*", "a-s2 a-s10"),
        ("--only seed=2", "a-s2"),
        ("--only run.seed=1? --only state=fin*", "a-s10"),
        ("--only device=cuda", "a-s2 a-s10 b-s0"),
        ("--only device=*H100* --only seed=0", "b-s0"),
        ("--only schedule.drop_epochs=30.0,60.0,80.0", "a-s2 a-s10 b-s0"),
        ("--only schedule.drop_steps=[] --only optim.nesterov=false", "a-s2 a-s10 b-s0"),
        ("--only train.max_local_batch=null", "a-s2 a-s10 b-s0"),
    ],
)
def test_sort_and_choose(words: str, expected: str, runs: Path, capsys: Capture) -> None:
    for given_first in (["runs", runs, *words.split()], ["runs", *words.split(), runs]):
        assert names(shown(capsys, *given_first)[0]) == expected.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only modle=resnet50", "--only modle=resnet50: no such key; did you mean model?"),
        ("--only engine.compiled=true", "--only engine.compiled=true: no such key; did you mean "),
        ("--only model", "--only model: write KEY=VALUE, such as model=resnet50"),
        ("--only seed=7", "--only seed=7: no run matches, of 3 runs"),
        ("--only device=cpu --only seed=2", "--only device=cpu, seed=2: no run matches, of 3 runs"),
        ("--sort lefft", "--sort lefft: no such key; did you mean left?"),
        ("--frobnicate", "--frobnicate: no such option; see: harness show --help"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, runs: Path, capsys: Capture) -> None:
    assert refused(capsys, "runs", runs, *words.split()).startswith(message)


@pytest.mark.parametrize("flag", ["--markdown", "--reverse", "--sort=name", "--only=seed=0"])
def test_flags_of_the_history_are_for_it_alone(flag: str, runs: Path, capsys: Capture) -> None:
    assert "belong to `show runs`" in refused(capsys, runs / "b-s0", flag)


def test_help_names_every_sort(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    output = capsys.readouterr().out
    assert all(key in output for key in SORTS)


# Markdown


def test_markdown_is_a_table_and_nothing_else(runs: Path, capsys: Capture) -> None:
    made_run(runs / "odd").rename(runs / "odd|name [x] <b> `y` :bug:")
    break_rows(made_run(runs / "broken"))
    out, err = shown(capsys, "runs", runs, "--markdown")
    assert err.count("\n") == 1
    head, rule, *rows = out.splitlines()
    assert head == (
        "| run | state | epoch | top-1 % | images/s | left | model | devices | last active |"
    )
    assert rule == "| --- | --- | --: | --: | --: | --: | --- | --- | --- |"
    assert len(rows) == 4
    for row in rows:
        assert row.replace("\\|", "").count("|") == 10
    assert rows[-1].startswith(r"| odd\|name \[x\] \<b\> \`y\` :bug: | finished | 4.0/4 | ")


# one run, from anywhere


def test_a_reference_by_its_address(capsys: Capture) -> None:
    out, _ = shown(capsys, "ref:goyal2017-resnet50-b256")
    assert "arXiv:1706.02677" in out
    assert "did you mean goyal2017" in refused(capsys, "ref:goyal2017-resnet50-b255")


def test_runs_of_a_glob_one_by_one(runs: Path, capsys: Capture) -> None:
    out, _ = shown(capsys, f"{runs}/*-s?")
    assert f"{runs}/a-s2  finished" in out
    assert f"{runs}/b-s0  running" in out


def test_runs_out_of_wandb(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = source.measured(load.load_run(runs / "a-s2"))
    two = [measured, replace(measured, address="wandb:2")]
    monkeypatch.setattr(api, "runs_at", lambda address: two)
    out, _ = shown(capsys, "wandb:team/bench?group=G")
    text = " ".join(out.split())
    assert text.count("config resnet50, 4 epochs, batch 256, seed 2") == 2
    for part in ("a-s2", "val_top1_pct 76.5", "precision bf16", "compiled true", "world_size 8"):
        assert part in text
    assert "accounts_s" not in text, "scalars alone"

    offline = runs / "a-s2" / "wandb" / "offline-run-1"
    offline.mkdir(parents=True)
    (offline / "run-1.wandb").write_bytes(b"")
    monkeypatch.setattr(wandb_rows, "read_offline", lambda folder: measured)
    assert "val_top1_pct" in shown(capsys, offline)[0]


def test_a_hundred_runs_of_a_thousand_rows_take_seconds(tmp_path: Path, capsys: Capture) -> None:
    """A tenth of them, in processor time, as the machine may be busy."""
    rows = made_run(tmp_path / "r0", periods=1000) / "rows.jsonl"
    for number in range(1, 10):
        run = made_run(tmp_path / f"r{number}", periods=8)
        (run / "rows.jsonl").write_bytes(rows.read_bytes())
    began_s = time.process_time()
    assert len(names(shown(capsys, "runs", tmp_path)[0])) == 10
    assert time.process_time() - began_s < 1.0
