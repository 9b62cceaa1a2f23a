"""The benches of the training loop, as a user types them, on the least that trains."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ranks import python

TINY = ["--model", "resnet20", "--image-px", "32", "--batch", "8", "--eager", "--turns", "2"]
TINY += ["--threads", "1"]


def bench(*words: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `harness bench` alone, or in several ranks."""
    return python("-m", "harness", "bench", *words, ranks=ranks)


def table_row(text: str, name: str) -> list[float]:
    """Numbers of the table's row with this name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [float(each.strip().replace(",", "")) for each in line.split("│")[2:-1]]


@pytest.mark.gpu_too
@pytest.mark.slow
def test_checkpoints_are_written_and_their_cost_is_told(tmp_path: Path) -> None:
    done = bench("checkpoint", *TINY, "--every", "3", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    stall, most, _of_step = table_row(done.stdout, "stall: training is held up")
    copy, _, _ = table_row(done.stdout, "of which the copy off the device")
    beyond, _, _ = table_row(done.stdout, "beyond the copy")
    on_disk, _, _ = table_row(done.stdout, "until it is on the disk")
    assert copy > 0
    assert 0 < stall <= most
    assert beyond == pytest.approx(stall - copy, abs=0.11)
    assert on_disk > 0
    # 2 turns with 2 checkpoints each: ResNet-20's 0.27 million weights, and their momentum.
    said = re.search(r"4 checkpoints of (\S+) MB, a step takes (\S+) ms", done.stdout)
    assert said is not None
    assert 2.2 < float(said[1]) < 3
    rate, least, most, ratio, low, high = table_row(done.stdout, "without")
    assert least <= rate <= most
    assert ratio == low == high == 1
    assert not list(tmp_path.iterdir()), "the folder is left as it was"


@pytest.mark.slow
def test_the_vote_of_several_ranks_is_measured() -> None:
    done = bench("overhead", *TINY, "--steps", "3", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("network: resnet20") == 1, "one rank prints"
    assert "global batch: 16 = 2 ranks x 1 accumulated x 8 local" in done.stdout
    assert table_row(done.stdout, "bare loop")[3:] == [1, 1, 1]
    assert re.search(r"the vote of 2 ranks costs \S+ % of the throughput", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    done = bench("checkpoint", *TINY, "--folder", tmp_path / what)
    assert done.returncode == 2
    why = {"missing": "No such file or directory", "file": "Not a directory"}[what]
    assert done.stderr == (
        f"error: --folder: {tmp_path / what}: {why}; name an existing folder you can write\n"
    )
    assert not done.stdout


@pytest.mark.slow
def test_a_disk_without_room_is_no_measurement(disk: Path) -> None:
    done = bench("checkpoint", *TINY, "--every", "2", "--folder", disk)
    assert done.returncode == 1
    assert "the checkpoint could not be written (No space left on device)" in done.stdout
    assert (
        done.stderr
        == "error: a checkpoint could not be written, so that its cost cannot be measured\n"
    )
    assert not list(disk.iterdir())
