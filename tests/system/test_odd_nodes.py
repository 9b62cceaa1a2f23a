"""What `import harness` mends of odd nodes, and what an installation without a checkout says."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from platformdirs import user_cache_path

import harness
from harness.system.deadline import within

NOBODY = 12345  # has no passwd entry


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may write, for temporary files."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize(
    ("home", "found"),
    [
        (None, "OWN"),
        ("/", "OWN"),  # as `docker run --user` sets it
        ("", "OWN"),
        ("/nowhere/u", "OWN"),
        ("/root/u", "OWN"),
        ("TMP", "TMP"),
        ("TMP/new", "TMP/new"),  # is made by who needs it
        ("/usr", "/usr"),  # there, but read-only: it may hold keys
    ],
)
@pytest.mark.parametrize("squatted", [False, True])
def test_who_is_nobody_has_a_name_and_a_home(
    home: str | None, found: str, open_folder: Path, squatted: bool
) -> None:
    own = open_folder / f"imagenet-harness-{NOBODY}"
    if squatted:  # by somebody who would like our keys to be his
        own.mkdir(mode=0o777)

    def as_nobody() -> tuple[str, str, str]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
            os.environ.pop(name, None)
        if home is not None:
            os.environ["HOME"] = home.replace("TMP", str(open_folder))
        tempfile.tempdir = str(open_folder)
        harness._give_name_and_home()
        return getpass.getuser(), os.path.expanduser("~"), str(user_cache_path("x"))

    user, folder, cache = within(10, as_nobody)
    assert user == str(NOBODY)
    if found == "OWN":
        assert Path(folder).parent == open_folder
        assert (folder != str(own)) == squatted
        about = Path(folder).stat()
        assert (about.st_mode & 0o777, about.st_uid) == (0o700, NOBODY)
    else:
        assert folder == found.replace("TMP", str(open_folder))
    assert cache == f"{folder}/.cache/x"


PRINTS = r"""
import sys
from rich.progress import track
from rich.table import Table
from harness.system.console import err, out, wide
table = Table("\u00b1", "caf\u00e9")
table.add_row("1 \u00b1 2", "\u2588" * 3)
for console in (out, wide, err):
    console.print(table)
    console.print("8 \u00d7 H100", "a\udcff\U0001f680", "\u4e00" * 300)
for stream in (sys.stdout, sys.stderr):
    print("76 \u00b1 1", "caf\u00e9", "a\udcff", file=stream)
list(track(range(3), console=out))
"""


@pytest.mark.parametrize(
    ("environ", "encoding", "says"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "ascii", ["76 +- 1", r"caf\xe9", r"a\udcff", "8 x H100"]),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", ["76 \xb1 1", "caf\xe9", r"a\udcff", "###"]),
        ({"PYTHONIOENCODING": "utf-8"}, "utf-8", ["76 \xb1 1", "\u2588\u2588", r"a\udcff"]),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii", ["76 +- 1"]),
        ({"LC_ALL": "C"}, "utf-8", ["76 \xb1 1", r"a\udcff"]),
    ],
)
def test_a_terminal_without_our_letters_is_written_to(
    environ: dict[str, str], encoding: str, says: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS], cwd=ROOT, capture_output=True,
        env={"PATH": os.environ["PATH"]} | environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        shown = stream.decode(encoding)
        assert not [part for part in says if part not in shown]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "references", "--model", "resnet50"], None),
        (["doctor"], "CONFIG.yaml: give one: the configs are not installed, a checkout has them"),
        (["bench", "ladder"], "CONFIG.yaml: give one: "),
        pytest.param(  # imports torch
            ["doctor", "resume", "MINE"],
            "launch/train.py: does not exist; run harness doctor from a",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_installation_without_a_checkout_says_what_it_lacks(
    words: list[str], says: str | None, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "harness", tmp_path / "site" / "harness")
    (tmp_path / "mine.yaml").touch()
    done = subprocess.run(
        [sys.executable, "-m", "harness", *(w.replace("MINE", "mine.yaml") for w in words)],
        cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == (2 if says else 0), done.stderr
    assert (says or "") in done.stderr
    assert done.stderr.count("\n") == (1 if says else 0)
