"""prove_gpu --dry: every command line is read as what it starts would read it; none is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prove_checks import CHECKS, Command

ROOT = Path(__file__).resolve().parents[2]


def read_all() -> None:
    """Read every command line as it would be read.

    Raises:
        HarnessError, SystemExit: it would be refused.
    """
    collected = gpu_tests()
    for check in CHECKS:
        for command in check.commands:
            if "pytest" in command:
                count = selected(command, collected)
                assert count, f"{check.name}: selects no test"
            elif command[0] == sys.executable and "-c" not in command:
                read(command, refused=check.code == 2)
        print(f"{check.name}: {len(check.commands)} commands, {check.limit_s} s: {check.proves}")


def gpu_tests() -> dict[str, list[bool]]:
    """File -> of each of its tests that are marked gpu, whether it is slow."""
    import pytest

    class Collector:
        def __init__(self) -> None:
            self.files: dict[str, list[bool]] = {}

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                slow = item.get_closest_marker("slow") is not None
                self.files.setdefault(item.path.name, []).append(slow)

    there = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    words = ["--collect-only", "-qq", "-m", "gpu", "-p", "no:cacheprovider", *there]
    collector = Collector()
    assert pytest.main(words, plugins=[collector]) == 0
    return collector.files


def selected(command: Command, collected: dict[str, list[bool]]) -> int:
    """How many tests the command would run."""
    marks = command[command.index("-m", command.index("pytest")) + 1]
    files = [Path(word).name for word in command if word.endswith(".py")] or list(collected)
    slow = {"gpu and slow": True, "gpu and not slow": False}[marks]
    assert all(collected.get(name) for name in files), f"no test for a GPU in one of {files}"
    return sum(each == slow for name in files for each in collected[name])


def read(command: Command, *, refused: bool) -> None:
    """As launch/train.py or harness would on a machine with one GPU, up to where it starts."""
    if "launch/train.py" in command:
        settle(command[command.index("launch/train.py") + 1 :], refused=refused)
        return
    from unittest.mock import patch

    from typer.core import TyperCommand

    from harness.__main__ import main
    from harness.bench.sweep.variant import Variant, read_variant

    with patch.object(TyperCommand, "invoke") as verb:  # the arguments are read before
        main(command[command.index("harness") + 1 :])
    (context,) = verb.call_args.args
    settle(context.args, refused=refused)
    for arm in context.params.get("arm", []):
        read_variant(arm, Variant("base", tuple(context.args)), Path())


def settle(words: Sequence[str], *, refused: bool) -> None:
    """The config's rules, and without images also what it comes to."""
    from harness.config import load
    from harness.data.sets import open_sets
    from harness.distributed import from_environment
    from harness.errors import BadInput
    from harness.trainer.resolve import resolve

    config = load.load(words, prog="prove_gpu")
    if config.data.source != "synthetic":
        return
    with one_gpu():
        world = from_environment(config.engine.device, {}, config.engine.backend)
        try:
            resolve(config, world, open_sets(config)[0])
        except BadInput:
            if not refused:
                raise
        else:
            assert not refused, f"{' '.join(words)}: is not refused"


@contextmanager
def one_gpu() -> Iterator[None]:
    """torch sees a GPU."""
    from unittest.mock import patch

    import torch

    answers = {"is_available": True, "device_count": 1, "is_bf16_supported": True}
    with patch.multiple(
        torch.cuda, **{name: lambda *args, a=answer, **given: a for name, answer in answers.items()}
    ):
        yield
