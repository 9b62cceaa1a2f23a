"""Compare: what differs between a run that was killed and one that was not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.checkpoint.store import ASIDE
from harness.logging.schema import Result, Row, fields_that_repeat
from harness.run_folder import folder as run_folder

NOT_OF_TRAINING = ("clock", "rows_bytes", "of")
"""Parts of a checkpoint that hold times, the length of texts with times, or the run's name."""


class Difference(NamedTuple):
    """One place in which two runs are not the same."""

    where: str
    what: str
    bits: bool = True  # else the record is wrong, whatever the bits are

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def compare(undisturbed: Path, killed: Path, *, bound_pct: float | None = None) -> list[Difference]:
    """All that differs between the folders of two finished runs; the most telling comes first.

    Args:
        bound_pct: how far losses may lie apart where equal bits are not promised.
    """
    found = [*record_of(killed), *_rows(undisturbed, killed, bound_pct)]
    there, here = (json.loads((path / "result.json").read_text()) for path in (undisturbed, killed))
    fields = fields_that_repeat(Result, "same")
    if bound_pct is None:
        fields += fields_that_repeat(Result, "bits")
    found += [
        Difference(f"result.json: {key}", _both(there[key], here[key]))
        for key in fields
        if repr(there[key]) != repr(here[key])
    ]
    if bound_pct is None:
        for pattern in ("final.pt", "step-*.pt"):
            found += _states(pattern, undisturbed / "checkpoints", killed / "checkpoints")
    return found


def record_of(path: Path) -> list[Difference]:
    """What is wrong with the record of a finished run by itself."""
    found = []
    if (state := run_folder.read_state(path)) != "finished":
        found.append(Difference("state", f"{state}, not finished", bits=False))
    if (path / "failure.json").exists():
        found.append(Difference("failure.json", "there, though the run has finished", bits=False))
    tries = run_folder.attempts(path)
    lines = len((path / "attempts.jsonl").read_text().splitlines())
    numbers = [each["attempt"] for each in tries]
    if lines != len(tries) or numbers != list(range(1, lines + 1)):
        found.append(Difference("attempts.jsonl", f"{lines} lines: {numbers}", bits=False))
    steps = [each["from_step"] for each in tries]
    if steps != sorted(steps):
        found.append(Difference("attempts.jsonl", f"went back: from steps {steps}", bits=False))
    said = json.loads((path / "result.json").read_text())["attempt"]
    if said != len(tries):
        found.append(Difference("result.json: attempt", _both(len(tries), said), bits=False))
    return found


def put_aside(path: Path) -> int:
    """How many checkpoints were torn when the run was killed: they were never used."""
    return len(list((path / "checkpoints" / ASIDE).glob("*.pt")))


def losses_apart_pct(undisturbed: Path, killed: Path) -> float:
    """How far the losses of two runs lie apart at most."""
    there, here = ({_name(row): row for row in _lines(path)} for path in (undisturbed, killed))
    pairs = [(there[name].get(key), here[name].get(key))
             for name in there.keys() & here.keys() for key in ("loss", "val_loss")]  # fmt: skip
    return max((_apart_pct(a, b) for a, b in pairs if a is not None and b is not None), default=0.0)


def _rows(undisturbed: Path, killed: Path, bound_pct: float | None) -> Iterator[Difference]:
    there, here = _lines(undisturbed), _lines(killed)
    expected, found = [_name(row) for row in there], [_name(row) for row in here]
    times = Counter(found)
    for name in dict.fromkeys([*expected, *found]):
        if times[name] != 1:
            what = f"stands {times[name]} times" if times[name] else "missing"
            yield Difference(f"rows.jsonl: {name}", what, bits=False)
        elif name not in expected:
            yield Difference(f"rows.jsonl: {name}", "not in the other run", bits=False)
    if sorted(expected) == sorted(found) and expected != found:
        first = next(b for a, b in zip(expected, found, strict=True) if a != b)
        yield Difference(f"rows.jsonl: {first}", "out of order", bits=False)
    by_name = {_name(row): row for row in here}
    for row in there:
        if other := by_name.get(_name(row)):
            yield from _fields(row, other, bound_pct)


def _fields(there: dict[str, Any], here: dict[str, Any], bound_pct: float | None
            ) -> Iterator[Difference]:  # fmt: skip
    """What differs in a row that both runs have."""
    of_bits = fields_that_repeat(Row, "bits")
    for key in [*fields_that_repeat(Row, "same"), *of_bits]:
        a, b = there.get(key), here.get(key)
        if bound_pct is not None and key in of_bits:
            near = key not in ("loss", "val_loss") or _apart_pct(a or 0.0, b or 0.0) <= bound_pct
        else:
            near = repr(a) == repr(b)  # == would take -0 for 0
        if not near:
            yield Difference(f"rows.jsonl: {_name(there)}: {key}", _both(a, b))


def _states(pattern: str, there: Path, here: Path) -> Iterator[Difference]:
    """What differs between two states: the newest of that name in each folder."""
    paths = [sorted(folder.glob(pattern)) for folder in (there, here)]
    if not all(paths):
        yield Difference(pattern, "missing", bits=False)
        return
    newest = [found[-1] for found in paths]
    if newest[0].name != newest[1].name:
        yield Difference(pattern, _both(newest[0].name, newest[1].name), bits=False)
        return
    a, b = (dict(_leaves(torch.load(path, weights_only=True))) for path in newest)
    for name in [*a, *(name for name in b if name not in a)]:
        if name.split(".")[0] in NOT_OF_TRAINING:
            continue
        if name not in a or name not in b:
            yield Difference(f"{newest[0].name}: {name}", "only in one of the two")
        elif said := _leaf_differs(a[name], b[name]):
            yield Difference(f"{newest[0].name}: {name}", said)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a state holds, each under its full name."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _leaf_differs(a: Any, b: Any) -> str | None:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return None if repr(a) == repr(b) else _both(a, b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return _both(f"{a.dtype} {list(a.shape)}", f"{b.dtype} {list(b.shape)}")
    differ = (_bytes(a) != _bytes(b)).any(dim=1)  # as bytes, NaN is NaN and -0 is not 0
    if not (number := int(differ.sum())):
        return None
    first = int(differ.nonzero()[0])
    both = _both(a.flatten()[first].item(), b.flatten()[first].item())
    return f"{number:,} of {len(differ):,} values differ, first at {first}: {both}"


def _bytes(tensor: Tensor) -> Tensor:
    """Raw bytes of each value, [values, bytes]."""
    return tensor.contiguous().flatten().view(torch.uint8).view(-1, tensor.element_size())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows; a line that is none is a row by the name of its number."""
    rows = []
    for number, line in enumerate((path / "rows.jsonl").read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            rows.append({"name": f"line {number}, which is torn"})
    return rows


def _name(row: dict[str, Any]) -> str:
    return str(row.get("name") or f"{row['kind']} row of step {row['step']}")


def _both(undisturbed: Any, killed: Any) -> str:
    return f"{undisturbed} undisturbed, {killed} killed"[:200]


def _apart_pct(a: float, b: float) -> float:
    return 100 * abs(a - b) / max(abs(a), 1e-12)
