"""Wire: lines of JSON between a bench and the ranks that it has measure, each on its own socket."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any


class Gone(Exception):
    """The other side has ended."""


class Wire:
    """One end."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._file = connected.makefile("rw", encoding="utf-8", newline="\n")

    @staticmethod
    def to(address: str) -> Wire:
        """Connect to `host:port`."""
        host, _, port = address.rpartition(":")
        return Wire(socket.create_connection((host, int(port)), timeout=60))

    def say(self, **message: Any) -> None:
        """Send a message.

        Raises:
            Gone: nobody is there.
        """
        try:
            self._file.write(json.dumps(message) + "\n")
            self._file.flush()
        except OSError as error:
            raise Gone(str(error)) from None

    def hear(self, limit_s: float | None = None) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            Gone: nobody is there any more, or not in time.
        """
        self._socket.settimeout(limit_s)
        try:
            line = self._file.readline()
        except OSError as error:
            raise Gone(str(error)) from None
        if not line:
            raise Gone("the other side has ended")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):  # the other side has
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()
        self._socket.close()
