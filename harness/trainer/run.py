"""One run, from its config to its result. The only file that sees all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from harness import config as cfg
from harness.checkpoint.store import save_atomic
from harness.data.batch import Batch, started
from harness.data.sets import open_sets
from harness.distributed import World, process_group, set_timeout
from harness.errors import NotFinite, Preempted, RunFailed, SecondaryFailure
from harness.logging import rank_log
from harness.monitor.clock import Clock
from harness.monitor.watchdog import Watchdog
from harness.run_folder import folder as run_folder
from harness.system.console import out
from harness.system.process import Signals
from harness.trainer import attempt as attempts
from harness.trainer import setup
from harness.trainer.checkpointing import CheckpointManager
from harness.trainer.control import StepControl, Vote, end_hanging
from harness.trainer.loop import (
    StopAgreed,
    Training,
    decide_by_scores,
    end_epoch,
    evaluate,
    set_up,
    train_epoch,
)
from harness.trainer.profiler import Profile
from harness.trainer.reporter import RunLogger
from harness.trainer.resolve import Resolved, resolve

if TYPE_CHECKING:
    from harness.trainer.mfu import Utilization

STOP_MIRROR_S = 0.8
"""After a signal every second counts; what W&B lacks then, the next attempt sends."""


def run(config: cfg.Config, world: World) -> None:
    """Train or score as the config says, or continue an earlier attempt, and write the record.

    Raises:
        BadInput: before anything is written.
        RunFailed: training cannot go on.
        SecondaryFailure: another rank has failed first.
        Preempted: a signal asked for it; the state is saved.
    """
    clock = Clock(world.device)
    train_set, val_set = open_sets(config)
    resolved = resolve(config, world, train_set)
    if resolved.compiled:
        from harness.system import compilers

        compilers.require(on_gpu=world.on_gpu)
    if config.run.dry_run:
        if world.is_main:
            out.print("\n".join(resolved.lines()))
        return
    net = setup.network(resolved, val_set.classes)
    with process_group(world, config.engine.warm_up_timeout_s):
        attempt = attempts.begin(resolved, train_set, val_set)
        if attempt is None:
            return
        folder = attempt.folder
        if not world.is_main:
            rank_log.divert(folder.path, world.rank, folder.attempt)
        report = RunLogger(resolved, folder, world.is_main, val_set, train_set, clock)
        checkpoints = CheckpointManager(attempt, report)
        signals = Signals()
        signals.catch()
        watchdog = Watchdog(
            folder.stacks / f"attempt-{folder.attempt}-rank-{world.rank}.txt",
            partial(end_hanging, folder.path, world.rank),
        )
        vote = Vote(config.engine.timeout_s)
        control = StepControl(
            vote, signals, watchdog, checkpoints.due, partial(_time_is_up, report)
        )
        watchdog.arm(config.engine.warm_up_timeout_s)
        try:
            report.begin(attempt.keep_bytes)
            _work(report, net, checkpoints, control)
            _finish(report, net, checkpoints)
        except StopAgreed:
            raise _stopped(report, checkpoints, control) from None
        except BaseException as error:
            watchdog.failed(error)
            first = run_folder.record_failure(folder.path, world.rank, error)
            report.close({}, exit_code=1)
            if not first and isinstance(error, Exception):
                raise SecondaryFailure(f"{type(error).__name__}: {error}") from error
            raise
        finally:
            attempt.release()
        control.vote.close()
        watchdog.close()
    report.say_goodbye()


def _work(
    report: RunLogger, net: nn.Module, checkpoints: CheckpointManager, control: StepControl
) -> None:
    """Train or score.

    Raises:
        NotFinite: names the checkpoint to continue from.
        RunFailed: another rank hangs; says where to look.
    """
    try:
        if report.train_set is None:
            _score(report, net, control)
        else:
            _train(report, net, checkpoints, control)
    except NotFinite as error:
        if checkpoints.training is None:
            raise
        raise NotFinite(f"{error}; {checkpoints.last_good(checkpoints.training)}") from error
    except RuntimeError as error:  # what torch raises when a collective gives up
        if (waited_s := control.watchdog.waited_s) is None:
            raise
        raise RunFailed(
            f"waited {waited_s:.0f} s for another rank, which hangs or needs a higher "
            f"engine.timeout_s; where each one stood is in {report.folder.path}/stacks"
        ) from error
    finally:
        control.watchdog.disarm()


def _time_is_up(report: RunLogger) -> bool:
    minutes, clock = report.resolved.config.schedule.max_minutes, report.clock
    return minutes is not None and report.writes and clock.train_s >= 60 * minutes


def _train(
    report: RunLogger, net: nn.Module, checkpoints: CheckpointManager, control: StepControl
) -> None:
    """Train all epochs, each with its digest and checkpoint, some with an evaluation."""
    resolved, train_set = report.resolved, report.train_set
    assert train_set is not None
    with _compile_cache(report):
        t = set_up(resolved, net, report.clock, control)
    report.warmed_up()
    t.profile = _profile(report)
    t.utilization = _utilization(resolved, train_set.classes)
    checkpoints.restore(t)
    val_loader = resolved.loader.eval(report.val_set, resolved.eval_images)
    val_batches = started(val_loader)
    epoch, step = divmod(t.step, resolved.steps_per_epoch)
    train_loader = resolved.loader.train(
        train_set, resolved.split, epoch=epoch, step=step, epochs=resolved.config.schedule.epochs
    )
    batches = started(train_loader) if t.step < t.last_step else train_loader
    _limit_waiting(report, control)
    if t.ends_epoch:  # a checkpoint lies between training and evaluation
        _validate(report, t, val_batches)
    while t.step < t.last_step:
        _train_epoch(report, t, batches, checkpoints)
        _validate(report, t, val_batches)
    if t.profile is not None:
        t.profile.close()
    train_loader.close()
    val_loader.close()


def _profile(report: RunLogger) -> Profile | None:
    """The profiler of rank 0, if the config asks for one."""
    steps = report.resolved.config.profile.first_and_last
    if steps is None or not report.resolved.world.is_main:
        return None
    return Profile(*steps, report.folder.path / "profile", report.resolved.world.device)


def _train_epoch(
    report: RunLogger, t: Training, batches: Iterator[Batch], checkpoints: CheckpointManager
) -> None:
    assert report.train_set is not None
    with t.clock.account("train"):
        for pause in train_epoch(t, batches):
            if pause.row is not None:
                report.write(pause.row)
            if pause.save:
                checkpoints.save(t, must=pause.stop)
        report.digests.append(end_epoch(t, report.train_set))
    checkpoints.save(t, must=True)


def _validate(report: RunLogger, t: Training, batches: Iterator[Batch]) -> None:
    """Evaluate, if an evaluation is due after this epoch."""
    resolved = report.resolved
    last = t.step == t.last_step
    if t.step // resolved.steps_per_epoch % resolved.config.eval.every_epochs and not last:
        return
    _evaluate(report, t.model, batches, t.control, t)


def _evaluate(
    report: RunLogger,
    model: nn.Module,
    batches: Iterator[Batch],
    control: StepControl,
    t: Training | None,
) -> None:
    with report.clock.account("evaluate"):
        before_s = report.clock.wall_s
        score = evaluate(model, batches, len(report.val_set), report.resolved, control)
        report.scores.append((t.epoch if t else 0.0, score))
        if t is not None:
            decide_by_scores(t, report.scores)
        report.validated(score, report.clock.wall_s - before_s, t)


def _score(report: RunLogger, net: nn.Module, control: StepControl) -> None:
    """Evaluate given weights, without training."""
    resolved = report.resolved
    setup.set_up_torch(resolved)
    model = setup.place(net, resolved)
    with _compile_cache(report), report.clock.account("compile"):
        setup.warm_up_eval(model, resolved)
    report.warmed_up()
    loader = resolved.loader.eval(report.val_set, resolved.eval_images)
    batches = started(loader)
    _limit_waiting(report, control)
    _evaluate(report, model, batches, control, None)
    loader.close()


def _utilization(resolved: Resolved, classes: int) -> Utilization | None:
    if not resolved.world.on_gpu:
        return None
    from harness.trainer.mfu import of_printed_peaks

    return of_printed_peaks(resolved, classes)


def _compile_cache(report: RunLogger) -> AbstractContextManager[None]:
    """Keep what the warm-up compiles, so that the run's next start finds it."""
    if not report.resolved.compiled:
        return nullcontext()
    from harness.trainer.compile_cache import kept

    return kept(report.resolved, report.folder, report.clock, report.val_set.classes)


def _limit_waiting(report: RunLogger, control: StepControl) -> None:
    """Shorten the time limits: everything is compiled and started."""
    limit_s = report.resolved.config.engine.timeout_s
    set_timeout(limit_s)
    control.watchdog.arm(limit_s)


def _finish(report: RunLogger, net: nn.Module, checkpoints: CheckpointManager) -> None:
    """Write weights and result; finishing W&B comes last."""
    path = report.folder.path
    if report.throttle is not None:
        report.throttle.end(report.resolved.world)
    if report.writes:
        try:
            with report.clock.account("checkpoint"):
                checkpoints.wait()
                if checkpoints.training is not None:
                    save_atomic({"model": net.state_dict()}, report.folder.weights)
            report.conclude(net, checkpoints.training)
            report.finish()
        except OSError as error:
            raise RunFailed(
                f"{path}: {error.strerror}: all is trained, but the result could not be written; "
                "make room and give the same command again: it goes on from "
                f"{checkpoints.last or 'the start, as no checkpoint could be written either'}"
            ) from None


def _stopped(report: RunLogger, checkpoints: CheckpointManager, control: StepControl) -> Preempted:
    """Save so that the same command continues; return what the user is told."""
    world, t = report.resolved.world, checkpoints.training
    # Every rank names the same signal: it may reach one before another, or only one.
    signal = min(number for number in world.gather(control.signals.received) if number)
    checkpoints.wait()
    report.stopped(t)
    if report.writes:
        report.folder.set_state("stopped")
    report.close({}, exit_code=0, timeout_s=STOP_MIRROR_S)
    at = f"step {t.step:,} of {report.resolved.total_steps:,}" if t else "the validation"
    saved = f"; saved as {checkpoints.last}" if checkpoints.last else ""
    message = f"stopped by {signal.name} at {at}{saved}"
    # Also waits: the launcher would end rank 0, still saving, once the others are gone.
    message = world.from_main(message)
    control.watchdog.close()
    return Preempted(message, signal)
