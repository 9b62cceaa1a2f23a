"""A running variant of a sweep: start its ranks, talk to each over a socket, and end them."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.bench.sweep.variant import Variant
from harness.errors import RunFailed

END_S = 20.0
LOOK_S = 1.0


class Gone(Exception):
    """The other side of a connection has ended, or did not answer in time."""


class Connection:
    """One end of a socket that carries messages as lines of JSON.

    The form of the messages must not change: ranks of older commits use it too.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._file = connected.makefile("rw", encoding="utf-8", newline="\n")

    def send(self, **message: Any) -> None:
        """Send a message; raise Gone if the other side has ended."""
        try:
            print(json.dumps(message), file=self._file, flush=True)
        except OSError as error:
            raise Gone(str(error)) from None

    def recv(self, limit_s: float | None = None) -> dict[str, Any]:
        """Wait for a message; raise Gone if the other side has ended, or at the limit."""
        self._socket.settimeout(limit_s)
        try:
            line = self._file.readline()
        except OSError as error:
            raise Gone(str(error)) from None
        if not line:
            raise Gone("the other side has ended")
        return dict(json.loads(line))

    def close(self) -> None:
        """Close it; the other side learns of it."""
        with suppress(OSError):  # the other side has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()
        self._socket.close()


class VariantFailed(RunFailed):
    """A variant cannot be measured; `why` in a line; `memory`: it did not fit into the device's."""

    def __init__(self, variant: Variant, why: str, *, memory: bool = False) -> None:
        super().__init__(f"{variant.name}: {why}")
        self.variant, self.why, self.memory = variant, why, memory


class VariantProcess:
    """A variant whose ranks have been started; all that they print is written to the log."""

    def __init__(self, variant: Variant, log: Path) -> None:
        self.variant, self._log = variant, log
        self.facts: dict[str, Any] = {}
        self._connections: list[Connection] = []
        self._token = secrets.token_hex(8)
        host = variant.host if variant.launch is None else ""  # of all networks
        self._server = socket.create_server((host, 0))
        address = f"{variant.host}:{self._server.getsockname()[1]}"
        task = {"words": variant.all_args, "address": address, "token": self._token}
        paths = [str(variant.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                variant.command(json.dumps(task)),
                stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> None:
        """Return once its ranks are set up and `facts` are known; else raise VariantFailed."""
        connections: dict[int, Connection] = {}
        self._server.settimeout(LOOK_S)
        with self._server:
            while len(connections) < self.variant.ranks:
                try:
                    connection = Connection(self._server.accept()[0])
                except TimeoutError:
                    if self._process.poll() is not None:
                        raise self._failed() from None
                    continue
                hello = self._recv(connection)
                if hello.get("token") == self._token:
                    connections[hello["rank"]] = connection
        self._connections = [connections[rank] for rank in sorted(connections)]
        self.facts = self._answer()

    def turn(self, turn_s: float) -> float:
        """Train for about so many seconds, the first time four steps more; return images/s.

        Raises:
            VariantFailed: its ranks ended.
        """
        self._send(turn_s=turn_s)
        self.facts |= (answer := self._answer())
        return float(answer["images_per_second"])

    def end(self) -> dict[str, Any]:
        """End its ranks, and return all facts."""
        with suppress(VariantFailed):
            self._send(end=True)
            self.facts |= self._answer()
        self.close()
        return self.facts

    def close(self) -> None:
        """End its processes, whatever they do."""
        self._server.close()
        for connection in self._connections:
            connection.close()
        # Ranks end by themselves, with their connection; torchrun ends its ranks on a signal.
        for number in (0, signal.SIGTERM, signal.SIGKILL):  # 0 sends none
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
                return

    def _send(self, **message: Any) -> None:
        try:
            for connection in self._connections:
                connection.send(**message)
        except Gone:
            raise self._failed() from None

    def _answer(self) -> dict[str, Any]:
        first, *_ = [self._recv(connection) for connection in self._connections]
        return first  # of rank 0, once all ranks have answered

    def _recv(self, connection: Connection) -> dict[str, Any]:
        try:
            message = connection.recv()
        except Gone:
            raise self._failed() from None
        if "error" in message:
            raise self._failed(message)
        return message

    def _failed(self, failure: Mapping[str, Any] | None = None) -> VariantFailed:
        """Return the error with the reason that a rank sends, or else the last line printed."""
        for connection in self._connections if failure is None else ():
            with suppress(Gone):
                message = connection.recv(LOOK_S)
                failure = message if "error" in message else failure
        if failure is None:
            time.sleep(LOOK_S)  # for what is still being written
            lines = self._log.read_text(errors="replace").strip().split("\n")
            failure = {"error": lines[-1].strip() or "its processes ended"}
        why = f"{failure['error']}; see {self._log}"
        return VariantFailed(self.variant, why, memory=bool(failure.get("memory")))
