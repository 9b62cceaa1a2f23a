"""`harness publish`: into W&B with the real client and a stand-in server, MLPerf's logs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import icons_flags, train
from made_runs import ENVIRONMENT, made_run
from wandb_helpers import run_sync
from wandb_standin import StandIn

from harness.__main__ import main
from harness.config import Config
from harness.logging import wandb_run
from harness.logging.schema import Row
from harness.logging.wandb_run import result_for_wandb, row_for_wandb
from harness.results.load import last_config, load_run
from harness.results.publish.publish_mllog import RULES

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_account")

Says = Callable[..., str]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Says:
    """Call `harness publish`; what it says, on one of the two."""

    def call(*words: str | Path, exit_code: int = 0) -> str:
        try:
            main(["publish", *map(str, words)])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        assert code == exit_code, output
        return output.err if code else output.out

    return call


def _cut(folder: Path, lines: int) -> None:
    """Leave so many rows."""
    rows = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:lines]))


def _rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [row_for_wandb(json.loads(line)) for line in lines]


def _sent(server: StandIn, run_id: str) -> list[dict[str, Any]]:
    history = server.run(run_id).history
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in history]


def test_wandb_holds_a_run_as_its_folder_tells_it_and_a_second_time_the_same(
    server: StandIn, tmp_path: Path, says: Says
) -> None:
    tags = {"log": {"tags": ["nightly"], "project": "bench"}}
    folder = made_run(tmp_path / "a-s0", sections=tags)
    said = says(folder, "--to", "wandb")
    page = f"{server.store.url}/lab/bench/runs/id-a-s0"
    assert f"a-s0: sent, 44 rows: {page}\n" in said
    assert said.splitlines()[-1].endswith(
        "1 run in 1 group, in lab/bench; panels that compare them: "
        "harness publish --to wandb-view --project bench --entity lab"
    )
    run = server.run("id-a-s0")
    assert _sent(server, "id-a-s0") == _rows(folder)
    assert result_for_wandb(json.loads((folder / "result.json").read_text())).items() <= (
        run.summary.items()
    )
    assert (run.state, run.fields["displayName"], run.fields["jobType"]) == (
        "finished", "a-s0", "train",
    )  # fmt: skip
    assert run.fields["tags"] == ["resnet50", "dali", "bf16", "nightly"]
    assert re.fullmatch(r"resnet50-8xH100-[0-9a-f]{8}", run.fields["groupName"])
    assert run.config["environment"] == ENVIRONMENT
    assert run.config["resolved"] == {"world_size": 8, "precision": "bf16", "peak_lr": 0.1}
    # Nothing of the machine that publishes: neither its load nor what it is.
    assert "wandb-events.jsonl" not in run.files
    assert "wandb-metadata.json" not in server.uploads
    before = deepcopy((run.files, run.fields))
    assert f"a-s0: is there already: {page}\n" in says(folder, "--to", "wandb")
    assert (run.files, run.fields) == before
    assert server.unknown == []
    assert not (folder / "wandb").exists()


def test_a_run_that_wandb_has_in_part_is_completed(
    server: StandIn, tmp_path: Path, says: Says
) -> None:
    folder = made_run(tmp_path / "a-s0")
    whole = (folder / "rows.jsonl").read_text()
    _cut(folder, 10)
    says(folder, "--to", "wandb")
    (folder / "rows.jsonl").write_text(whole)
    assert "completed, 34 of 44 rows were missing" in says(folder, "--to", "wandb")
    assert _sent(server, "id-a-s0") == _rows(folder)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"val_top1_pct": 76.5}))
    assert "completed, its result was not up to date" in says(folder, "--to", "wandb")
    assert server.run("id-a-s0").summary["result/val_top1_pct"] == 76.5
    server.run("id-a-s0").state = "crashed"
    assert "completed, its end was not up to date" in says(folder, "--to", "wandb")
    assert _sent(server, "id-a-s0") == _rows(folder)
    assert server.run("id-a-s0").state == "finished"


def test_other_rows_than_wandb_has_are_refused_and_another_project_takes_them(
    server: StandIn, tmp_path: Path, says: Says
) -> None:
    first = made_run(tmp_path / "first" / "a-s0")
    other = made_run(tmp_path / "other" / "a-s0", rate=900)
    says(first, "--to", "wandb", "--project", "bench")
    said = says(other, "--to", "wandb", "--project", "bench", exit_code=2)
    assert "W&B has other rows of this run, from row 1 on" in said
    assert len(said.splitlines()) == 1
    assert _sent(server, "id-a-s0") == _rows(first)
    _cut(first, 43)
    said = says(first, "--to", "wandb", "--project", "bench", exit_code=2)
    assert "other rows of this run, from row 44 on" in said
    assert "sent, 44 rows" in says(other, "--to", "wandb", "--project", "again")


def test_offline_is_written_for_sync(server: StandIn, tmp_path: Path, says: Says) -> None:
    folders = [made_run(tmp_path / f"a-s{seed}", seed=seed) for seed in (0, 1)]
    said = says(*folders, "--to", "wandb", "--mode", "offline")
    assert server.store.runs == {}
    assert "2 runs in 1 group, written but not sent" in said.splitlines()[-1]
    commands = re.findall(r"wandb sync \S+", said)
    assert len(commands) == 2
    run_sync(commands[1])
    assert _sent(server, "id-a-s1") == _rows(folders[1])


@pytest.mark.parametrize("switch", ["WANDB_MODE=offline", "WANDB_MODE=disabled", "mode = offline"])
def test_where_wandb_is_switched_off_nothing_is_sent(
    switch: str, server: StandIn, tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if switch.startswith("WANDB"):
        monkeypatch.setenv(*switch.split("="))
    else:
        Path("wandb").mkdir()
        Path("wandb/settings").write_text(f"[default]\n{switch}\n")
    asked = server.fail(status=500)
    folder = made_run(tmp_path / "a-s0")
    said = says(folder, "--to", "wandb", exit_code=2)
    assert "says that nothing is sent; unset it, or give --mode online or offline" in said
    assert "says that nothing is sent; unset it\n" in says("--to", "wandb-view", exit_code=2)
    said = says(folder, "--to", "wandb", "--mode", "offline")
    assert (asked.hits, server.store.runs) == (0, {})
    server.heal()
    run_sync(re.findall(r"wandb sync .*", said)[0])
    assert _sent(server, "id-a-s0") == _rows(folder)
    assert "is there already" in says(folder, "--to", "wandb", "--mode", "online")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_real_run_is_published_as_its_mirror_wrote_it(
    mode: str, server: StandIn, icons: Path, tmp_path: Path, says: Says
) -> None:
    done = train(*icons_flags(icons), "--log.wandb", mode, "--log.every-steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "icons-s0"
    if mode == "offline":
        command = re.search("wandb sync .*", done.stdout)
        assert command
        run_sync(f"cd {tmp_path} && {command[0]}")
    (run,) = server.store.runs.values()
    before = deepcopy((run.files, run.fields, run.raw_config))
    assert len(run.history) == len(load_run(folder).rows) > 2
    assert "is there already" in says(folder, "--to", "wandb")
    assert (run.files, run.fields, run.raw_config) == before
    says(folder, "--to", "wandb", "--project", "again")
    again = server.store.runs["lab", "again", run.id]
    assert _sent(server, run.id) == _rows(folder)
    assert again.config == run.config
    names = ("displayName", "groupName", "jobType", "tags")
    assert [again.fields[name] for name in names] == [run.fields[name] for name in names]
    ours = {key: value for key, value in again.summary.items() if key.startswith("result/")}
    assert ours.items() <= run.summary.items()


def test_the_group_is_the_cell_without_the_seed() -> None:
    def group(device: dict[str, Any], ranks: int = 8, **sections: Any) -> str:
        return wandb_run.group(Config.model_validate(sections), {"device": device}, ranks)

    h100, cpu = ENVIRONMENT["device"], {"type": "cpu", "name": "AMD EPYC 7B13 64-Core"}
    groups = [
        group(h100),
        group(h100, 16),
        group(h100 | {"name": "NVIDIA A100-SXM4-80GB"}),
        group(h100, train={"global_batch": 512}),
        group(h100, engine={"compile": False}),
        group(cpu, 2),
        group({}, 2),
    ]
    assert len(set(groups)) == len(groups)
    assert group(h100, run={"seed": 7, "name": "x"}, log={"tags": ["t"]}) == groups[0]
    names = [name.rpartition("-")[0].removeprefix("resnet50-") for name in groups]
    assert names == ["8xH100", "16xH100", "8xA100", "8xH100", "8xH100", "2xcpu", "2xunknown"]


def test_a_setting_that_changed_on_the_way_is_the_last_attempts() -> None:
    config = Config.model_validate({"run": {"name": "a"}})
    tries = [{"changed": {"data.threads": 3}}, {"changed": {"data.threads": 4, "log.tags": ["b"]}}]
    last = last_config(config, tries)
    assert (last.data.threads, last.log.tags) == (4, ("b",))
    assert last_config(config, []) == config


@pytest.mark.parametrize(
    ("words", "says_what"),
    [
        (["RUN", "--to", "wandb"], "a-s0: no W&B key found; run `wandb login`"),
        (["--to", "wandb-view", "--project", "p"], "no W&B key found; run `wandb login`"),
        (["--to", "wandb"], "name at least one run folder"),
        (["RUN", "--to", "wandb-view"], "name no run"),
        (["RUN", "--to", "mllog"], "--to mllog: name a new folder: --out DIR"),
        (["RUN", "--to", "wandb", "--out", "x"], "--out: does not belong to --to wandb"),
        (["RUN", "--to", "mllog", "--mode", "offline"], "--mode: does not belong to --to mllog"),
        (["wandb:lab/bench/x", "--to", "wandb"], "--to wandb takes run folders only"),
        (["ref:goyal2017-resnet50-b256", "--to", "mllog", "--out", "x"], "takes run folders only"),
        (["none", "--to", "mllog", "--out", "x"], "none: no such run folder"),
        (["RUN", "TWIN", "--to", "mllog", "--out", "x"], "a-s0: 2 of these runs have this name"),
        (["GOING", "--to", "wandb"], "is running at epoch 4.00"),
        (["OFFLINE", "--to", "wandb"], "is a folder of W&B's client"),
        (["RUN", "--to", "nowhere"], "--to: 'nowhere' is not one of 'wandb'"),
        (["RUN", "--to", "csv", "--out", "x"], "--to: 'csv' is not one of 'wandb'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says_what: str, tmp_path: Path, says: Says
) -> None:
    offline = tmp_path / "offline-run-20260101_000000-x"
    offline.mkdir()
    (offline / "run-x.wandb").touch()
    places = {
        "RUN": made_run(tmp_path / "a-s0"),
        "TWIN": made_run(tmp_path / "twin" / "a-s0"),
        "GOING": made_run(tmp_path / "a-s1", state="running"),
        "OFFLINE": offline,
    }
    said = says(*(places.get(word, word) for word in words), exit_code=2)
    assert says_what in said
    assert len(said.splitlines()) == 1


def test_a_server_that_takes_nothing(server: StandIn, tmp_path: Path, says: Says) -> None:
    folder = made_run(tmp_path / "a-s0")
    server.fail("UpsertBucket", status=403)
    said = says(folder, "--to", "wandb", exit_code=2)
    assert "a-s0: W&B did not take it: offline, as online failed" in said
    assert len(said.splitlines()) == 1
    server.heal()
    assert "sent, 44 rows" in says(folder, "--to", "wandb")


def test_a_view_has_the_panels_that_compare(server: StandIn, says: Says) -> None:
    said = says("--to", "wandb-view", "--project", "bench")
    assert f"workspace Compare: {server.store.url}/lab/bench?nw=" in said
    assert server.unknown == []
    (view,) = server.store.views.values()
    assert (view["entityName"], view["projectName"]) == ("lab", "bench")
    assert (view["displayName"], view["type"]) == ("Compare", "project-view")
    section = json.loads(view["spec"])["section"]
    (runset,) = section["runSets"]
    assert runset["grouping"] == [{"section": "run", "name": "group"}]
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    lines = [each["config"] for each in panels if each["viewType"] == "Run History Line Plot"]
    assert [(line["xAxis"], *line["metrics"]) for line in lines] == [
        ("progress/seconds", "val/top1_pct"),
        ("progress/epoch", "val/top1_pct"),
        ("progress/seconds", "perf/images_per_second"),
        ("progress/seconds", "perf/step_ms_p50"),
        ("progress/seconds", "perf/data_wait_pct"),
    ]
    (bars,) = [each["config"] for each in panels if each["viewType"] == "Bar Chart"]
    assert bars["metrics"] == ["result/images_per_second"]


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("wandb_workspaces", ["--to", "wandb-view"]),
        ("mlperf_logging", ["RUN", "--to", "mllog", "--out", "logs"]),
    ],
)
def test_a_package_that_is_missing(
    package: str, words: list[str], tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    folder = made_run(tmp_path / "a-s0")
    said = says(*(str(folder) if word == "RUN" else word for word in words), exit_code=2)
    assert "pip install 'imagenet-harness[publish]'" in said
    assert len(said.splitlines()) == 1


def _mllog(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    assert all(line.startswith(":::MLLOG ") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def _verdict(log: Path) -> tuple[bool, set[str]]:
    """What MLPerf's own checker says: whether all is well, and the keys of the rules broken."""
    checker = ["-m", "mlperf_logging.compliance_checker", "--usage", "training"]
    found = [*checker, "--ruleset", RULES, "--log_output", str(log.with_suffix(".check")), str(log)]
    done = subprocess.run([sys.executable, *found], capture_output=True, text=True)
    broken = re.findall(r"CHECK for '(\w+)' failed", done.stderr)
    broken += re.findall(r"occurrence of '(\w+)'", done.stderr)
    broken += re.findall(r"Failed checks for (\w+)", done.stderr)
    return done.returncode == 0, set(broken)


def test_mlperfs_checker_passes_a_log(tmp_path: Path, says: Says) -> None:
    """All of the open division's rules; of the closed one's, all but those on the decay.

    The closed division prescribes a polynomial decay down to 0.0001, which the harness lacks.
    """
    folder, out = made_run(tmp_path / "a-s0"), tmp_path / "logs"
    last = says(folder, "--to", "mllog", "--out", out).splitlines()[-1]
    assert f"1 log in {out}; check one with: python -m mlperf_logging.compliance_checker" in last
    log = out / "a-s0.txt"
    assert _verdict(log) == (True, set())
    closed = tmp_path / "closed.txt"
    closed.write_text(log.read_text().replace('"value": "open"', '"value": "closed"'))
    assert _verdict(closed) == (
        False, {"sgd_opt_end_learning_rate", "sgd_opt_learning_rate_decay_poly_power"},
    )  # fmt: skip


def test_a_log_below_the_target_says_so(tmp_path: Path, says: Says) -> None:
    """The closed division's rule on accuracy is broken, and no other one of the open division."""
    folder, out = made_run(tmp_path / "a-s0", top1_pct=70), tmp_path / "logs"
    says(folder, "--to", "mllog", "--out", out)
    (stop,) = [line for line in _mllog(out / "a-s0.txt") if line["key"] == "run_stop"]
    assert stop["metadata"]["status"] == "aborted"
    assert _verdict(out / "a-s0.txt") == (True, set())


def test_the_times_of_a_log_are_the_runs_own(tmp_path: Path, says: Says) -> None:
    """Two attempts, an hour apart: what the rows of each say counts from its own beginning."""
    began_s = datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp()
    tries = [{"attempt": 1, "began_at": began_s}, {"attempt": 2, "began_at": began_s + 3600}]
    folder = made_run(tmp_path / "a-s0", periods=4, epochs=2, attempts=tries, attempt=2)
    rows = [Row.model_validate_json(line) for line in (folder / "rows.jsonl").open()]
    second = [row.model_copy(update={"attempt": 2, "wall_s": row.wall_s - 5}) for row in rows[3:]]
    rows[3:] = second
    lines = "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    says(folder, "--to", "mllog", "--out", tmp_path / "logs")
    logged = [
        (line["key"], line["time_ms"] / 1000 - began_s, line["metadata"].get("epoch_num"))
        for line in _mllog(tmp_path / "logs" / "a-s0.txt")
        if line["event_type"] != "POINT_IN_TIME" or line["key"] == "eval_accuracy"
    ]
    walls = [row.wall_s + 3600 * (row.attempt == 2) for row in rows]
    assert [row.kind for row in rows] == ["train", "train", "val", "train", "train", "val"]
    epoch_2_s = max(walls[2], walls[3] - (rows[3].train_s - rows[2].train_s))
    expected = [
        ("init_start", 0, None),
        ("init_stop", 20, None),
        ("run_start", 20, None),
        ("epoch_start", 20, 1),
        ("epoch_stop", walls[1], 1),
        ("eval_start", walls[2] - 5, 1),
        ("eval_accuracy", walls[2], 1),
        ("eval_stop", walls[2], 1),
        ("epoch_start", epoch_2_s, 2),
        ("epoch_stop", walls[4], 2),
        ("eval_start", walls[5] - 5, 2),
        ("eval_accuracy", walls[5], 2),
        ("eval_stop", walls[5], 2),
        ("run_stop", walls[5], 2),
    ]
    assert [(key, epoch) for key, _, epoch in logged] == [
        (key, epoch) for key, _, epoch in expected
    ]
    assert [at for _, at, _ in logged] == pytest.approx([at for _, at, _ in expected], abs=0.002)


def test_a_run_that_only_scored_weights_has_no_mlperf_log(tmp_path: Path, says: Says) -> None:
    folder, out = made_run(tmp_path / "a-s0", mode="eval", epochs=1), tmp_path / "logs"
    *_, val = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text(val + "\n")
    said = says(folder, "--to", "mllog", "--out", out, exit_code=2)
    assert f"{folder}: did not train, only scored weights" in said
    assert not out.exists()
