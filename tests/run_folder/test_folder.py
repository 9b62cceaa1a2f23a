"""The run folder over several attempts: what one leaves, the next one finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import config as cfg
from harness.errors import BadInput
from harness.run_folder import folder as run_folder
from harness.run_folder.lease import Lease

CONFIG = cfg.Config(run=cfg.Run(name="test"))
FACTS = {"from_step": 0, "train_digest": "a", "val_digest": "b"}


def attempt(path: Path) -> int:
    """One that comes as far as its line, and ends."""
    folder, lease = run_folder.claim(path, CONFIG)
    run_folder.begin_attempt(folder, lease, FACTS)
    lease.release()
    return folder.attempt


def test_attempts_are_numbered(tmp_path: Path) -> None:
    assert [attempt(tmp_path / "run") for _ in range(3)] == [1, 2, 3]
    found = run_folder.attempts(tmp_path / "run")
    assert [each["attempt"] for each in found] == [1, 2, 3]
    assert [each.get("previous_ended") for each in found] == [None, "killed", "killed"]
    assert all(each["previous_s"] >= 0 for each in found[1:])


def test_a_line_that_was_cut_takes_no_other_with_it(tmp_path: Path) -> None:
    attempt(tmp_path / "run")
    attempt(tmp_path / "run")
    log = tmp_path / "run" / "attempts.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert attempt(tmp_path / "run") == 2, "of the second nothing is known"
    assert attempt(tmp_path / "run") == 3
    assert [each["attempt"] for each in run_folder.attempts(tmp_path / "run")] == [1, 2, 3]


def test_what_is_worked_in_cannot_be_moved_aside(tmp_path: Path) -> None:
    held = Lease.take(tmp_path / "run")
    restart = cfg.Config(run=cfg.Run(name="test", restart=True))
    with pytest.raises(BadInput, match="has been working in it since"):
        run_folder.claim(tmp_path / "run", restart)
    assert held.is_mine()
    held.release()
    run_folder.claim(tmp_path / "run", restart)[1].release()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_what_a_launcher_starts_again_goes_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    restart = cfg.Config(run=cfg.Run(name="test", restart=True))
    assert run_folder.asks_restart(restart)
    monkeypatch.setenv(name, "0")
    assert run_folder.asks_restart(restart)
    monkeypatch.setenv(name, "1")
    assert not run_folder.asks_restart(restart)


def test_a_root_that_is_a_link_to_nothing_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "purged")
    with pytest.raises(BadInput, match=r"runs is a link to nothing; set --run\.root to a folder"):
        run_folder.claim(tmp_path / "runs" / "test", CONFIG)
