"""Staging: a copy of the images is whole or not there, and what is there is not copied again."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import copytree, which
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY
from ranks import python

from harness.data.dataset import open_folder
from harness.errors import BadInput, RunFailed
from launch import stage as staging
from launch.stage import stage

pytestmark = pytest.mark.skipif(which("rsync") is None, reason="no rsync here")
STAGE = str(ROOT / "launch" / "stage.py")


@pytest.fixture
def source(photos: Path, tmp_path: Path) -> Path:
    return copytree(photos, tmp_path / "photos")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_copy_is_the_source_with_its_index(source: Path, tmp_path: Path) -> None:
    there = open_folder(source)
    copy = stage(source, tmp_path / "local")
    before = (copy / there.files.index.name).stat().st_mtime_ns
    here = open_folder(copy)
    assert contents(copy) == contents(source)
    assert here.digest == there.digest
    assert [here.where(k).removeprefix(str(here.root)) for k in range(len(here))] == [
        there.where(k).removeprefix(str(there.root)) for k in range(len(there))
    ]
    assert (copy / there.files.index.name).stat().st_mtime_ns == before, "indexed again"
    assert [path.name for path in (tmp_path / "local").iterdir() if path.suffix != ".lock"] == [
        copy.name
    ]


def test_what_is_there_is_not_read_again(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launch.stage.VERIFY_S", 600.0)
    copy = stage(source, tmp_path / "local")
    inodes = {path: path.stat().st_ino for path in copy.rglob("*")}
    capsys.readouterr()
    assert stage(source, tmp_path / "local") == copy
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == inodes
    said = capsys.readouterr().out
    files = sum(path.is_file() for path in source.rglob("*"))  # its index, if there is one, too
    assert f"the bytes of {files} files of {files} compared" in said
    assert "already complete" in said


def test_only_what_differs_is_copied_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.stage.VERIFY_S", 600.0)
    copy = stage(source, tmp_path / "local")
    first, second, third, *_ = sorted(path for path in copy.rglob("*.jpg"))
    flipped = bytearray(first.read_bytes())
    flipped[100] ^= 1
    times = first.stat()
    first.write_bytes(flipped)  # size and time are the same
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    second.write_bytes(b"short")
    third.unlink()
    (source / "class0" / "new.jpg").write_bytes(b"new")
    (source / "class1" / sorted(os.listdir(source / "class1"))[0]).unlink()
    (copy / "stray").mkdir()
    inodes = {path: path.stat().st_ino for path in copy.rglob("*.jpg")}
    stage(source, tmp_path / "local")
    assert contents(copy) == contents(source)
    assert not (copy / "stray").exists()
    changed = [
        path for path, inode in inodes.items() if path.exists() and path.stat().st_ino != inode
    ]
    assert set(changed) <= {first, second, third}


def test_a_copy_that_was_cut_short_goes_on(source: Path, tmp_path: Path) -> None:
    copy = stage(source, tmp_path / "local")
    part = copy.rename(copy.with_name(f".{copy.name}.part"))  # as a kill leaves it
    kept, torn = sorted(part.rglob("*.jpg"))[:2]
    inode = kept.stat().st_ino
    torn.rename(torn.with_name(f".{torn.name}.part"))
    stage(source, tmp_path / "local")
    assert contents(copy) == contents(source)
    assert (copy / kept.relative_to(part)).stat().st_ino == inode


def test_a_disk_that_is_too_small_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match="GiB free, and"):
        stage(source, tmp_path / "local")


def test_what_cannot_be_staged_is_refused_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "class0" / "link.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"class0: .*link.jpg.*; cannot be staged$"):
        stage(source, tmp_path / "local")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"^rsync: not on this node; install it, or"):
        stage(source, tmp_path / "local")


def test_a_disk_that_gives_back_other_bytes_is_a_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rsync = staging._rsync

    def spoil(options: tuple[str, ...], source: Path, copy: Path, name: str) -> str:
        said = rsync(options, source, copy, name)
        if "--dirs" in options:  # the last of them
            for path in copy.rglob("*.jpg"):
                times = path.stat()
                path.write_bytes(bytes(times.st_size))
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return said

    monkeypatch.setattr(staging, "_rsync", spoil)
    with pytest.raises(RunFailed, match=r"\.jpg: the disk gives back other bytes than written$"):
        stage(source, tmp_path / "local")
    assert not list((tmp_path / "local").glob("photos-*")), "as if it were whole"


def test_the_flags_point_to_the_copies(source: Path, tmp_path: Path) -> None:
    flags, local = tmp_path / "flags", tmp_path / "local"
    words = [*TINY, "--data.train", str(source), "--data.val", str(source)]
    done = python(STAGE, local, "--flags-to", flags, *words)
    assert done.returncode == 0, done.stderr
    (copy,) = [path for path in local.iterdir() if path.is_dir()]
    assert flags.read_text().split() == ["--data.train", str(copy), "--data.val", str(copy)]
    done = python(STAGE, local, *words, "--data.val", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/none: No such file or directory; cannot be staged\n"
