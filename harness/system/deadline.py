"""Deadline: ask what may never answer, a dead disk or name server, without hanging with it."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_ASIDE_S = 0.5  # for a killed process to go away


class NoAnswer(Exception):
    """It took longer than it may: something dead, rather than something slow."""


def within(limit_s: float, function: Callable[[], T]) -> T:
    """What `function` returns, computed in a forked process, which is left behind if it hangs.

    A thread would not do: one that hangs in a dead disk keeps its whole process from ending. The
    function must touch neither the GPU nor the process group.

    Raises:
        NoAnswer: nothing came within `limit_s` seconds.
        Exception: what the function itself raised.
    """
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads: those of torch hold no lock that it needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _answer(writes, function)
    os.close(writes)
    try:
        answer = _read_until(reads, time.monotonic() + limit_s)
    finally:
        os.close(reads)
        _end(pid)
    if answer is None:
        raise NoAnswer(f"no answer within {limit_s:g} s")
    good, value = pickle.loads(answer)
    if not good:
        raise value
    return value  # type: ignore[no-any-return]


def _answer(writes: int, function: Callable[[], Any]) -> NoReturn:
    """In the forked process: call it, hand over what came of it, end without clean-up."""
    try:
        # Whoever waits for the end of our output must not wait for a process that hangs.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            answer = pickle.dumps((True, function()))
        except Exception as error:
            answer = pickle.dumps((False, error))
        with open(writes, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """All that comes until the other side closes; None if that is not before the deadline."""
    parts: list[bytes] = []
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            return None
        part = os.read(descriptor, 2**16)
        if not part:
            return b"".join(parts) or None
        parts.append(part)


def _end(pid: int) -> None:
    """Kill and collect a process; one that hangs in the kernel is left to itself."""
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _ASIDE_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
