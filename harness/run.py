"""One run, from what was asked to what is left behind. The only file that sees the whole of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn

from harness import checkpoint, engine
from harness import config as cfg
from harness.console import out
from harness.data import Batch, Images, open_sets
from harness.errors import BadInput
from harness.record import folder as run_folder
from harness.record.clock import Clock
from harness.record.folder import RunFolder
from harness.report import Report
from harness.resolve import Resolved, resolve
from harness.train import Training, end_epoch, evaluate, set_up, train_epoch
from harness.world import World, process_group


def run(config: cfg.Config, world: World) -> None:
    """Do what the config asks, and leave the record in the run folder.

    Raises:
        BadInput: before anything is written.
        RunFailed: training cannot go on.
    """
    clock = Clock(world.device)
    train_set, val_set = open_sets(config)
    resolved = resolve(config, world, train_set)
    if config.run.dry_run:
        if world.is_main:
            out.print("\n".join(resolved.lines()))
        return
    net = engine.network(resolved, val_set.classes)
    with process_group(world, config.engine.timeout_s):
        # Only here, where every rank has found its part good, is anything written.
        folder = world.gather(_claim(resolved, train_set, val_set) if world.is_main else None)[0]
        if folder is None:
            return  # finished before, and rank 0 has said so
        if isinstance(folder, BadInput):
            raise folder
        try:
            mine = folder if world.is_main else None  # one rank writes
            report = Report(resolved, mine, val_set, train_set, clock)
            with report.open():
                if train_set is None:
                    _score(report, net)
                else:
                    _train(report, net)
        except BaseException as error:
            run_folder.record_failure(folder.path, world.rank, error)
            raise
    report.say_goodbye()


def _claim(
    resolved: Resolved, train_set: Images | None, val_set: Images
) -> RunFolder | BadInput | None:
    """The run's folder, or what speaks against it; none if this very run is finished."""
    config, path = resolved.config, resolved.folder
    digests = {
        "train_digest": train_set.digest if train_set else None,
        "val_digest": val_set.digest,
    }
    try:
        if not run_folder.is_finished(path, config, digests):
            return run_folder.claim(path, config)
    except BadInput as error:
        return error
    out.print(
        f"{path}: this run is finished; see it with: harness show {path}\n"
        "to train it again: --run.restart, or another --run.name"
    )
    return None


def _train(report: Report, net: nn.Module) -> None:
    """Epochs of training, each with its digest, some with an evaluation; then the result."""
    resolved, clock, train_set = report.resolved, report.clock, report.train_set
    assert train_set is not None
    config = resolved.config
    t = set_up(resolved, net, clock)
    report.warmed_up()
    loader, epochs = resolved.loader, config.schedule.epochs
    train_loader = loader.train(train_set, resolved.split, epoch=0, step=0, epochs=epochs)
    val_loader = loader.eval(report.val_set, config.eval.local_batch)
    batches, val_batches = _started(train_loader), _started(val_loader)
    epoch = 0
    while t.step < resolved.total_steps:
        with clock.account("train"):
            for row in train_epoch(t, batches):
                report.write(row)
            report.digests.append(end_epoch(t, train_set))
        epoch += 1
        if epoch % config.eval.every_epochs == 0 or t.step == resolved.total_steps:
            with clock.account("evaluate"):
                _validate(report, t, val_batches)
    with clock.account("checkpoint"):
        if report.folder is not None:
            checkpoint.save({"model": net.state_dict()}, report.folder.weights)
    train_loader.close()
    val_loader.close()
    report.conclude(net, t)


def _validate(report: Report, t: Training, batches: Iterator[Batch]) -> None:
    before_s = t.clock.wall_s
    score = evaluate(t.model, batches, len(report.val_set), report.resolved)
    report.validated(score, t.clock.wall_s - before_s, t)


def _score(report: Report, net: nn.Module) -> None:
    """Evaluate given weights, without training."""
    resolved, clock = report.resolved, report.clock
    engine.set_up_torch(resolved)
    model = engine.place(net, resolved)
    with clock.account("compile"):
        engine.warm_up_eval(model, resolved)
    report.warmed_up()
    loader = resolved.loader.eval(report.val_set, resolved.config.eval.local_batch)
    batches = _started(loader)
    with clock.account("evaluate"):
        before_s = clock.wall_s
        score = evaluate(model, batches, len(report.val_set), resolved)
        report.validated(score, clock.wall_s - before_s, None)
    loader.close()
    report.conclude(net, None)


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """With the first batch made: the loader's start is start-up, not a slow first step."""
    return itertools.chain([next(batches)], batches)
