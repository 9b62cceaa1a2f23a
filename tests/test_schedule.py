"""What a run decides from its history, and what the learning rate makes of it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from harness import config as cfg
from harness.schedule import Event, History, decide, last_step, learning_rate, plateau_drops

PLATEAU = cfg.Schedule(decay="plateau", plateau_epochs=3, plateau_gain_pct=0.5)


def drops(*top1: float, schedule: cfg.Schedule = PLATEAU) -> list[float]:
    return plateau_drops([(i + 1.0, value) for i, value in enumerate(top1)], schedule)


def after_period(
    top1_pct: float, decided: list[Event], schedule: cfg.Schedule, step: int
) -> list[Event]:
    return decide(History(decided, train_top1_pct=top1_pct), schedule, step)


def after_validation(top1: list[float], schedule: cfg.Schedule, step: int) -> list[Event]:
    scores = [(i + 1.0, value) for i, value in enumerate(top1)]
    return decide(History(scores=scores), schedule, step)


def test_the_rate_drops_when_validation_stops_improving() -> None:
    assert drops(10, 20, 30, 30, 30, 30) == [6], "three epochs without a better one"
    assert drops(10, 20, 30, 30.4, 30.5, 30.4) == [6], "0.5 points more are asked"
    assert drops(10, 20, 30, 30.6, 30.5, 30.4) == []
    assert drops(30, 30, 30, 30, 30, 30, 30) == [4, 7], "the count starts again"
    assert drops(30, 29, 29, 29, 40, 40, 40, 40) == [4, 8]
    assert drops(*range(50)) == []


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_what_was_decided_stays_decided(top1: list[float]) -> None:
    """A run that goes on decides again from a longer history."""
    whole = drops(*top1)
    for cut in range(1, len(top1)):
        assert drops(*top1[:cut]) == [epoch for epoch in whole if epoch <= cut]
    found = [
        event.step
        for cut in range(1, len(top1) + 1)
        for event in after_validation(top1[:cut], PLATEAU, cut * 10)
    ]
    assert found == [round(epoch * 10) for epoch in whole]
    assert all(after - before >= 3 for before, after in pairwise(whole))


def rate(step: int, schedule: cfg.Schedule, *decided: Event) -> float:
    return learning_rate(
        step, schedule=schedule, peak=0.1, start=0.01, steps_per_epoch=100, events=decided
    )


def test_each_drop_divides_the_rate_from_its_step_on() -> None:
    decided = Event("dropped", 300), Event("dropped", 700)
    rates = [rate(step, PLATEAU, *decided) for step in (0, 299, 300, 699, 700, 5000)]
    assert [f"{value:.4f}" for value in rates] == [
        "0.1000", "0.1000", "0.0100", "0.0100", "0.0010", "0.0010"
    ]  # fmt: skip


def test_the_warm_up_of_resnet_110_ends_by_its_training_error() -> None:
    """He et al. 2015, 4.2: 0.01 until the training error is below 80 %, then 0.1."""
    schedule = cfg.Schedule(warmup_start_lr=0.01, warmup_until_top1_pct=20, drop_steps=(32_000,))
    assert after_period(19.9, [], schedule, 300) == []
    assert after_period(20.0, [], schedule, 300) == [], "the error is to be under 80 %"
    decided = after_period(20.1, [], schedule, 400)
    assert decided == [Event("warmed up", 400)]
    assert after_period(50.0, decided, schedule, 500) == [], "once"
    steps = (0, 399, 400, 31_999, 32_000)
    assert [round(rate(step, schedule, *decided), 4) for step in steps] == [
        0.01, 0.01, 0.1, 0.1, 0.01
    ]  # fmt: skip
    assert after_period(99.0, [], cfg.Schedule(), 1) == []


def test_what_ends_a_run_early() -> None:
    schedule = cfg.Schedule(stop_at_top1_pct=75.9)
    assert after_validation([75.8], schedule, 10) == []
    assert after_validation([75.9], schedule, 10) == [Event("target reached", 10)]
    assert last_step([], 1000) == 1000
    assert last_step([Event("dropped", 10), Event("time is up", 20)], 1000) == 20
    assert last_step([Event("target reached", 2000)], 1000) == 1000


def test_when_the_run_looks_at_its_history_is_part_of_its_result() -> None:
    """But only where it looks."""
    for key, value, schedule in (
        ("eval", cfg.Eval(every_epochs=2), cfg.Schedule(decay="plateau")),
        ("eval", cfg.Eval(every_epochs=2), cfg.Schedule(stop_at_top1_pct=50)),
        ("log", cfg.Log(every_steps=7), cfg.Schedule(warmup_until_top1_pct=20)),
    ):
        for chosen, same in ((cfg.Schedule(), True), (schedule, False)):
            one = cfg.Config(schedule=chosen)
            other = one.model_copy(update={key: value})
            assert (cfg.fingerprint(one, "result") == cfg.fingerprint(other, "result")) is same
            assert (cfg.differing(one, other, "result") == []) is same
