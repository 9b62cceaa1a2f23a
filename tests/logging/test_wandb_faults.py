"""The mirror with the real client, while the server or the client fails, hangs or is gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb_standin
from wandb_helpers import (
    CHILD_ROWS,
    arguments,
    client_pid,
    end_child,
    kill_with_client,
    mirror_rows,
    release_all,
    row,
    run_sync,
    start_child,
    wait_until,
    write_rows,
)
from wandb_standin import StandIn

from harness.logging import wandb as mirror_module
from harness.logging.wandb import WandbMirror

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_account")


def _steps(server: StandIn) -> list[int]:
    return [one["progress/step"] for one in server.run("r1").history]


def _mirror_child_rows(folder: Path, **changes: Any) -> WandbMirror:
    """The next attempt of a child's run, to its end."""
    mirror = WandbMirror(**arguments(folder, **changes))
    mirror.release(CHILD_ROWS)
    assert mirror.finish({}, exit_code=0, timeout_s=60) == mirror.mode
    return mirror


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of the real client: keeps what it gets."""
    run = SimpleNamespace(starting_step=0, rows=[], summary={}, finish=lambda exit_code: None)
    run.log = run.rows.append
    monkeypatch.setattr(WandbMirror, "_start", lambda self, mode: run)
    return run


def test_rows_that_cannot_be_read_or_sent_are_counted(
    client: SimpleNamespace, tmp_path: Path
) -> None:
    _, status = mirror_rows(tmp_path, range(1, 4), released=5)
    assert status == "online; 2 of 5 rows not mirrored"
    assert [one["progress/step"] for one in client.rows] == [1, 2, 3]
    del client.log
    _, status = mirror_rows(tmp_path, range(1, 4))
    assert status.startswith("incomplete: AttributeError")
    assert status.endswith("; 3 of 3 rows not mirrored")


def test_released_rows_are_sent_at_once_and_live_rows_now_and_then(
    client: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "LIVE_EVERY_S", 1e9)
    write_rows(tmp_path, map(row, range(9)))
    mirror = WandbMirror(**arguments(tmp_path))
    mirror.live(row(1))
    wait_until(lambda: client.summary.get("live/progress/step") == 1, "the first row is shown")
    mirror.live(row(2))
    mirror.live(row(3))
    time.sleep(0.1)
    assert client.summary["live/progress/step"] == 1
    for rows in (5, 2, 9):
        mirror.release(rows)
        wait_until(lambda rows=rows: len(client.rows) >= rows, "the rows have come")
    assert client.summary["live/progress/step"] == 3
    assert mirror.finish({}, exit_code=0) == "online"
    assert [one["progress/step"] for one in client.rows] == list(range(9))


def test_a_server_error_is_retried(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mirror_module.SETTINGS, "finish_timeout", 30.0)
    fault = server.fail("file_stream", status=500, times=1)
    _, status = mirror_rows(tmp_path, range(1, 6))
    assert (status, fault.hits) == ("online", 1)
    assert len(server.run("r1").history) == 5


@pytest.mark.parametrize("http_status", [401, 404])
def test_a_server_that_takes_no_more_rows_is_told_and_sync_brings_them(
    http_status: int, server: StandIn, tmp_path: Path
) -> None:
    server.fail("file_stream", status=http_status)
    mirror, status = mirror_rows(tmp_path, range(1, 6))
    assert status.startswith("incomplete: ConnectionError: filestream: fatal error")
    assert str(http_status) in status
    server.heal()
    run_sync(mirror.sync_command)
    assert _steps(server) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_server_errors_without_end_cost_nothing_that_sync_does_not_bring_back(
    server: StandIn, tmp_path: Path
) -> None:
    server.fail("file_stream", status=500)
    mirror, status = mirror_rows(tmp_path, range(1, 6))
    assert status == "incomplete: TimeoutError: Timed out finishing run."
    server.heal()
    run_sync(mirror.sync_command)
    assert len(server.run("r1").history) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("timeout_s", "at_most_s"), [(5, 8), (0.8, 3)])
def test_a_server_that_hangs_holds_up_nothing_and_the_next_attempt_sends_the_rest(
    timeout_s: float, at_most_s: float, server: StandIn, tmp_path: Path
) -> None:
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    server.hang()
    end = end_child(child, timeout_s)
    assert end["status"].startswith("incomplete: "), "no request was answered"
    assert end["finish_s"] < at_most_s
    assert end["exit_s"] < 5
    assert (child.returncode, end["errors"]) == (7, "")
    server.heal()
    _mirror_child_rows(tmp_path)
    assert _steps(server) == list(range(CHILD_ROWS))


@pytest.mark.slow
@pytest.mark.parametrize(("timeout_s", "at_most_s"), [(5, 8), (0.8, 3)])
def test_a_server_that_hangs_from_the_start_holds_up_nothing(
    timeout_s: float, at_most_s: float, server: StandIn, tmp_path: Path
) -> None:
    fault = server.hang()
    child = start_child(tmp_path)
    wait_until(lambda: fault.hits, "the client has asked")
    end = end_child(child, timeout_s)
    missing = f"{CHILD_ROWS} of {CHILD_ROWS} rows not mirrored"
    assert end["status"] == f"incomplete: the client did not end within {timeout_s} s; {missing}"
    assert end["finish_s"] < at_most_s
    assert end["exit_s"] < 5
    assert (child.returncode, end["errors"]) == (7, "")
    server.heal()
    _mirror_child_rows(tmp_path)
    assert _steps(server) == list(range(CHILD_ROWS))


@pytest.mark.parametrize("timeout_s", [0.8, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_that_dies_or_stops_holds_up_nothing(
    how: signal.Signals, timeout_s: float, server: StandIn, tmp_path: Path
) -> None:
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    os.kill(client_pid(child), how)
    end = end_child(child, timeout_s)
    assert end["status"].startswith("incomplete: ")
    assert end["finish_s"] < timeout_s + 2.5
    assert end["exit_s"] < 5
    assert child.returncode == 7


def test_a_killed_attempt_is_continued_where_the_server_is(server: StandIn, tmp_path: Path) -> None:
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    release_all(child, timeout_s=60)
    kill_with_client(child)
    had = _steps(server)
    assert 0 < len(had) <= CHILD_ROWS
    _mirror_child_rows(tmp_path)
    assert _steps(server) == list(range(CHILD_ROWS))
    assert server.run("r1").fields["tags"] == ["resnet18", "demo"]


def test_what_a_killed_offline_attempt_lost_is_in_the_next_ones_folder(
    server: StandIn, tmp_path: Path
) -> None:
    child = start_child(tmp_path, mode="offline")
    wait_until(lambda: list(tmp_path.glob("wandb/offline-run-*/*.wandb")), "the client writes")
    release_all(child, timeout_s=60)
    kill_with_client(child)
    run_sync(_mirror_child_rows(tmp_path, mode="offline").sync_command)
    assert _steps(server) == list(range(CHILD_ROWS))


@pytest.mark.slow
def test_the_stop_button_stops_no_training(server: StandIn, tmp_path: Path) -> None:
    server.store.runs["lab", "bench", "r1"] = wandb_standin.Run("lab", "bench", "r1", stopped=True)
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    time.sleep(17)  # the client asks every 15 s
    assert end_child(child)["status"] == "online"
    assert child.returncode == 7
