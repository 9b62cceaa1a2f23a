"""Deadline: call a function that may hang, as on a dead disk or name server, with a time limit."""

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_EXIT_S = 0.5  # time for a killed process to exit


class NoAnswer(Exception):
    """The function did not return within its time limit."""


def within(limit_s: float, function: Callable[[], T]) -> T:
    """Return what `function` returns; it runs in a forked process, which is killed if it hangs.

    A thread would not do: one that hangs on a dead disk keeps its process from exiting. The
    function must not use the GPU or the process group.

    Raises:
        NoAnswer: nothing came within `limit_s` seconds.
        Exception: what the function itself raised.
    """
    receive, send = Pipe(duplex=False)
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads: torch's hold no lock that is needed here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _answer(send, function)
    send.close()
    answer: tuple[T | None, Exception | None] | None = None
    try:
        with suppress(EOFError):  # the process has ended without an answer
            answer = receive.recv() if receive.poll(limit_s) else None
    finally:
        receive.close()
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + _EXIT_S  # a process that hangs in the kernel is abandoned
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
    if answer is None:
        raise NoAnswer(f"no answer within {limit_s:g} s")
    value, error = answer
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _answer(send: Connection, function: Callable[[], Any]) -> NoReturn:
    try:
        # A reader of this program's output must not wait for a process that hangs.
        devnull = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(devnull, stream)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            send.send((function(), None))
        except Exception as error:
            send.send((None, error))
    finally:
        os._exit(0)
