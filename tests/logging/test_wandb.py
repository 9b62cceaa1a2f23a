"""The mirror with the real client: modes, what is sent, and what can be read back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb_standin
from wandb_helpers import CHILD, CHILD_ROWS, ROOT, arguments, mirror_rows, row, run_sync, write_rows
from wandb_standin import StandIn

from harness.logging import wandb as mirror_module
from harness.logging.schema import ROW_KEYS, Result
from harness.logging.wandb import WandbMirror
from harness.logging.wandb_run import choose_mode, result_for_wandb, row_for_wandb

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_account")


PINNED = {
    "progress": "images_seen:images epoch train_s:seconds step attempt wall_s:attempt_seconds",
    "train": "loss lr train_top1_pct:top1_pct train_top5_pct:top5_pct loss_scale",
    "perf": "images_per_second step_ms_mean step_ms_p50 step_ms_p95 data_wait_pct "
    "compute_ms_median compute_ms_slowest slowest_rank data_wait_most_pct power_w "
    "images_per_joule mfu_pct memory_pct",
    "mem": "memory_peak_gib:peak_gib",
    "val": "val_loss:loss val_top1_pct:top1_pct val_top5_pct:top5_pct val_images:images "
    "val_s:seconds",
}
"""Keys that people's dashboards read, by section: the field, then its key where that differs."""


def test_keys_in_wandb_stay_as_they_are() -> None:
    pinned = {
        field: f"{section}/{key or field}"
        for section, pairs in PINNED.items()
        for field, _, key in (pair.partition(":") for pair in pairs.split())
    }
    assert pinned.items() <= ROW_KEYS.items()
    assert {"schema_version", "kind", "events"} & ROW_KEYS.keys() == set()
    assert len(set(ROW_KEYS.values())) == len(ROW_KEYS)


def test_a_row_leaves_out_nulls() -> None:
    sent = row_for_wandb(row(2, val_top1_pct=0.0))
    assert sent["val/top1_pct"] == 0.0
    assert "train/loss" not in sent
    assert {"progress/images", "progress/epoch", "progress/seconds", "progress/step"} <= sent.keys()


def test_a_summary_is_scalars_only() -> None:
    result = {
        "model": "resnet18",
        "val_top1_pct": 75.5,
        "compiled": True,
        "peak_lr": None,
        "notes": ["a"],
        "digests": [{"epoch": 0}],
        "accounts_s": {"train": 2.0},
        "wandb": "online",
    }
    assert result.keys() <= Result.model_fields.keys()
    assert result_for_wandb(result) == {
        "result/model": "resnet18",
        "result/val_top1_pct": 75.5,
        "result/compiled": True,
        "result/account_train_s": 2.0,
    }


def test_a_run_can_be_read_back(server: StandIn, tmp_path: Path) -> None:
    mirror, status = mirror_rows(tmp_path, range(1, 21))
    assert (status, mirror.sync_command) == ("online", None)
    assert server.unknown == []
    assert not [name for name, raw in server.uploads.items() if wandb_standin.KEY.encode() in raw]

    import wandb

    run = wandb.Api().run("lab/bench/r1")
    history = list(run.scan_history())
    wandb.teardown()
    assert (run.name, run.state) == ("rn18-s0", "finished")
    assert (run.group, run.job_type) == ("rn18", "train")
    assert run.tags == ["resnet18", "demo"]
    assert run.config == arguments(tmp_path)["config"]
    assert [one["progress/step"] for one in history] == list(range(1, 21))
    assert [one["train/loss"] for one in history] == [1 / step for step in range(1, 21)]
    assert all(row_for_wandb(row(one["progress/step"])).items() <= one.items() for one in history)
    assert run.summary["result/val_top1_pct"] == 75.0


def _steps(server: StandIn) -> list[int]:
    return [one["progress/step"] for one in server.run("r1").history]


def test_a_restarted_run_shows_each_step_once(server: StandIn, tmp_path: Path) -> None:
    mirror_rows(tmp_path, range(1, 15), released=10)
    _, status = mirror_rows(
        tmp_path, range(1, 21), attempt=2, config={"train": {"global_batch": 128}}
    )
    assert status == "online"
    assert len(server.store.runs) == 1
    run = server.run("r1")
    assert _steps(server) == list(range(1, 21))
    assert [one["progress/attempt"] for one in run.history] == [1] * 10 + [2] * 10
    assert run.config["train"] == {"global_batch": 128}
    assert run.fields["tags"] == ["resnet18", "demo"]
    assert run.state == "finished"


def test_rows_that_the_server_has_already_are_passed_over(server: StandIn, tmp_path: Path) -> None:
    mirror_rows(tmp_path, range(1, 11))
    assert mirror_rows(tmp_path, range(1, 21), released=4)[1] == "online"
    assert _steps(server) == list(range(1, 11))
    assert mirror_rows(tmp_path, range(1, 21), released=13)[1] == "online"
    assert _steps(server) == list(range(1, 14))


def test_a_row_that_is_not_final_is_shown_in_the_summary_only(
    server: StandIn, tmp_path: Path
) -> None:
    write_rows(tmp_path, [row(1), row(2)])
    mirror = WandbMirror(**arguments(tmp_path))
    for step in (1, 2):
        mirror.live(row(step))
    assert mirror.finish({}, exit_code=0, timeout_s=60) == "online"
    assert server.run("r1").history == []
    assert server.run("r1").summary["live/progress/step"] == 2
    mirror_rows(tmp_path, range(1, 3))
    assert _steps(server) == [1, 2]


def test_many_rows_released_at_once_all_come_in_order(server: StandIn, tmp_path: Path) -> None:
    _, status = mirror_rows(tmp_path, range(1, 2001))
    assert (status, _steps(server)) == ("online", list(range(1, 2001)))


def test_the_exit_code_is_told(server: StandIn, tmp_path: Path) -> None:
    WandbMirror(**arguments(tmp_path)).finish({}, exit_code=3, timeout_s=60)
    assert server.run("r1").exit_code == 3


@pytest.mark.parametrize(
    ("asked", "environ", "mode"),
    [
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "off"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("off", {"WANDB_API_KEY": "k"}, "off"),
    ],
)
def test_choose_mode(asked: Any, environ: dict[str, str], mode: str) -> None:
    assert choose_mode(asked, environ) == (mode, None)


def test_without_a_key_auto_is_offline_and_says_so() -> None:
    mode, why = choose_mode("auto", {})
    assert mode == "offline"
    assert why
    assert "WANDB_API_KEY" in why
    assert len(why.splitlines()) == 1


@pytest.mark.parametrize(
    ("server", "machine", "mode"),
    [
        (None, "api.wandb.ai", "online"),
        (None, "github.com", "offline"),
        ("https://wandb.example.org", "wandb.example.org", "online"),
        ("https://wandb.example.org", "api.wandb.ai", "offline"),
    ],
)
def test_finds_the_key_that_wandb_login_wrote(
    server: str | None, machine: str, mode: str, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password k\n")
    environ = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    if server:
        (tmp_path / "settings").write_text(f"[default]\nbase_url = {server}\n")
    assert choose_mode("auto", environ)[0] == mode


@pytest.mark.slow
@pytest.mark.parametrize("uploaded", [False, True])
def test_the_last_offline_attempt_is_the_whole_run(
    uploaded: bool, server: StandIn, tmp_path: Path
) -> None:
    folder = tmp_path / "run folder"
    folder.mkdir()
    # Within one second, after which the client names its folders.
    for attempt in (1, 2, 3):
        mirror, status = mirror_rows(folder, range(1, 7 * attempt), attempt=attempt, mode="offline")
        assert status == "offline"
        if uploaded and attempt == 2:
            run_sync(mirror.sync_command)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert len(list(folder.glob("wandb/superseded/*"))) == 2
    assert bool(server.store.runs) == uploaded
    run_sync(mirror.sync_command)
    assert _steps(server) == list(range(1, 21))
    assert server.run("r1").summary["result/val_top1_pct"] == 75.0


def test_offline_after_online_is_the_whole_run_and_online_again_goes_on(
    server: StandIn, tmp_path: Path
) -> None:
    mirror_rows(tmp_path, range(1, 11))
    mirror, _ = mirror_rows(tmp_path, range(1, 16), mode="offline")
    run_sync(mirror.sync_command)
    assert _steps(server) == list(range(1, 16))
    mirror_rows(tmp_path, range(1, 21))
    assert _steps(server) == list(range(1, 21))
    assert not list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.parametrize("key", [wandb_standin.KEY, None])
def test_online_falls_back_to_offline(
    key: str | None, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail(status=401)
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY")
    mirror, status = mirror_rows(tmp_path, range(1, 6))
    assert status.startswith("offline, as online failed: ")
    assert len(status.splitlines()) == 1
    server.heal()
    monkeypatch.setenv("WANDB_API_KEY", wandb_standin.KEY)
    run_sync(mirror.sync_command)
    assert len(server.run("r1").history) == 5


def test_a_refused_connection_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", wandb_standin.KEY)
    monkeypatch.setitem(mirror_module.SETTINGS, "init_timeout", 1.0)
    _, status = mirror_rows(tmp_path, range(1, 6))
    assert status.startswith("offline, as online failed: CommError")


def test_on_a_terminal_nobody_is_asked_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    user, terminal = pty.openpty()
    os.write(user, b"60\n")
    write_rows(tmp_path, map(row, range(CHILD_ROWS)))
    command = [sys.executable, "-c", CHILD, json.dumps(arguments(tmp_path), default=str)]
    done = subprocess.run(
        command, cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["status"].startswith("offline, as online failed: UsageError")
    os.close(terminal)
    os.close(user)
