"""A running variant of a sweep: start its processes, read their answers, and end them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.bench.sweep.wire import Gone, Wire
from harness.errors import RunFailed

ROOT = Path(__file__).resolve().parents[3]
WORKERS = ("harness/bench/sweep/worker.py", "harness/bench/arm.py")
"""What each rank of an arm runs; the second in commits before the move."""
END_S = 20.0
LOOK_S = 1.0


@dataclass(frozen=True)
class Variant:
    """What is measured: a run's words, on so many ranks, by some Python and some code.

    Attributes:
        words: as launch/train.py takes them.
        flags: settings besides, `section.key` -> text; they win.
        code: the folder that holds the package `harness`.
        launch: starts ranks where they belong, given how many, then Python's words; see
            slurm/ranks.sh. None: torchrun, on this node.
        host: under which ranks on other nodes find this process.
    """

    name: str
    words: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1
    python: Path = Path(sys.executable)
    code: Path = ROOT
    launch: tuple[str, ...] | None = None
    host: str = "127.0.0.1"

    @property
    def all_words(self) -> list[str]:
        """As launch/train.py takes them."""
        return [*self.words, *words_of(self.flags)]

    def command(self, argument: str) -> list[str]:
        """What starts its ranks."""
        module = worker_in(self.code).removesuffix(".py").replace("/", ".")
        if self.launch is not None:
            return [*self.launch, str(self.ranks), "-m", module, argument]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        several = torchrun if self.ranks > 1 else []
        return [str(self.python), *several, "-m", module, argument]


def worker_in(code: Path) -> str:
    """The file that a rank runs, in a checkout.

    Raises:
        FileNotFoundError: there is none; the commit is older than sweeps.
    """
    for path in WORKERS:
        if (code / path).exists():
            return path
    raise FileNotFoundError(code / WORKERS[0])


class VariantFailed(RunFailed):
    """An arm cannot be measured; why, in a line.

    Attributes:
        why: the line without the arm's name.
        memory: whether it did not fit into the device's.
    """

    def __init__(self, arm: Variant, why: str, *, memory: bool = False) -> None:
        super().__init__(f"{arm.name}: {why}")
        self.arm, self.why, self.memory = arm, why, memory


class VariantProcess:
    """An arm whose ranks have been started.

    Args:
        log: file for all that they print.
    """

    def __init__(self, arm: Variant, log: Path) -> None:
        self.arm, self._log = arm, log
        self.facts: dict[str, Any] = {}
        self._wires: list[Wire] = []
        self._token = secrets.token_hex(8)
        host = arm.host if arm.launch is None else ""  # of all networks
        self._server = socket.create_server((host, 0))
        address = f"{arm.host}:{self._server.getsockname()[1]}"
        argument = json.dumps({"words": arm.all_words, "address": address, "token": self._token})
        paths = [str(arm.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                arm.command(argument), stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )  # fmt: skip

    def ready(self) -> None:
        """Return once its ranks have set themselves up.

        Raises:
            VariantFailed: they could not.
        """
        with self._server:
            self._meet()
        self.facts = self._hear()

    def turn(self, turn_s: float) -> float:
        """Images per second over about so many seconds; the first turn takes four steps more.

        Raises:
            VariantFailed: its ranks ended.
        """
        for wire in self._wires:
            self._tell(wire, turn_s=turn_s)
        self.facts |= (heard := self._hear())
        return float(heard["images_per_second"])

    def end(self) -> dict[str, Any]:
        """All that is known of it; its processes end."""
        with suppress(VariantFailed):
            for wire in self._wires:
                self._tell(wire, end=True)
            self.facts |= self._hear()
        self.close()
        return self.facts

    def close(self) -> None:
        """Have its processes end, whatever they do."""
        self._server.close()
        for wire in self._wires:
            wire.close()
        # Ranks end by themselves when their wire does; torchrun ends its ranks on a signal.
        for signal_sent in (None, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                if signal_sent is not None:
                    os.killpg(self._process.pid, signal_sent)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
                return

    def _meet(self) -> None:
        """A wire to each rank, in their order."""
        self._server.settimeout(LOOK_S)
        met: dict[int, Wire] = {}
        while len(met) < self.arm.ranks:
            try:
                wire = Wire(self._server.accept()[0])
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._failed() from None
                continue
            hello = self._heard(wire)
            if hello.get("token") == self._token:
                met[hello["rank"]] = wire
        self._wires = [met[rank] for rank in sorted(met)]

    def _tell(self, wire: Wire, **message: Any) -> None:
        try:
            wire.say(**message)
        except Gone:
            raise self._failed() from None

    def _hear(self) -> dict[str, Any]:
        """The answer of rank 0, once all have answered."""
        first, *_ = [self._heard(wire) for wire in self._wires]
        return first

    def _heard(self, wire: Wire) -> dict[str, Any]:
        try:
            answer = wire.hear()
        except Gone:
            raise self._failed() from None
        if "error" in answer:
            raise self._failed(answer)
        return answer

    def _failed(self, answer: Mapping[str, Any] | None = None) -> VariantFailed:
        """Why it failed, by what a rank says of itself, else by what was printed last."""
        for wire in self._wires if answer is None else ():
            with suppress(Gone):
                heard = wire.hear(LOOK_S)
                answer = heard if "error" in heard else answer
        failure = answer or {"error": self._last_words()}
        memory = bool(failure.get("memory"))
        return VariantFailed(self.arm, f"{failure['error']}; see {self._log}", memory=memory)

    def _last_words(self) -> str:
        time.sleep(LOOK_S)  # for what is still being written
        lines = self._log.read_text(errors="replace").splitlines()
        printed = [line for line in lines if line.strip()]
        return printed[-1].strip() if printed else "its processes ended"


def words_of(flags: Mapping[str, str]) -> list[str]:
    """Settings as flags: `engine.bucket_mb` -> `--engine.bucket-mb`."""
    return [
        word for key, text in flags.items() for word in (f"--{key.replace('_', '-')}", str(text))
    ]
