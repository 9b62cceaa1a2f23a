"""Packing: the same batches as from the tree, the same bytes whatever happens meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from shutil import copytree

import numpy as np
import packs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pipelines import RESIZED, dali
from ranks import python

from harness.data import manifest
from harness.data.dataset import Dataset, open_folder
from harness.data.files import PACK_NAME
from harness.data.prepare.pack import Encoding, Packing, encoded, pack
from harness.data.prepare.sources import Source, open_sources
from harness.data.prepare.sources.source import Place
from harness.errors import BadInput, RunFailed

AS_IT_IS = Encoding()
HOW = Packing(shard_images=5, seed=0, encoding=AS_IT_IS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return packs.tree(tmp_path / "tree")


def packed(root: Path, dest: Path, how: Packing = HOW, workers: int = 2) -> dict[str, Dataset]:
    """Pack all splits; the sets by split."""
    found = {}
    for source in open_sources(root):
        pack(source, dest / source.split, how, workers)
        found[source.split] = open_folder(dest / source.split)
    return found


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def contents(data: Dataset) -> list[tuple[int, bytes]]:
    return [(int(data.labels[k]), data.content(k)) for k in range(len(data))]


# The same as the tree.


@pytest.mark.parametrize("seed", [0, 7, None])
@pytest.mark.parametrize("read", ["mmap", "pread"])
def test_batches_are_those_of_the_tree_byte_for_byte(
    tree: Path, tmp_path: Path, seed: int | None, read: str
) -> None:
    sets = packed(tree, tmp_path / "shards", Packing(5, seed, AS_IT_IS))
    for split, data in sets.items():
        of_tree = open_folder(tree / split)
        assert data.classes == of_tree.classes == packs.WNIDS
        assert data.digest == of_tree.digest
        for batch, expected in zip(
            dali(data, RESIZED, batch=4, read=read), dali(of_tree, RESIZED, batch=4), strict=True
        ):
            np.testing.assert_array_equal(batch.images, expected.images)
            np.testing.assert_array_equal(batch.labels, expected.labels)
            np.testing.assert_array_equal(batch.rows, expected.rows)


@pytest.mark.parametrize("kind", ["ilsvrc", "kaggle"])
def test_other_layouts_give_the_shards_of_the_tree(tree: Path, tmp_path: Path, kind: str) -> None:
    root = getattr(packs, kind)(tmp_path / kind)
    packed(root, tmp_path / "of other")
    packed(tree, tmp_path / "of tree")
    assert shards(tmp_path / "of other") == shards(tmp_path / "of tree")


def test_shards_packed_anew_are_the_same(tree: Path, tmp_path: Path) -> None:
    packed(tree, tmp_path / "once")
    packed(tmp_path / "once", tmp_path / "twice")
    assert shards(tmp_path / "once") == shards(tmp_path / "twice")


def test_foreign_shards_are_packed_anew_unless_two_names_are_one(tmp_path: Path) -> None:
    made = {f"{n:03d}": (packs.jpeg(n), b"%d" % (n % 3)) for n in range(9)}
    members = {f"{key}{suffix}": content for key, both in made.items()
               for suffix, content in zip((".jpeg", ".cls"), both, strict=True)}  # fmt: skip
    packs.tar(tmp_path / "theirs" / "a.tar", members)
    (ours,) = packed(tmp_path / "theirs", tmp_path / "ours").values()
    theirs = open_folder(tmp_path / "theirs")
    assert contents(ours) == contents(theirs)
    assert (ours.digest, ours.named) == (theirs.digest, False)
    packs.tar(tmp_path / "theirs" / "b.tar", {"003.jpeg": packs.jpeg(77), "003.cls": b"0"})
    assert len(open_folder(tmp_path / "theirs")) == 10
    with pytest.raises(BadInput, match=r"a\.tar: offset [\d,]+ \(003\)|is called 003 too"):
        packed(tmp_path / "theirs", tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_names_with_dots_and_percents_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "v1.2 %41"
    folder.mkdir(parents=True)
    names = ["a.b.c.jpg", "a%2Eb.jpg", "plain.jpeg", "100%.JPG", "ä.jpg"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(packs.jpeg(number))
    (data,) = packed(tmp_path / "tree", tmp_path / "shards").values()
    of_tree = open_folder(tmp_path / "tree")
    assert data.digest == of_tree.digest
    assert contents(data) == contents(of_tree)


@given(st.sets(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]))))
def test_escaping_is_one_to_one(names: set[str]) -> None:
    escaped = {manifest.escaped(name) for name in names}
    assert len(escaped) == len(names)
    assert not any("." in each for each in escaped)
    assert {manifest.unescaped(each) for each in escaped} == names


# Standard shards.


def test_shards_are_plain_webdataset(tree: Path, tmp_path: Path) -> None:
    packed(tree, tmp_path / "shards")
    seen = []
    for path in sorted((tmp_path / "shards" / "train").glob("*.tar")):
        with tarfile.open(path) as opened:
            members = opened.getmembers()
        for image, label in zip(members[::2], members[1::2], strict=True):
            stem, suffix = os.path.splitext(image.name)
            assert suffix == ".jpg"
            assert label.name == f"{stem}.cls"
            assert image.mtime == image.uid == 0
            seen.append(stem)
    assert sorted(seen) == sorted(
        f"{wnid}/{name.removesuffix('.JPEG')}"
        for wnid, files in packs.images()["train"].items()
        for name in files
    )
    assert seen != sorted(seen), "shuffled"


def test_in_order_keeps_the_order(tree: Path, tmp_path: Path) -> None:
    (train, _) = packed(tree, tmp_path / "shards", Packing(5, None, AS_IT_IS)).values()
    where = [train.where(k).split(": ")[0] for k in range(len(train))]
    assert where == sorted(where)


def test_a_png_stays_a_png(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "x.JPEG").write_bytes(packs.jpeg(1, format="PNG"))
    (data,) = packed(tmp_path / "tree", tmp_path / "shards").values()
    assert data.where(0).endswith("(a/x.png)")


# Bytes do not depend on how it went.


def test_the_number_of_workers_is_not_in_the_bytes(tree: Path, tmp_path: Path) -> None:
    how = Packing(3, 0, Encoding(shorter_px=20))
    for workers in (1, 3, 8):
        packed(tree, tmp_path / str(workers), how, workers)
    assert shards(tmp_path / "1") == shards(tmp_path / "3") == shards(tmp_path / "8")


@settings(max_examples=20)
@given(seed=st.integers(0, 5), size=st.integers(1, 9), workers=st.integers(1, 4))
def test_every_image_is_in_one_shard(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, workers: int
) -> None:
    content = {f"c/{n}": packs.jpeg(n, (9, 9)) for n in range(7)}
    names = list(content)
    folder = tmp_path_factory.mktemp("shards")
    file, dest = folder / "images", folder / "new"
    file.write_bytes(b"".join(content.values()))
    ends = itertools.accumulate(map(len, content.values()))
    images = [
        Place(0, name, file, end - len(content[name]), len(content[name]))
        for name, end in zip(names, ends, strict=True)
    ]
    source = Source(folder, "made", "", ["c"], images)
    written = pack(source, dest, Packing(size, seed, AS_IT_IS), workers)
    assert [shard.images for shard in written.shards.values()][:-1] == [size] * (-(-7 // size) - 1)
    assert contents(open_folder(dest)) == [(0, content[name]) for name in sorted(names)]


def harness(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "harness", "data", *map(str, words)]


def killed_after(command: list[str], folder: Path, shards_more: int, wait_s: float) -> bool:
    """Whether it was killed: a little after so many more shards were there; else it had ended."""
    due = len(shards(folder)) + shards_more
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while job.poll() is None and len(list(folder.rglob("*.tar"))) < due:
        time.sleep(0.001)
    time.sleep(wait_s)
    job.send_signal(signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    tree = packs.tree(tmp_path / "tree", per_class=150)
    words = ["--shard-images", "20", "--shorter-px", "25", "--workers", "2"]
    subprocess.run(harness("pack", tree, tmp_path / "whole", *words), check=True)
    whole = shards(tmp_path / "whole")
    draw, kills, passes = random.Random(0), 0, 0
    while kills < 20:
        dest = tmp_path / f"killed-{passes}"
        command = harness("pack", tree, dest, *words)
        while killed_after(command, dest, draw.randrange(5), draw.uniform(0, 0.03)):
            kills += 1
            written = manifest.read(dest / "train") if (dest / "train").exists() else None
            if written and not written.finished:
                with pytest.raises(BadInput, match="is not packed to the end"):
                    open_folder(dest / "train")
            # As if killed before it was listed.
            if written and written.shards and draw.random() < 0.3:
                kept = dict(list(written.shards.items())[:-1])
                forged = written.model_copy(update={"shards": kept, "finished": False})
                manifest.write(dest / "train", forged)
        subprocess.run(command, check=True)
        passes += 1
        assert shards(dest) == whole
        left = [path.name for path in dest.rglob("*") if path.name.endswith((".part", ".lock"))]
        assert left == []
        here, there = (folder / "train" / PACK_NAME for folder in (dest, tmp_path / "whole"))
        assert here.read_bytes() == there.read_bytes()


def test_what_is_finished_is_not_packed_again(tree: Path, tmp_path: Path) -> None:
    packed(tree, tmp_path / "shards")
    before = times(tmp_path / "shards")
    packed(tree, tmp_path / "shards")
    assert times(tmp_path / "shards") == before


def test_other_options_or_images_are_refused(tree: Path, tmp_path: Path) -> None:
    packed(tree, tmp_path / "shards")
    with pytest.raises(BadInput, match=r"was begun with shard_images 5, now 6; seed 0, now 1; g"):
        packed(tree, tmp_path / "shards", Packing(6, 1, AS_IT_IS))
    (tree / "train" / packs.WNIDS[0] / "new.jpg").write_bytes(packs.jpeg(5))
    with pytest.raises(BadInput, match=r"was begun with 24 other images, now 25 of .*train; give"):
        packed(tree, tmp_path / "shards")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(BadInput, match=r"other: holds thesis.tex already; give a new folder"):
        pack(open_sources(tree)[1], other, HOW, 1)


def test_a_full_disk_ends_it_in_one_line_and_it_goes_on(disk: Path, tmp_path: Path) -> None:
    tree = packs.tree(tmp_path / "tree", per_class=300)
    dest = disk / "shards"
    # How much it will be is not known of images that are encoded again.
    how = Packing(50, 0, Encoding(quality=95))
    (disk / "ballast").write_bytes(bytes(1_000_000))
    with pytest.raises(RunFailed, match=r"No space left on device after \d+ shards?; make room, a"):
        packed(tree, dest, how)
    assert not list(dest.rglob("*.part"))
    with pytest.raises(BadInput, match="is not packed to the end"):
        open_folder(dest / "train")
    (disk / "ballast").unlink()
    moved = copytree(dest, tmp_path / "roomy")
    packed(tree, moved, how)
    packed(tree, tmp_path / "whole", how)
    assert shards(moved) == shards(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_before(disk: Path, tmp_path: Path) -> None:
    tree = packs.tree(tmp_path / "tree", per_class=300)
    with pytest.raises(BadInput, match=r"GiB free, and the shards need 0\.0; make room"):
        packed(tree, disk / "shards")
    assert not list((disk / "shards").rglob("*.tar"))


# Made smaller only when asked.


@pytest.mark.parametrize(
    ("how", "size"),
    [
        (Encoding(shorter_px=15), (30, 15)),
        (Encoding(longer_px=20), (20, 10)),
        (Encoding(shorter_px=25, longer_px=20), (20, 10)),
        (Encoding(shorter_px=40), (60, 30)),
    ],
)
def test_images_are_made_smaller_and_never_larger(how: Encoding, size: tuple[int, int]) -> None:
    original = packs.jpeg(3, (60, 30))
    suffix, content = encoded(original, how, "x")
    assert suffix == "jpg"
    with Image.open(BytesIO(content)) as image:
        assert image.size == size
        shrunk = np.asarray(image.convert("L")).astype(float)
    with Image.open(BytesIO(original)) as image:
        due = np.asarray(image.resize(size, Image.Resampling.LANCZOS).convert("L")).astype(float)
    assert np.abs(shrunk - due).mean() < 4
    assert (content == original) == (size == (60, 30))


def test_quality_alone_encodes_all_jpeg_anew() -> None:
    original = packs.jpeg(3, (60, 30))
    suffix, content = encoded(original, Encoding(quality=30), "x")
    assert suffix == "jpg"
    assert len(content) < len(original)
    png = packs.jpeg(3, format="PNG")
    assert encoded(png, Encoding(quality=30), "x") == ("png", png)
    suffix, smaller = encoded(png, Encoding(shorter_px=10, quality=30), "x")
    assert suffix == "png"
    assert Image.open(BytesIO(smaller)).size == (13, 10)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff garbage"])
def test_what_is_no_image_is_named(tree: Path, tmp_path: Path, content: bytes) -> None:
    bad = tree / "train" / packs.WNIDS[1] / f"{packs.WNIDS[1]}_3.JPEG"
    bad.write_bytes(content)
    with pytest.raises(BadInput, match=f"^{bad}: .*; remove or replace it, or find all such by"):
        packed(tree, tmp_path / "shards")
    bad.write_bytes(packs.jpeg(4))


def test_two_images_of_one_name_are_refused(tree: Path, tmp_path: Path) -> None:
    folder = tree / "train" / packs.WNIDS[1]
    (folder / f"{packs.WNIDS[1]}_3.png").write_bytes(packs.jpeg(1, format="PNG"))
    with pytest.raises(BadInput, match=r"_3\.png: .*_3\.JPEG is called .*_3 too"):
        packed(tree, tmp_path / "shards")


# On the command line.


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "harness", "data", *words)


def test_from_the_command_line(tree: Path, tmp_path: Path) -> None:
    done = run("pack", tree, tmp_path / "shards", "--shard-images", "10")
    assert done.returncode == 0, done.stderr
    train, val, hint = done.stdout.splitlines()
    assert train.startswith(f"{tmp_path}/shards/train: 24 images of 4 classes in 3 shards, 0.00 GB")
    assert val.startswith(f"{tmp_path}/shards/val: 8 images of 4 classes in 1 shards")
    assert hint == (
        f"train on them: torchrun launch/train.py CONFIG.yaml --data.train {tmp_path}/shards/train "
        f"--data.val {tmp_path}/shards/val"
    )
    written = json.loads((tmp_path / "shards" / "train" / "pack.json").read_text())
    assert written["finished"] is True
    assert written["source"] == "folder tree"
    index = run("pack", tmp_path / "shards")
    assert index.returncode == 0, index.stderr
    assert f"{tmp_path}/shards/train: 24 images of 4 classes; index:" in index.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no", "new"], "no: No such file or directory; give the folder of your images"),
        (["tree", "tree"], "tree: is also the source; leave DEST out to index it in place"),
        (["tree/val", "new", "--split", "train"], "tree/val: has no split train; it has: one wit"),
        (["tree", "new", "--quality", "0"], "--quality: must be at least 1, got 0; see: harness"),
        (["tree", "new", "--in-order", "--shuffle-seed", "1"], "--shuffle-seed: not allowed with"),
        (["file", "new"], "file: is a file; give the folder that it lies in"),
        (["tree", "file"], "file/train: Not a directory; give a folder that can be written"),
    ],
)
def test_wrong_words(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tree.parent)
    Path("file").touch()
    done = run("pack", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1
    assert not Path("new").exists()


def test_two_at_once_are_refused(tree: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "shards").mkdir()
    lock = FileLock(tmp_path / "shards" / ".pack.lock")
    with lock, pytest.raises(BadInput, match="another process packs into it"):
        pack(open_sources(tree)[0], tmp_path / "shards", HOW, 1)
