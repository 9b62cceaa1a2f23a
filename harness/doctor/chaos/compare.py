"""Compare the folders of a run that was killed and of an undisturbed run."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.logging.schema import Result, Row, fields_that_repeat
from harness.run_folder import folder as run_folder

IGNORED_STATE = ("clock", "rows_bytes", "of")
"""Parts of a checkpoint that hold times, the length of a file with times, or the run's name."""


class Difference(NamedTuple):
    """One difference between two runs, or one fault in the record of a run."""

    where: str
    what: str
    bits: bool = True  # a value differs; if false, the record is wrong, whatever the values

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def compare(undisturbed: Path, killed: Path, *, bound_pct: float | None = None) -> list[Difference]:
    """Return all differences between the folders of two finished runs, the most important first.

    Losses may differ by `bound_pct`; None: equal bits are guaranteed.
    """
    differences = [*_record(killed), *_rows(undisturbed, killed, bound_pct)]
    expected, actual = (
        json.loads((path / "result.json").read_text()) for path in (undisturbed, killed)
    )
    fields = fields_that_repeat(Result, "same")
    if bound_pct is None:
        fields += fields_that_repeat(Result, "bits")
    differences += [
        Difference(f"result.json: {key}", _both(expected[key], actual[key]))
        for key in fields
        if repr(expected[key]) != repr(actual[key])
    ]
    if bound_pct is None:
        for pattern in ("final.pt", "step-*.pt"):
            differences += _states(pattern, undisturbed / "checkpoints", killed / "checkpoints")
    return differences


def loss_difference_pct(undisturbed: Path, killed: Path) -> float:
    """Return the largest relative difference in a loss between two runs, in percent."""
    a_rows, b_rows = ({_name(row): row for row in _lines(path)} for path in (undisturbed, killed))
    pairs = [(a_rows[name].get(key), b_rows[name].get(key))
             for name in a_rows.keys() & b_rows.keys() for key in ("loss", "val_loss")]  # fmt: skip
    return max((_apart_pct(a, b) for a, b in pairs if a is not None and b is not None), default=0.0)


def _record(path: Path) -> Iterator[Difference]:
    if (state := run_folder.read_state(path)) != "finished":
        yield Difference("state", f"{state}, not finished", bits=False)
    if (path / "failure.json").exists():
        yield Difference("failure.json", "exists, but the run has finished", bits=False)
    attempts = run_folder.attempts(path)
    lines = len((path / "attempts.jsonl").read_text().splitlines())
    numbers = [attempt["attempt"] for attempt in attempts]
    if lines != len(attempts) or numbers != list(range(1, lines + 1)):
        yield Difference("attempts.jsonl", f"{lines} lines: {numbers}", bits=False)
    steps = [attempt["from_step"] for attempt in attempts]
    if steps != sorted(steps):
        yield Difference("attempts.jsonl", f"went back: from steps {steps}", bits=False)
    last = json.loads((path / "result.json").read_text())["attempt"]
    if last != len(attempts):
        yield Difference("result.json: attempt", _both(len(attempts), last), bits=False)


def _rows(undisturbed: Path, killed: Path, bound_pct: float | None) -> Iterator[Difference]:
    expected_rows, actual_rows = _lines(undisturbed), _lines(killed)
    expected, actual = [*map(_name, expected_rows)], [*map(_name, actual_rows)]
    times = Counter(actual)
    for name in dict.fromkeys([*expected, *actual]):
        if times[name] != 1:
            what = f"occurs {times[name]} times" if times[name] else "missing"
            yield Difference(f"rows.jsonl: {name}", what, bits=False)
        elif name not in expected:
            yield Difference(f"rows.jsonl: {name}", "not in the other run", bits=False)
    if sorted(expected) == sorted(actual) and expected != actual:
        first = next(b for a, b in zip(expected, actual, strict=True) if a != b)
        yield Difference(f"rows.jsonl: {first}", "out of order", bits=False)
    by_name = dict(zip(actual, actual_rows, strict=True))
    for row in expected_rows:
        if other := by_name.get(_name(row)):
            yield from _fields(row, other, bound_pct)


def _fields(
    expected: dict[str, Any], actual: dict[str, Any], bound_pct: float | None
) -> Iterator[Difference]:
    numeric = fields_that_repeat(Row, "bits")
    for key in [*fields_that_repeat(Row, "same"), *numeric]:
        a, b = expected.get(key), actual.get(key)
        if bound_pct is not None and key in numeric:
            same = key not in ("loss", "val_loss") or _apart_pct(a or 0.0, b or 0.0) <= bound_pct
        else:
            same = repr(a) == repr(b)  # 0 == -0, but their bits differ
        if not same:
            yield Difference(f"rows.jsonl: {_name(expected)}: {key}", _both(a, b))


def _states(pattern: str, undisturbed: Path, killed: Path) -> Iterator[Difference]:
    expected, actual = (max(of.glob(pattern), default=None) for of in (undisturbed, killed))
    if expected is None or actual is None:
        yield Difference(pattern, "missing", bits=False)
        return
    if expected.name != actual.name:
        yield Difference(pattern, _both(expected.name, actual.name), bits=False)
        return
    a, b = (dict(_leaves(torch.load(path, weights_only=True))) for path in (expected, actual))
    for name in a | b:
        if name.split(".")[0] in IGNORED_STATE:
            continue
        if name not in a or name not in b:
            yield Difference(f"{expected.name}: {name}", "only in one of the two")
        elif what := _leaf_difference(a[name], b[name]):
            yield Difference(f"{expected.name}: {name}", what)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _leaf_difference(a: Any, b: Any) -> str | None:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return None if repr(a) == repr(b) else _both(a, b)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return _both(f"{a.dtype} {list(a.shape)}", f"{b.dtype} {list(b.shape)}")
    # Compared as bytes: NaN equals NaN, -0 differs from 0.
    differ = (_bytes(a) != _bytes(b)).any(dim=1)
    if not (number := int(differ.sum())):
        return None
    first = int(differ.nonzero()[0])
    both = _both(a.flatten()[first].item(), b.flatten()[first].item())
    return f"{number:,} of {len(differ):,} values differ, first at {first}: {both}"


def _bytes(tensor: Tensor) -> Tensor:
    """Return the raw bytes of each value, [values, bytes]."""
    return tensor.contiguous().flatten().view(torch.uint8).view(-1, tensor.element_size())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run; a line that is not JSON becomes a row named after its number."""
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
