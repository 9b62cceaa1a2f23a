"""A stand-in for the W&B server, on loopback: keeps what the real client sends, serves it to Api().

    with StandIn() as server:
        os.environ |= server.environ()                  # then use the real client
        assert server.run("id").history == [...]
        server.fail("file_stream", status=500, times=3)

It proves what the client sends, not what W&B shows: no check of keys, no rate limits, one page.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from wandb_standin_graphql import ENTITY, OPERATIONS, Json, Place, Run, Store

KEY = "local-" + "0" * 40


@dataclass
class Fault:
    """What happens to requests whose operation fits the pattern."""

    match: str
    status: int
    times: int
    delay_s: float
    hits: int = 0


class StandIn:
    """The server; a context manager."""

    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}  # file name -> content
        self.unknown: list[str] = []  # operations that it cannot answer
        self._faults: list[Fault] = []
        self._healed = threading.Event()
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.store = Store(f"http://127.0.0.1:{self._http.server_address[1]}")

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._http.shutdown()
        self._http.server_close()

    def environ(self) -> dict[str, str]:
        """What makes the client talk to this server."""
        return {"WANDB_BASE_URL": self.store.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}

    def run(self, run_id: str) -> Run:
        return next(run for run in self.store.runs.values() if run.id == run_id)

    def has_rows(self, run_id: str) -> bool:
        with self._lock:
            return any(run.id == run_id and run.history for run in self.store.runs.values())

    def fail(
        self, match: str = "*", *, status: int = 500, times: int = 10**9, delay_s: float = 0
    ) -> Fault:
        """Answer with an error; `match` is an operation, `file_stream`, `upload` or a pattern."""
        with self._lock:
            self._healed.clear()
            self._faults.append(Fault(match, status, times, delay_s))
            return self._faults[-1]

    def hang(self, match: str = "*") -> Fault:
        """Accept requests and answer none."""
        return self.fail(match, delay_s=600)

    def heal(self) -> None:
        """End all faults; requests that hang are let go."""
        with self._lock:
            self._faults.clear()
            self._healed.set()

    def status(self, operation: str) -> int:
        """The HTTP status that a request gets, after the delay that its fault makes."""
        with self._lock:
            open_faults = (fault for fault in self._faults if fault.hits < fault.times)
            fits = (fault for fault in open_faults if fnmatch.fnmatch(operation, fault.match))
            fault = next(fits, None)
            if fault is None:
                return 200
            fault.hits += 1
        if fault.delay_s:
            self._healed.wait(fault.delay_s)
        return fault.status

    def graphql(self, operation: str, variables: Json) -> Json:
        with self._lock:
            if operation in OPERATIONS:
                return {"data": OPERATIONS[operation](self.store, variables)}
            self.unknown.append(operation)
            return {"data": None, "errors": [{"message": f"the stand-in lacks {operation}"}]}

    def file_stream(self, place: Place, body: Json) -> Json:
        """Take in lines of history, events and summary, and the end of the run."""
        with self._lock:
            run = self.store.runs.setdefault(place, Run(*place))
            for file, chunk in (body.get("files") or {}).items():
                lines = enumerate(chunk["content"], start=chunk["offset"])
                run.files.setdefault(file, {}).update(lines)
                run.state = "running"
            if body.get("exitcode") is not None:
                run.exit_code = body["exitcode"]
                run.state = "failed" if run.exit_code else "finished"
            return {"exitcode": None, "limits": {}, "stopped": run.stopped}


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client was killed, or gave up
                super().handle()

        def do_POST(self) -> None:
            path, raw = unquote(urlsplit(self.path).path), self._body()
            body = json.loads(raw) if raw[:1] == b"{" and self.command == "POST" else {}
            operation = _operation(path, body)
            status = server.status(operation)
            if status != 200:
                self._send(status, {"error": "injected"})
            elif operation == "upload":
                server.uploads[path.rsplit("/")[-1]] = raw
                self._send(200, {})
            elif operation == "file_stream":
                _, _, entity, project, run_id, _ = path.split("/")
                self._send(200, server.file_stream((entity, project, run_id), body))
            elif path == "/graphql":
                self._send(200, server.graphql(operation, body.get("variables") or {}))
            else:
                self._send(404, {})

        do_GET = do_PUT = do_POST

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                raw = b"".join(iter(self._chunk, b""))
            else:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            return gzip.decompress(raw) if zipped else raw

        def _chunk(self) -> bytes:
            chunk = self.rfile.read(int(self.rfile.readline(), 16))
            self.rfile.readline()
            return chunk

        def _send(self, status: int, answer: Json) -> None:
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    return Handler


def _operation(path: str, body: Json) -> str:
    """What a request asks for: the operation's name, `file_stream`, `upload`, or the path."""
    if path == "/graphql":
        named = re.search(r"\b(?:query|mutation)\s+(\w+)", body["query"])
        return named[1] if named else "anonymous"
    if path.startswith("/upload/"):
        return "upload"
    return "file_stream" if path.endswith("/file_stream") else path
