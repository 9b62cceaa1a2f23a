"""Standard streams that are closed, full or broken, and the signals of a terminal that dies."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pipelines
import pytest
from helpers import ROOT, TINY, TRAIN, launcher
from ranks import in_ranks

from harness.data.dataset import open_folder
from harness.data.torch_loader import TorchBatches
from harness.doctor import files
from harness.system import process

HARNESS = (sys.executable, "-m", "harness")
PIPE = '"$@" | head -n 1; exit ${PIPESTATUS[0]}'
BROKEN = {
    "stdin closed": '"$@" <&-',
    "stdout closed": '"$@" >&-',
    "stderr closed": '"$@" 2>&-',
    "all closed": '"$@" <&- >&- 2>&-',
    "full disk": '"$@" >/dev/full 2>&1',
    "pipe": '"$@" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}',
    "terminal": '"$@" >&$TERMINAL 2>&$TERMINAL',
}
"""How a shell starts a command; TERMINAL is the descriptor of one that has gone away."""


def shell(line: str, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the command."""
    master, slave = os.openpty()
    os.close(master)
    try:
        return subprocess.run(
            ["bash", "-c", line, "bash", *map(str, command)], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERMINAL": str(slave)} | environ,
            pass_fds=[slave], timeout=120,
        )  # fmt: skip
    finally:
        os.close(slave)


PRINTS = """
import logging, sys, warnings
from harness.system import process
process.outlive_streams()
file = open(sys.argv[1], "w")
from rich.progress import track
from harness.system.console import err, out
logging.basicConfig()
for number in track(range(3), console=out):
    print("x" * 100_000)
    out.print("rich")
    err.print("rich")
    sys.stderr.write("\\r50 %")
    sys.stdout.buffer.write(b"bytes")
    logging.getLogger("library").warning("logged")
    warnings.warn(f"warned {number}")
print("no newline at the end", end="")
print(file.fileno(), sys.stdout.isatty(), file=file, flush=True)
"""
"""What libraries do on a console; that it has come to its end is written to a file."""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_the_console_goes_quiet_and_the_files_go_on(
    line: str, unbuffered: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    done = shell(line, sys.executable, "-c", PRINTS, file, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0, done.stderr
    descriptor, is_terminal = file.read_text().split()
    assert int(descriptor) > 2, "what is printed would go into the file"
    assert is_terminal == "False"
    assert "Traceback" not in done.stderr


def test_a_slow_reader_gets_all_though_another_process_made_the_pipe_non_blocking() -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    prints = "from harness.system import process; process.outlive_streams(); print('x' * 500_000)"
    with subprocess.Popen(
        [sys.executable, "-c", prints], stdout=writes, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as job, os.fdopen(reads) as reader:  # fmt: skip
        os.close(writes)
        time.sleep(0.3)
        assert reader.read() == "x" * 500_000 + "\n"
    assert job.returncode == 0


@pytest.mark.parametrize(
    ("line", "words", "code", "says"),
    [
        (PIPE, ("show", "references"), 0, ""),
        (PIPE, ("--help",), 0, ""),
        (PIPE, ("show", "nothing-of-this-name"), 2, "error: nothing-of-this-name"),
        ('"$@" >/dev/full', ("show", "references"), 1, "error: stdout: No space left on device"),
        ('"$@" >/dev/full', ("--version",), 1, "error: stdout: No space left on device"),
        ('"$@" >&-', ("show", "references"), 0, ""),
    ],
)
def test_commands_end_as_any_tool_does(
    line: str, words: Sequence[str], code: int, says: str
) -> None:
    done = shell(line, *HARNESS, *words)
    assert done.returncode == code
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == bool(says)


def test_a_pack_whose_reader_left_is_whole(icons: Path, tmp_path: Path) -> None:
    line = '{ sleep 0.2; "$@"; } 2>&1 | true; exit ${PIPESTATUS[0]}'
    done = shell(line, *HARNESS, "data", "pack", icons, tmp_path / "shards", "--shard-images", "9")
    assert done.returncode == 0
    listed = shell('cat "$@" | tar --ignore-zeros -t | sort', *(tmp_path / "shards").glob("*.tar"))
    assert len(set(listed.stdout.split())) == 2 * 50
    assert json.loads((tmp_path / "shards" / "pack.json").read_text())["finished"] is True
    assert not list((tmp_path / "shards").glob(".*.part"))


RUN = [
    *TINY, "--data.source", "synthetic", "--train.global-batch", "8", "--eval.local-batch", "8",
    *("--schedule.max-steps", "12", "--log.every-steps", "1", "--log.wandb", "offline"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "ranks"), [("all closed", 1), ("terminal", 1), ("full disk", 2), ("pipe", 2)]
)
def test_a_training_outlives_its_console(how: str, ranks: int, tmp_path: Path) -> None:
    """All ways, without a training: see above."""
    tee = ["--tee", "3", "--log-dir", str(tmp_path / "logs")] if ranks > 1 else []
    flags = [*RUN, "--run.root", str(tmp_path / "runs"), "--run.name", "run"]
    done = shell(BROKEN[how], *launcher(ranks), *tee, TRAIN, *flags)
    folder = tmp_path / "runs" / "run"
    assert (folder / "state").read_text() == "finished\n"
    rows = [json.loads(row) for row in (folder / "rows.jsonl").open()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    result = json.loads((folder / "result.json").read_text())
    assert result["wandb"] == "offline", "its process has lived too"
    assert done.returncode == 0, done.stderr


def epoch_of_a_rank_that_is_told_to_stop(folder: Path) -> int:
    """Its batches, from worker processes, while its process group is signaled as by torchrun."""
    os.setpgid(0, 0)
    process.Signals().catch()
    dataset = open_folder(folder)
    samples = pipelines.samples_of(dataset, pipelines.RESIZED, 5)
    batches = TorchBatches(
        dataset, samples, pipelines.RESIZED.steps, out_px=pipelines.PX, device=pipelines.CPU,
        threads=2, prefetch=1,
    )  # fmt: skip
    next(batches)
    for number in (signal.SIGTERM, signal.SIGHUP):
        os.killpg(0, number)
        time.sleep(0.1)
    return 1 + sum(1 for _ in batches)


def test_a_rank_that_saves_keeps_its_loaders_workers(icons: Path) -> None:
    assert in_ranks(1, epoch_of_a_rank_that_is_told_to_stop, icons) == [10]


def free_gib_of_the_console(log: Path) -> float:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
    return files._console_gib()


def test_the_doctor_sees_a_log_on_a_full_disk(tmp_path: Path) -> None:
    df = shell('df --block-size=1 --output=avail "$@" | tail -n 1', tmp_path).stdout
    (free,) = in_ranks(1, free_gib_of_the_console, tmp_path / "log")
    assert free == pytest.approx(int(df) / 2**30, rel=0.05)
    seen = [files._judge_console([{"console_gib": gib}]).status for gib in (0.0, 1.0, math.inf)]
    assert seen == ["yellow", "green", "green"]


def received(*sent: signal.Signals, hup: int = signal.SIG_DFL) -> str | None:
    """What a process with these signals says that it was sent."""
    process.SAME_REQUEST_S = 0.0
    signal.signal(signal.SIGHUP, hup)
    signals = process.Signals()
    signals.catch()
    for number in sent:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
    return signals.received and signals.received.name


HUP, INT, TERM, USR1, USR2 = (
    getattr(signal, f"SIG{name}") for name in ("HUP", "INT", "TERM", "USR1", "USR2")
)


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ([HUP], "SIGHUP"),
        ([HUP, HUP, HUP], "SIGHUP"),  # a dying terminal repeats it: nobody is impatient
        ([TERM, HUP], "SIGTERM"),
        ([INT, HUP], "SIGINT"),
        ([HUP, USR1], "SIGUSR1"),  # of a cluster: the run goes on later
        ([USR2, HUP], "SIGUSR2"),
    ],
)
def test_what_a_dying_terminal_sends(sent: list[signal.Signals], named: str) -> None:
    assert in_ranks(1, received, *sent) == [named]


def test_nohup_is_obeyed() -> None:
    (got,) = in_ranks(1, under_nohup, HUP)
    assert got is None
    assert in_ranks(1, under_nohup, HUP, TERM) == ["SIGTERM"]


def under_nohup(*sent: signal.Signals) -> str | None:
    return received(*sent, hup=signal.SIG_IGN)
