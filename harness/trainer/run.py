"""One run, from its config to its result. The only file that sees all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from harness import config as cfg
from harness.checkpoint.store import save_atomic
from harness.data.batch import Batch, started
from harness.data.sets import Images, open_sets
from harness.distributed import World, process_group, set_timeout
from harness.errors import NotFinite, Preempted, RunFailed, SecondaryFailure
from harness.logging import rank_log
from harness.monitor.clock import Clock
from harness.monitor.watchdog import Watchdog
from harness.run_folder import folder as run_folder
from harness.system.console import out
from harness.system.process import CAUGHT, Signals
from harness.trainer import attempt as attempts
from harness.trainer import loop, setup
from harness.trainer.checkpointing import CheckpointManager
from harness.trainer.control import StepControl, Vote, end_hanging
from harness.trainer.loop import StopAgreed, Training
from harness.trainer.reporter import RunLogger
from harness.trainer.resolve import resolve
from harness.trainer.summary import summarize

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
        log = RunLogger(resolved, folder, world.is_main, val_set, train_set, clock)
        checkpoints = CheckpointManager(attempt, log)
        stacks = folder.stacks / f"attempt-{folder.attempt}-rank-{world.rank}.txt"
        watchdog = Watchdog(stacks, partial(end_hanging, folder.path, world.rank))
        watchdog.arm(config.engine.warm_up_timeout_s)
        control = _control(log, checkpoints, watchdog)
        t: Training | None = None
        try:
            log.begin(attempt.keep_bytes)
            with _waiting_explained(watchdog, folder):
                if train_set is None:
                    _score(log, net, control)
                else:
                    t = _set_up(log, net, control)
                    checkpoints.restore(t)
                    _train(t, train_set, log, checkpoints)
            _finish(log, net, checkpoints, t)
        except StopAgreed:
            raise _stopped(log, checkpoints, control, t) from None
        except BaseException as error:
            watchdog.failed(error)
            first = run_folder.record_failure(folder.path, world.rank, error)
            log.close({}, exit_code=1)
            if not first and isinstance(error, Exception):
                raise SecondaryFailure(f"{type(error).__name__}: {error}") from error
            raise
        finally:
            attempt.release()
        control.vote.close()
        watchdog.close()
    log.say_goodbye()


def _control(log: RunLogger, checkpoints: CheckpointManager, watchdog: Watchdog) -> StepControl:
    signals, vote = Signals(), Vote(log.resolved.config.engine.timeout_s)
    signals.catch()
    return StepControl(vote, signals, watchdog, checkpoints.due, partial(_time_is_up, log))


def _time_is_up(log: RunLogger) -> bool:
    minutes, clock = log.resolved.config.schedule.max_minutes, log.clock
    return minutes is not None and log.writes and clock.train_s >= 60 * minutes


@contextmanager
def _waiting_explained(watchdog: Watchdog, folder: run_folder.RunFolder) -> Iterator[None]:
    """Say where to look if a collective gives up as a rank hangs; end the watch with this block."""
    try:
        yield
    except RuntimeError as error:  # what torch raises when a collective gives up
        if (waited_s := watchdog.waited_s) is None:
            raise
        raise RunFailed(
            f"waited {waited_s:.0f} s for another rank, which hangs or needs a higher "
            f"engine.timeout_s; where each one stood is in {folder.path}/stacks"
        ) from error
    finally:
        watchdog.disarm()


def _set_up(log: RunLogger, net: nn.Module, control: StepControl) -> Training:
    resolved, world = log.resolved, log.resolved.world
    with _warming_up(log):
        t = loop.set_up(resolved, net, log.clock, control)
    steps = resolved.config.profile.first_and_last
    if steps is not None and world.is_main:
        from harness.trainer.profiler import Profile

        t.profile = Profile(*steps, log.folder.path / "profile", on_gpu=world.on_gpu)
    if world.on_gpu:
        from harness.trainer.mfu import of_printed_peaks

        t.utilization = of_printed_peaks(resolved, log.val_set.classes)
    return t


@contextmanager
def _warming_up(log: RunLogger) -> Iterator[None]:
    """Keep what this block compiles for the run's next start; what is compiled later is noted."""
    if log.resolved.compiled:
        from harness.trainer.compile_cache.cache import kept

        with kept(log.resolved, log.folder, log.clock, log.val_set.classes):
            yield
    else:
        yield
    log.graphs_warm = setup.graph_counts()["graphs"]


def _train(t: Training, train_set: Images, log: RunLogger, checkpoints: CheckpointManager) -> None:
    """Train all epochs, each with its digest and checkpoint, some with an evaluation."""
    resolved, epochs = t.resolved, t.resolved.config.schedule.epochs
    epoch, step = divmod(t.step, resolved.steps_per_epoch)
    val_loader = resolved.loader.eval(log.val_set, resolved.eval_images)
    train_loader = resolved.loader.train(
        train_set, resolved.split, epoch=epoch, step=step, epochs=epochs
    )
    val_batches = started(val_loader)
    batches = started(train_loader) if t.step < t.last_step else train_loader
    _limit_waiting(log, t.control)
    try:
        if t.ends_epoch:  # a checkpoint lies between training and evaluation
            _validate(t, val_batches, log)
        while t.step < t.last_step:
            with t.clock.account("train"):
                loop.train_epoch(t, batches, log.write, checkpoints.save)
                log.digests.append(loop.end_epoch(t, train_set))
            checkpoints.save(t, must=True)
            _validate(t, val_batches, log)
    except NotFinite as error:
        raise NotFinite(f"{error}; {checkpoints.last_good(t)}") from error
    if t.profile is not None:
        t.profile.close()
    train_loader.close()
    val_loader.close()


def _validate(t: Training, batches: Iterator[Batch], log: RunLogger) -> None:
    epochs_done = t.step // t.resolved.steps_per_epoch
    if epochs_done % t.resolved.config.eval.every_epochs == 0 or t.step == t.last_step:
        _evaluate(t.model, batches, log, t.control, t)


def _evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    log: RunLogger,
    control: StepControl,
    t: Training | None = None,
) -> None:
    with log.clock.account("evaluate"):
        before_s = log.clock.wall_s
        score = loop.evaluate(model, batches, len(log.val_set), log.resolved, control)
        log.scores.append((t.epoch if t else 0.0, score))
        if t is not None:
            loop.decide_by_scores(t, log.scores)
        log.validated(score, log.clock.wall_s - before_s, t)


def _score(log: RunLogger, net: nn.Module, control: StepControl) -> None:
    """Evaluate given weights, without training."""
    resolved = log.resolved
    setup.set_up_torch(resolved)
    model = setup.place(net, resolved)
    with _warming_up(log), log.clock.account("compile"):
        setup.warm_up_eval(model, resolved)
    loader = resolved.loader.eval(log.val_set, resolved.eval_images)
    batches = started(loader)
    _limit_waiting(log, control)
    _evaluate(model, batches, log, control)
    loader.close()


def _limit_waiting(log: RunLogger, control: StepControl) -> None:
    """Shorten the time limits: everything is compiled and started."""
    limit_s = log.resolved.config.engine.timeout_s
    set_timeout(limit_s)
    control.watchdog.arm(limit_s)


def _finish(
    log: RunLogger, net: nn.Module, checkpoints: CheckpointManager, t: Training | None
) -> None:
    """Write weights and result; finishing W&B comes last."""
    if log.throttle is not None:
        log.throttle.end(log.resolved.world)
    if not log.writes:
        return
    try:
        with log.clock.account("checkpoint"):
            checkpoints.wait()
            if t is not None:
                save_atomic({"model": net.state_dict()}, log.folder.weights)
        log.finish(summarize(log, net, t))
    except OSError as error:
        raise RunFailed(
            f"{log.folder.path}: {error.strerror}: all is trained, but the result could not be "
            "written; make room and give the same command again: it goes on from "
            f"{checkpoints.last or 'the start, as no checkpoint could be written either'}"
        ) from None


def _stopped(
    log: RunLogger, checkpoints: CheckpointManager, control: StepControl, t: Training | None
) -> Preempted:
    """Save so that the same command continues; return what the user is told."""
    world = log.resolved.world
    # Every rank names the same signal: it may reach one before another, or only one.
    signal = min(filter(None, world.gather(control.signals.received)), key=CAUGHT.index)
    checkpoints.wait()
    log.record("stop", t)  # the next attempt overwrites it
    if log.writes:
        log.folder.set_state("stopped")
    log.close({}, exit_code=0, timeout_s=STOP_MIRROR_S)
    at = f"step {t.step:,} of {log.resolved.total_steps:,}" if t else "the validation"
    saved = f"; saved as {checkpoints.last}" if checkpoints.last else ""
    # Also waits: the launcher would end rank 0, still saving, once the others are gone.
    message = world.from_main(f"stopped by {signal.name} at {at}{saved}")
    control.watchdog.close()
    return Preempted(message, signal)
