"""The mirror with the real client, while the server or the client fails, hangs or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb_standin
from wandb_helpers import arguments, end_child, mirror_rows, run_sync, start_child, wait_until
from wandb_standin import StandIn

from harness.record import wandb as mirror_module
from harness.record.wandb import WandbMirror

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.usefixtures("no_account")


def test_the_oldest_rows_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    may_start, got = threading.Event(), []
    run = SimpleNamespace(log=got.append, summary={}, finish=lambda exit_code: None)

    def start(self: WandbMirror, mode: str) -> Any:
        may_start.wait()
        return run

    monkeypatch.setattr(mirror_module, "QUEUE_ROWS", 8)
    monkeypatch.setattr(WandbMirror, "_start", start)
    mirror = WandbMirror(**arguments(Path("unused")))
    for step in range(1, 21):
        mirror.log({"step": step})
    threading.Timer(0.2, may_start.set).start()
    assert mirror.finish({}, exit_code=0) == "online; 13 of 20 rows not mirrored"
    assert [one["progress/step"] for one in got] == list(range(14, 21))


def test_a_server_error_is_retried(server: StandIn, tmp_path: Path) -> None:
    fault = server.fail("file_stream", status=500, times=1)
    _, status = mirror_rows(tmp_path, range(1, 6))
    assert (status, fault.hits) == ("online", 1)
    assert len(server.run("r1").history) == 5


def test_server_errors_without_end_cost_nothing_that_sync_does_not_bring_back(
    server: StandIn, tmp_path: Path
) -> None:
    server.fail("file_stream", status=500)
    mirror, status = mirror_rows(tmp_path, range(1, 6))
    assert status == "incomplete: TimeoutError: Timed out finishing run."
    server.heal()
    run_sync(mirror.sync_command)
    assert len(server.run("r1").history) == 5


def test_a_server_that_hangs_holds_up_nothing(server: StandIn, tmp_path: Path) -> None:
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    fault = server.hang()
    end = end_child(child)
    assert fault.hits
    assert end["status"] == "incomplete: TimeoutError: Timed out finishing run."
    assert end["finish_s"] < 10
    assert end["exit_s"] < 5
    assert (child.returncode, end["errors"]) == (7, "")
    server.heal()
    run_sync(end["sync"])
    # Rows that had come before are there twice: an upload goes on where the server is.
    assert {one["progress/images"] for one in server.run("r1").history} == set(range(1001))


def test_a_server_that_hangs_from_the_start_holds_up_nothing(
    server: StandIn, tmp_path: Path
) -> None:
    fault = server.hang()
    child = start_child(tmp_path)
    wait_until(lambda: fault.hits, "the client has asked")
    end = end_child(child)
    assert end["status"].startswith("incomplete: the client did not end within 5 s; 1001 of 1001")
    assert end["finish_s"] < 10
    assert end["exit_s"] < 5
    assert (child.returncode, end["errors"]) == (7, "")


def _client_pid(parent: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{parent.pid}/task").glob("*/children")
    (pid,) = [int(pid) for listed in children for pid in listed.read_text().split()]
    return pid


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_client_that_dies_or_stops_holds_up_nothing(
    how: signal.Signals, server: StandIn, tmp_path: Path
) -> None:
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    os.kill(_client_pid(child), how)
    end = end_child(child)
    assert end["status"].startswith("incomplete: ")
    assert end["finish_s"] < 10
    assert end["exit_s"] < 5
    assert child.returncode == 7


@pytest.mark.slow
def test_the_stop_button_stops_no_training(server: StandIn, tmp_path: Path) -> None:
    server.store.runs["lab", "bench", "r1"] = wandb_standin.Run("lab", "bench", "r1", stopped=True)
    child = start_child(tmp_path)
    wait_until(lambda: server.has_rows("r1"), "a row has come")
    time.sleep(17)  # the client asks every 15 s
    assert end_child(child)["status"] == "online"
    assert child.returncode == 7
