"""Runs read back from W&B, with the real client: equal to those of their folders, and never a hang.

The runs are published once for all tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import ENVIRONMENT, made_run
from wandb_standin import KEY, StandIn

from harness.errors import BadInput
from harness.logging import wandb_run
from harness.logging.wandb import WandbMirror
from harness.results.load import load_run
from harness.results.measured import Measured, identity
from harness.results.publish.publish_wandb import to_wandb
from harness.results.sides import read_sides
from harness.results.source import measured, runs_at
from harness.results.stats.compare import compare_cells
from harness.results.stats.metrics import metrics
from harness.results.wandb import api

# 80.0 comes back as 80, nulls and what is nested must come back as they are.
DEVICE = ENVIRONMENT["device"] | {"memory_gib": 80.0}
VERSIONS = ENVIRONMENT["versions"] | {"nccl": None}
SEEDS = (0, 1)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in, and no account but one there."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, StandIn() as server:
        for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_ERROR_REPORTING", "true")  # restored: the client turns it off
        patch.setenv("WANDB_SILENT", "true")
        for name, value in server.environ().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def healed(server: StandIn) -> Iterator[None]:
    yield
    server.heal()


@pytest.fixture(scope="module")
def folders(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one cell and one of another, all of them published."""
    root = tmp_path_factory.mktemp("runs")
    about: dict[str, Any] = {"environment": {"device": DEVICE, "versions": VERSIONS}}
    tags = {"log": {"tags": ["nightly", "node 1"]}}
    made = [
        made_run(root / f"a-s{seed}", seed=seed, sections=tags, train_digest=None, **about)
        for seed in SEEDS
    ]
    slower = {"train": {"global_batch": 512}, "data": {"crop_area": (0.5, 1)}}
    made.append(made_run(root / "b-s0", sections=slower, rate=900.0, **about))
    for folder in made:
        to_wandb(run := load_run(folder), measured(run), "online", "bench", None)
    assert server.unknown == []
    return made


def _group(server: StandIn, run_id: str) -> str:
    return str(server.run(run_id).fields["groupName"])


def _assert_equal(there: Measured, here: Measured) -> None:
    assert there.name == here.name
    assert there.config == here.config
    assert identity(there) == identity(here)
    _assert_equal_columns(there, here)
    same = {name for name, value in here.result.items() if there.result.get(name) == value}
    lists = {name for name, value in here.result.items() if isinstance(value, list)}
    assert here.result.keys() - same == lists | {"wandb"}


def _assert_equal_columns(there: Measured, here: Measured) -> None:
    for one, other in ((there.train, here.train), (there.val, here.val)):
        assert one.keys() == other.keys()
        for name in one:
            assert len(one[name]), name
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_is_that_of_its_folder(folders: list[Path]) -> None:
    (there,) = runs_at("wandb:lab/bench/id-a-s0")
    (here,) = runs_at(str(folders[0]))
    assert there.address == "wandb:lab/bench/id-a-s0"
    _assert_equal(there, here)


def test_a_query_finds_a_cell(server: StandIn, folders: list[Path]) -> None:
    group = _group(server, "id-a-s0")
    asked = f"wandb:lab/bench?group={group}&tag=nightly&tag=node+1&state=finished&job_type=train"
    found = runs_at(asked)
    assert [run.address for run in found] == [f"wandb:lab/bench/id-a-s{n}" for n in SEEDS]
    for there, folder in zip(found, folders, strict=False):
        _assert_equal(there, runs_at(str(folder))[0])
    assert [run.name for run in runs_at("wandb:lab/bench?name=b-s0")] == ["b-s0"]


def test_verdicts_are_those_of_the_folders_and_a_cell_may_mix(
    server: StandIn, folders: list[Path]
) -> None:
    there = [f"wandb:lab/bench?group={_group(server, f'id-{cell}-s0')}" for cell in "ab"]
    here = [str(folders[0].parent / f"{cell}-s*") for cell in "ab"]
    known, comparisons = metrics(None), []
    for words in (there, here):
        new, base = read_sides(words, report=False)[0]
        comparisons.append(compare_cells(new, base, known, "images_per_second"))
    assert comparisons[0].findings == comparisons[1].findings
    assert comparisons[0].doubts == comparisons[1].doubts
    assert len(comparisons[0].findings) > 2
    mixed = ["wandb:lab/bench/id-a-s0", *map(str, folders[1:])]
    assert [len(cell.runs) for cell in read_sides(mixed, report=False)[0]] == [2, 1]


@pytest.fixture
def offline(folders: list[Path]) -> Path:
    to_wandb(run := load_run(folders[0]), measured(run), "offline", "bench", None)
    (written,) = folders[0].glob("wandb/offline-run-*")
    return written


def test_what_the_client_wrote_offline_is_the_run(folders: list[Path], offline: Path) -> None:
    (there,) = runs_at(str(offline))
    assert there.address == str(offline)
    _assert_equal(there, runs_at(str(folders[0]))[0])


def test_an_offline_folder_that_is_torn_has_no_end(offline: Path) -> None:
    (file,) = offline.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BadInput, match=f"{offline}: has no end: its run was killed"):
        runs_at(str(offline))
    file.write_bytes(b"nothing that W&B wrote")
    with pytest.raises(BadInput, match="W&B's client cannot read it"):
        runs_at(str(offline))
    (offline / "second.wandb").touch()
    with pytest.raises(BadInput, match="holds 2 files"):
        runs_at(str(offline))


def test_an_offline_file_that_is_not_read_in_time(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.results.wandb.rows.TIMEOUT_S", 0.01)
    with pytest.raises(BadInput, match=r"did not read it within 0\.01 s"):
        runs_at(str(offline))


def test_a_run_that_is_still_running(server: StandIn, folders: list[Path]) -> None:
    server.run("id-a-s1").state = "running"
    with pytest.raises(BadInput, match="wandb:lab/bench/id-a-s1: is running"):
        runs_at("wandb:lab/bench/id-a-s1")
    server.run("id-a-s1").state = "finished"


def test_a_run_that_another_program_wrote(tmp_path: Path) -> None:
    for config in ({}, {"model": {"name": "vit"}}):
        mirror = WandbMirror(
            mode="online", run_id="x", name="x", group="g", job_type="train", tags=(),
            config=config, project="bench", entity=None, folder=tmp_path, rows=tmp_path / "none",
        )  # fmt: skip
        assert mirror.finish({"val_top1_pct": 1.0}, exit_code=0, timeout_s=60) == "online"
    with pytest.raises(BadInput, match=r"lacks result/model: .*harness publish RUN_FOLDER"):
        runs_at("wandb:lab/bench/x")


def _mirror(folder: Path, rows: int, where: Path) -> None:
    """Send so many of a run's rows, as one of its attempts would."""
    run = runs_at(str(folder))[0]
    about = wandb_run.about(
        run.config, run.environment, world_size=8, precision="bf16", peak_lr=0.1
    )
    mirror = WandbMirror(
        mode="online", run_id="part", name="part", project="bench", entity=None, folder=where,
        rows=folder / "rows.jsonl", **about,
    )  # fmt: skip
    mirror.release(rows)
    assert mirror.finish(run.result, exit_code=0, timeout_s=60) == "online"


def test_a_run_of_which_rows_are_missing(folders: list[Path], tmp_path: Path) -> None:
    _mirror(folders[0], 20, tmp_path)
    with pytest.raises(BadInput, match="has rows up to step 950 of 2,000 only; complete it"):
        runs_at("wandb:lab/bench/part")
    _mirror(folders[0], 44, tmp_path)
    _assert_equal_columns(runs_at("wandb:lab/bench/part")[0], runs_at(str(folders[0]))[0])
    (second,) = tmp_path.glob("wandb/run-*")
    with pytest.raises(BadInput, match="lacks the rows of earlier attempts; read them from W&B"):
        runs_at(str(second))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("wandb:lab/bench/none", "W&B has no such run"),
        ("wandb:lab/none/id-a-s0", "W&B has no such run"),
        ("wandb:lab/bench?group=none", "W&B has no such run"),
        ("wandb:lab/bench", "write wandb:ENTITY/PROJECT/RUN_ID"),
        ("wandb:bench/id-a-s0", "write wandb:ENTITY/PROJECT/RUN_ID"),
        ("wandb:lab/bench?groop=a", "groop: give one of group, tag, name, job_type, state"),
        ("wandb:lab/bench?group=", "group: give one of"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, says: str, folders: list[Path]) -> None:
    with pytest.raises(BadInput) as error:
        runs_at(address)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{address}: ")


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(BadInput, match="no W&B key found; run `wandb login`"):
        runs_at("wandb:lab/bench/id-a-s0")


def test_a_key_that_is_refused(server: StandIn) -> None:
    server.fail(status=401)
    with pytest.raises(BadInput, match="does not accept the key; run `wandb login`") as error:
        runs_at("wandb:lab/bench/id-a-s0")
    assert KEY not in str(error.value)


@pytest.mark.parametrize("operation", ["Viewer", "Run", "HistoryPage"])
@pytest.mark.parametrize("hangs", [True, False])
def test_a_server_that_hangs_or_fails_keeps_nobody(
    operation: str,
    hangs: bool,
    server: StandIn,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 1)
    fault = server.hang(operation) if hangs else server.fail(operation, status=500)
    began = time.monotonic()
    with pytest.raises(BadInput) as error:
        runs_at("wandb:lab/bench/id-a-s0")
    assert time.monotonic() - began < 10
    assert fault.hits
    assert "1 s" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
