"""The mirror with the real client: modes, what is sent, and what can be read back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_standin
from wandb_helpers import CHILD, CHILD_ROWS, ROOT, arguments, mirror_rows, row, run_sync, write_rows
from wandb_standin import StandIn

from harness.config import Log
from harness.config.load import load
from harness.config.wandb_says import refuse_other_run
from harness.errors import BadInput
from harness.logging import wandb as mirror_module
from harness.logging import wandb_run
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
    ("asked", "environ", "mode", "reason"),
    [
        ("auto", {"WANDB_API_KEY": "k"}, "online", None),
        ("auto", {"WANDB_API_KEY": ""}, "offline", "no key found"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline", None),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "off", None),
        ("auto", {"WANDB_MODE": "online"}, "online", None),
        ("online", {"WANDB_MODE": "offline"}, "online", "online counts, not WANDB_MODE=offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline", "offline counts, not WANDB_MODE=online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline", None),
        ("off", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "off", None),
    ],
)
def test_choose_mode(asked: Any, environ: dict[str, str], mode: str, reason: str | None) -> None:
    chosen, why = choose_mode(asked, environ)
    assert (chosen, reason or "") == (mode, reason if why and reason in why else "")
    assert (why is None) == (reason is None)


@pytest.mark.parametrize("began", ["offline", "off"])
def test_what_began_without_wandb_goes_on_without_it(began: Any) -> None:
    key = {"WANDB_API_KEY": "k"}
    mode, why = choose_mode("auto", key, began)
    assert (mode, str(why).partition(",")[0]) == (began, began)
    assert choose_mode("online", key, began)[0] == "online"
    assert choose_mode("auto", key | {"WANDB_MODE": "online"}, began)[0] == "online"
    assert choose_mode("auto", key, "online")[0] == "online"


GLOBAL, NEAR, HIDDEN = "config/settings", "wandb/settings", ".wandb/settings"
SWITCHES: list[tuple[dict[str, str], dict[str, str]]] = [
    *[({"WANDB_MODE": mode}, {}) for mode in ("online", "run", "offline", "dryrun", "disabled")],
    *[({}, {NEAR: f"mode = {mode}"}) for mode in ("online", "offline", "dryrun", "disabled")],
    ({}, {GLOBAL: "mode = offline"}),
    ({}, {GLOBAL: "mode = offline", NEAR: "mode = online"}),
    ({}, {GLOBAL: "mode = online\nproject = far", HIDDEN: "mode: disabled", NEAR: "project = no"}),
    ({"WANDB_MODE": "disabled"}, {NEAR: "mode = online"}),
    ({"WANDB_MODE": "online"}, {GLOBAL: "mode = offline"}),
    ({"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_TAGS": "a,b c"}, {GLOBAL: "mode = run"}),
    ({"WANDB_PROJECT": "p"}, {GLOBAL: "project = far\nentity = them\nmode = run"}),
    ({"WANDB_TAGS": "x,y"}, {GLOBAL: "project = far", NEAR: "project = near\nmode = run"}),
    ({"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:1"}, {}),
    ({"WANDB_MODE": "online"}, {GLOBAL: "base_url = http://127.0.0.1:2"}),
    ({"WANDB_MODE": "online"}, {NEAR: "base_url = http://127.0.0.1:3"}),
]
"""Variables, and files in the working folder and in that of WANDB_CONFIG_DIR."""


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Set variables and write files of W&B's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("WANDB_DIR")

    def write(variables: dict[str, str], files: dict[str, str]) -> None:
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        for name, text in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(f"[default]\n{text}\n")

    return write


@pytest.mark.parametrize(("variables", "files"), SWITCHES)
def test_a_switch_means_what_it_means_to_the_client(
    variables: dict[str, str], files: dict[str, str], switch: Callable[..., None]
) -> None:
    switch(variables, files)
    import wandb

    wandb.teardown()
    client = wandb.setup().settings
    log = load([], label="x").log
    assert log.wandb == ("off" if client._noop else "offline" if client._offline else "online")
    assert log.project == (client.project or Log().project)
    assert log.entity == client.entity
    assert log.tags == (client.run_tags or ())
    if client.base_url.startswith("http://127"):
        assert wandb_run.server(os.environ) == client.base_url
    flags = {"wandb": "offline", "project": "mine", "entity": "me", "tags": "t"}
    given = load([word for name, text in flags.items() for word in (f"--log.{name}", text)])
    assert {name: str(getattr(given.log, name)) for name in flags} == flags | {"tags": "('t',)"}


@pytest.mark.parametrize("value", ["true", "1", "YES", "maybe"])
def test_other_trainers_variable_for_none_is_heeded(
    value: str, switch: Callable[..., None]
) -> None:
    switch({"WANDB_DISABLED": value, "WANDB_MODE": "online"}, {})
    assert load([]).log.wandb == "off"
    switch({"WANDB_DISABLED": "false"}, {})
    assert load([]).log.wandb == "online"


@pytest.mark.slow
def test_what_the_command_writes_is_read(switch: Callable[..., None], tmp_path: Path) -> None:
    switch({"WANDB_DIR": str(tmp_path / "client"), "WANDB_API_KEY": "k"}, {})
    wandb_command = f"{Path(sys.executable).parent}/wandb"
    subprocess.run([wandb_command, "offline"], check=True, capture_output=True)
    assert list(tmp_path.glob("**/wandb/settings"))
    assert load([]).log.wandb == "offline"


@pytest.mark.parametrize(
    ("variables", "files", "says"),
    [
        ({"WANDB_MODE": "shared"}, {}, "WANDB_MODE: must be one of online, run, offline, dryrun"),
        ({"WANDB_MODE": "Offline"}, {}, "WANDB_MODE: must be one of"),
        ({}, {NEAR: "mode = off"}, "wandb/settings: mode: must be one of"),
        ({}, {NEAR: "[default]\nmode = offline"}, "wandb/settings: "),
        ({"WANDB_PROJECT": "a/b"}, {}, "WANDB_PROJECT: log.project: "),
        ({}, {GLOBAL: "project = a:b"}, "config/settings: project: log.project: "),
        ({"WANDB_RUN_ID": "mine"}, {}, "WANDB_RUN_ID=mine: "),
        ({}, {NEAR: "run_id = mine"}, "wandb/settings: run_id=mine: "),
        ({"WANDB_RESUME": "must"}, {}, "WANDB_RESUME=must: "),
        ({"WANDB_RESUME": "never"}, {}, "WANDB_RESUME=never: "),
        ({}, {NEAR: "resume = allow"}, "wandb/settings: resume=allow: "),
        ({"WANDB_RESUME_FROM": "r?_step=1"}, {}, "WANDB_RESUME_FROM=r?_step=1: "),
        ({"WANDB_FORK_FROM": "r?_step=1"}, {}, "WANDB_FORK_FROM=r?_step=1: "),
        ({"WANDB_SWEEP_ID": "s"}, {}, "WANDB_SWEEP_ID=s: "),
        ({"WANDB_LAUNCH": "true"}, {}, "WANDB_LAUNCH=true: "),
    ],
)
def test_a_switch_that_cannot_be_heeded_is_refused_in_one_line(
    variables: dict[str, str], files: dict[str, str], says: str, switch: Callable[..., None],
    tmp_path: Path,
) -> None:  # fmt: skip
    switch(variables, files)

    def begin() -> None:
        load([])
        refuse_other_run(tmp_path, os.environ)

    with pytest.raises(BadInput) as refused:
        begin()
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert load(["--log.wandb", "off"]).log.wandb == "off"


def test_the_run_folders_own_id_and_what_agrees_with_it_are_welcome(
    switch: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "run_id").write_text("r1\n")
    switch({"WANDB_RUN_ID": "r1", "WANDB_RESUME": "allow"}, {})
    refuse_other_run(tmp_path, os.environ)


def test_switches_without_effect_are_named(switch: Callable[..., None]) -> None:
    fixed = {"WANDB_SILENT": "false", "WANDB_DIR": "/x"}
    agreed = {
        "WANDB_DISABLE_GIT": "True",
        "WANDB_INIT_TIMEOUT": "",
        "WANDB_NAME": "m",
    }
    switch(fixed | agreed | {"WANDB_ERROR_REPORTING": "false"}, {NEAR: "console = wrap"})
    assert set(mirror_module.without_effect(os.environ)) == {*fixed, "wandb/settings: console"}


def test_variables_describe_the_run_and_spoil_nothing(
    server: StandIn, switch: Callable[..., None], tmp_path: Path
) -> None:
    names = {"WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_JOB_TYPE": "j", "WANDB_NOTES": "o"}
    others = {
        "WANDB_TAGS": "a,b",
        "WANDB_PROJECT": "p",
        "WANDB_RUN_NAME": "",
        "WANDB_RESUME": "allow",
    }
    # A mistake beside it, and the client passes the file over.
    url = os.environ["WANDB_BASE_URL"]
    switch(names | others, {GLOBAL: f"base_url = {url}\nno_such = 1"})
    os.environ["WANDB_BASE_URL"] = os.environ["WANDB_MODE"] = ""
    config = load([])
    about = wandb_run.about(
        config, {"variables": names}, world_size=1, precision="fp32", peak_lr=None
    )
    log = {"project": config.log.project, "entity": config.log.entity}
    assert mirror_rows(tmp_path, range(1, 4), **about, **log)[1] == "online"
    run = server.run("r1")
    fields = [run.fields[name] for name in ("displayName", "groupName", "jobType", "notes")]
    assert fields == ["n", "g", "j", "o"]
    assert run.fields["tags"][-2:] == ["a", "b"]
    assert ("lab", "p", "r1") in server.store.runs


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
    uploaded: bool, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run folder"
    folder.mkdir()
    # Within one second, after which the client names its folders.
    for attempt in (1, 2, 3):
        monkeypatch.setenv("WANDB_RESUME", "allow")  # in the upload it would add rows twice
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
    said: list[str] = []
    mirror, status = mirror_rows(tmp_path, range(1, 6), say=said.append)
    assert status.startswith("offline, as online failed: ")
    assert len(status.splitlines()) == 1
    assert said == [status]
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
