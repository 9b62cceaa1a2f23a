"""The reference ImageNet benchmark harness."""

import codecs
import getpass
import os
import sys
import tempfile
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

__version__ = "0.1.0"

# A thread that is done with its part of an operator sleeps until the next one. By default it spins,
# which keeps other processes (DALI's threads, another rank) from the core that the rest of the
# operator needs: on a busy machine a step then takes up to ten times as long. OpenMP reads this
# when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_IN_ASCII = str.maketrans({"±": "+-", "×": "x", "…": "...", "█": "#"})


def _give_name_and_home() -> None:
    """Set USER and HOME where the system has neither (docker run --user): libraries ask for both.

    A home that is there but cannot be written stays: it may hold keys.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        os.environ["USER"] = str(os.getuid())
    home = Path(os.path.expanduser("~"))  # which stays `~` if nothing is known
    nearest = next(path for path in (home, *home.parents) if os.path.isdir(path))
    if home.is_absolute() and (os.access(nearest, os.W_OK) or nearest == home != Path("/")):
        return
    own = Path(tempfile.gettempdir(), f"imagenet-harness-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    # In somebody else's folder there may be keys, of his.
    os.environ["HOME"] = str(own) if own.stat().st_uid == os.getuid() else tempfile.mkdtemp()


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """Replace what a terminal has no letter for, or what is none: bytes of a file's name."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_IN_ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


with suppress(OSError):  # there is no folder for temporary files either
    _give_name_and_home()
codecs.register_error("harness", _spell_out)
for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, TextIOWrapper):
        _stream.reconfigure(errors="harness")
