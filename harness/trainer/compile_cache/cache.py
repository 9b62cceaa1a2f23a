"""Compile cache: the folder on the node's own disk that holds a run's compiled graphs.

BASE/KEY/                  what a warm-up has compiled to its end, or an archive held
BASE/KEY.RUN-ATTEMPT.part  where an attempt compiles what is not there

Only a finished warm-up gives a folder the name under which others look for it: a kill may leave
libraries that are cut short, which inductor takes as they are, to end with SIGBUS.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.distributed import World
from harness.errors import BadInput
from harness.monitor.clock import Clock
from harness.run_folder.folder import RunFolder, add_to_attempt
from harness.system.console import out
from harness.system.folders import sync_tree
from harness.trainer.compile_cache import archive, key
from harness.trainer.resolve import Resolved

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_TRITON_VARIABLE = "TRITON_CACHE_DIR"


@contextmanager
def kept(resolved: Resolved, folder: RunFolder, clock: Clock, classes: int) -> Iterator[None]:
    """Have the warm-up in this block find the graphs of an earlier one; keep what it compiles.

    A collective; the account is `compile`.

    Raises:
        BadInput: the node's folder cannot be used.
    """
    with clock.account("compile"):
        cache = _Cache(key.facts(resolved, classes), folder)
    yield
    with clock.account("compile"):
        counts, found, packed = _keep(cache, resolved.world)
    if resolved.world.is_main:
        compile_s = clock.accounts_s["compile"]
        said = f"nothing: all found in {found}, " if found else ""
        said += f"in {compile_s:.1f} s"
        said += f", kept for the next start in {packed}" if packed and not found else ""
        out.print(f"{'compiled':>12}: {said}")
        try:
            add_to_attempt(folder.path, {"compile_s": compile_s, **counts})
        except OSError as error:
            _note(f"{folder.path}/attempts.jsonl lacks compile_s: {error.strerror}")


class _Cache:
    """Where this process finds graphs, or compiles them, and where they are archived."""

    def __init__(self, facts: dict[str, Any], folder: RunFolder) -> None:
        base, self.facts, self.key = _base(), facts, key.key_of(facts)
        self.whole, self.archives = base / self.key, folder.path / "compile"
        self.making = base / f"{self.key}.{folder.run_id}-{folder.attempt}.part"
        with _lock(self.whole):
            for left in base.glob(f"*.{folder.run_id}-*.part"):
                if not left.name.endswith(f"-{folder.attempt}.part"):
                    shutil.rmtree(left, ignore_errors=True)  # of an attempt that was killed
            # Where the graphs came from; None: they are to be compiled.
            self.source = self.whole if self.whole.exists() else self._unpack()
        self.enter()

    def _unpack(self) -> Path | None:
        try:
            return archive.unpack(self.archives, self.key, self.whole, out.print)
        except OSError as error:
            _note(f"{self.whole}: {error.strerror}: the run's compiled graphs cannot be put there")
            return None

    def enter(self) -> None:
        """Have torch read and write here."""
        os.environ[VARIABLE] = str(self.whole if self.whole.exists() else self.making)

    def publish(self) -> None:
        """All processes of the node have compiled: what they made may be used by others."""
        try:
            with _lock(self.whole):
                if self.whole.exists():  # another run of the same kind was faster
                    shutil.rmtree(self.making, ignore_errors=True)
                elif self.making.exists():
                    sync_tree(self.making)
                    self.making.replace(self.whole)
        except OSError as error:
            _note(f"{self.making}: {error.strerror}: its graphs are of use to this attempt only")
        self.enter()
        # Inductor sets it where the user has not, to the folder that has just lost its name.
        if os.environ.get(_TRITON_VARIABLE, "").startswith(str(self.making)):
            del os.environ[_TRITON_VARIABLE]

    def pack(self) -> Path | None:
        """An archive of the graphs in the run folder, if the disk has room."""
        try:
            return archive.pack(self.whole, self.archives, self.key, self.facts)
        except OSError as error:
            _note(f"{self.archives}: {error.strerror}: the next start may have to compile again")
            return None


def _keep(cache: _Cache, world: World) -> tuple[dict[str, int], Path | None, Path | None]:
    """Publish the graphs on each node, and archive them, once for each kind of machine.

    Returns:
        Counts over all ranks, where every graph came from if none was compiled, and the archive.
    """
    mine = {"key": cache.key, "source": cache.source, **_cache_counts()}
    # The others' answers also tell that nobody compiles in the folder any more.
    everyone = world.gather(mine)
    cache.publish()
    alike = [each for each in everyone if each["key"] == cache.key]
    compiled = sum(each["graphs_compiled"] for each in alike)
    path = None
    if everyone[world.rank] is alike[0] and cache.whole.exists():
        path = next(iter(archive.names(cache.archives, cache.key)), None)
        if compiled or path is None:
            path = cache.pack()
    counts = {name: sum(each[name] for each in everyone) for name in _cache_counts()}
    # A node's first process unpacks; the others find what it has unpacked.
    sources = [each["source"] for each in alike if each["source"] is not None]
    source = next((each for each in sources if each != cache.whole), cache.whole)
    return counts, None if compiled or not sources else source, path


def _cache_counts() -> dict[str, int]:
    """Count the graphs that inductor has compiled or found in its cache in this process."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs_compiled": int(inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"]),
        "graphs_found": int(inductor["fxgraph_cache_hit"]),
    }


def _lock(whole: Path) -> FileLock:
    return FileLock(whole.with_name(f"{whole.name}.lock"))


def _base() -> Path:
    """The user's folder on this node, for all runs.

    Raises:
        BadInput: it cannot be made, or was made by somebody else.
    """
    given = os.environ.get(VARIABLE)
    ours = f"{tempfile.gettempdir()}/imagenet-harness-{os.getuid()}"
    base = Path(given or ours).absolute()
    instead = f"set {VARIABLE} to a folder on this node's disk that is yours to write"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = not given and base.lstat().st_uid != os.getuid()
    except OSError as error:
        raise BadInput(f"{base}: {error.strerror}; {instead}") from None
    # Libraries are loaded from here: in a folder that all may write to, its owner decides.
    if strange or not os.access(base, os.W_OK):
        raise BadInput(f"{base}: belongs to somebody else; {instead}")
    return base


def _note(text: str) -> None:
    out.print(f"{'note':>12}: {text}")
