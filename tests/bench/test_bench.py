"""The benches of the training loop, as a user types them; and that each bench ends in time."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers import TINY as TINY_RUN
from hypothesis import given
from hypothesis import strategies as st
from ranks import python

from harness.bench.ladder import ladder
from harness.bench.ladder.rungs import Rung, Turn
from harness.bench.sweep import pairs, scaling, show_scaling, sweep
from harness.bench.sweep.pairs import Base
from harness.bench.sweep.process import VariantProcess
from harness.bench.sweep.scaling import Cell
from harness.bench.sweep.variant import Variant
from harness.bench.turns import TIME_OVER, interleave, report
from harness.distributed import World
from harness.system.console import out, wide

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


# no bench takes longer than --minutes, but for what is to be measured in any case


class Clock:
    """A clock that stands still but for the seconds that are spent on it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def clock() -> Any:
    """One for all examples, of which each starts at its own time."""
    made = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", made.perf_counter)
        yield made


SECONDS = st.integers(1, 50)


@given(costs_s=st.lists(SECONDS, min_size=1, max_size=4), turns=st.integers(1, 9),
       limit_s=st.integers(0, 500))  # fmt: skip
def test_turns_end_in_time(clock: Clock, costs_s: list[int], turns: int, limit_s: int) -> None:
    began, round_s = clock.now, sum(costs_s)

    def once(cost_s: int) -> float:
        clock.spend(cost_s)
        return 1.0

    things = {str(n): lambda cost_s=cost_s: once(cost_s) for n, cost_s in enumerate(costs_s)}
    rates = interleave(things, turns, began + limit_s)
    expected = max(1, min(turns, limit_s // round_s))
    assert [*map(len, rates.values())] == [expected] * len(costs_s)
    assert clock.now - began == expected * round_s


def test_a_report_says_what_the_time_was_too_short_for(capsys: pytest.CaptureFixture[str]) -> None:
    for measured, message in (
        (1, "the time was over after 1 turn of each, of 3, which say nothing of how much turns va"),
        (2, "the time was over after 2 turns of each, of 3; give more --minutes"),
        (3, None),
    ):
        with out.capture() as printed, wide.capture() as table:
            report({"a": [2.0] * measured, "b": [1.0] * measured}, "title", 3)
        assert table_row(table.get(), "a")[3:] == [2, 2, 2]
        assert (message or "title") in printed.get()
        assert ("over" in printed.get()) == (message is not None)


@given(costs_s=st.lists(SECONDS, min_size=1, max_size=4), limit_s=st.integers(0, 20_000))
def test_a_ladder_ends_in_time(clock: Clock, costs_s: list[int], limit_s: int) -> None:
    def rung(name: str, step_s: int) -> Rung:
        def turn(steps: int) -> Turn:
            clock.spend(5 + steps * step_s)
            return Turn([], steps * step_s, 0.0)

        return Rung(name, turn, 8)

    alone = SimpleNamespace(from_main=lambda value: value, gather=lambda value: [value])
    timed, began = [rung(str(n), cost_s) for n, cost_s in enumerate(costs_s)], clock.now
    turns = ladder._in_rounds(timed, cast(World, alone), began + limit_s)
    least_s = sum(3 * (5 + cost_s) for cost_s in costs_s)  # two turns to plan, one in any case
    assert clock.now - began <= max(limit_s, least_s)
    assert {len(turns[rung.name]) for rung in timed} <= set(range(1, 1000))


class Process:
    """A variant that takes so long to set up and trains at 100 images/s, or as its flags say."""

    def __init__(self, clock: Clock, set_up_s: float, variant: Variant) -> None:
        self.clock, self.set_up_s, self.facts = clock, set_up_s, {"on_gpu": True}
        self.rate = float(variant.flags.get("speed", 100))

    def ready(self) -> None:
        self.clock.spend(self.set_up_s)

    def turn(self, turn_s: float) -> float:
        self.clock.spend(turn_s)
        return self.rate

    def end(self) -> dict[str, Any]:
        return self.facts

    def close(self) -> None:
        pass


@given(set_up_s=SECONDS, ranks=st.integers(1, 4), limit_s=st.integers(0, 5000))
def test_scaling_ends_in_time_and_says_what_is_missing(
    clock: Clock, set_up_s: int, ranks: int, limit_s: int
) -> None:
    def start(variant: Variant, log: Path) -> VariantProcess:
        return cast(VariantProcess, Process(clock, set_up_s, variant))

    cells = [Cell(("strong",), n + 1, 8) for n in range(ranks)]
    began = clock.now
    base = Variant("base", ())
    scaling.measure(base, cells, until=began + limit_s, folder=Path(), start=start)
    assert clock.now - began <= max(limit_s, set_up_s + scaling.MOST_TURN_S)
    assert cells[0].rates
    for cell in cells:
        assert bool(cell.rates) == (cell.failed is None)
        assert cell.failed in (None, TIME_OVER)
    missing = [line for line in show_scaling.lines(cells) if TIME_OVER in line]
    assert len(missing) == sum(not cell.rates for cell in cells)


@given(set_up_s=SECONDS, speeds=st.lists(st.sampled_from([90, 120, 130]), min_size=1, max_size=5),
       limit_s=st.integers(0, 5000))  # fmt: skip
def test_a_sweep_ends_in_time_and_says_what_is_missing(
    clock: Clock, set_up_s: int, speeds: list[int], limit_s: int
) -> None:
    def start(variant: Variant, log: Path) -> VariantProcess:
        return cast(VariantProcess, Process(clock, set_up_s, variant))

    def variants(base: Base) -> list[Variant]:
        return [Variant(str(n), (), {"speed": str(speed)}) for n, speed in enumerate(speeds)]

    began = clock.now
    swept = sweep.sweep(
        Variant("base", (*TINY_RUN, "--data.source", "synthetic")), variants,
        until=began + limit_s, folder=Path(), may_change_result=False, start=start,
    )  # fmt: skip
    # The base is set up, then both of a pair, which are measured for three pairs at least.
    least_s = 3 * set_up_s + 2 * pairs.LEAST_TURN_S + 6 * pairs.MOST_TURN_S
    assert clock.now - began <= max(limit_s, 0) + least_s
    first, *others = swept.trials
    assert first.failed is None
    assert {trial.failed for trial in others} <= {None, TIME_OVER}
    if swept.best is None and limit_s > 20 * least_s:
        assert max(speeds) < 100


@given(set_up_s=SECONDS, limit_s=st.integers(0, 300))
def test_the_search_for_the_largest_batch_ends_in_time(
    clock: Clock, set_up_s: int, limit_s: int
) -> None:
    def start(variant: Variant, log: Path) -> VariantProcess:
        return cast(VariantProcess, Process(clock, set_up_s, variant))

    base, began = Base(Variant("base", ()), Path(), start), clock.now
    with out.capture() as printed:
        largest = sweep.largest_batch(
            base, lambda factor: Variant(str(factor), ()), 16, began + limit_s
        )
    once_s = set_up_s + pairs.LEAST_TURN_S
    assert clock.now - began <= max(limit_s, once_s)
    assert largest is not None
    assert ("are not tried" in printed.get()) == (largest.name != "16")
