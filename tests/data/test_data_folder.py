"""A folder of images and its index; the demo set."""

from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path
from shutil import copytree, rmtree
from typing import get_args

import numpy as np
import pytest
from helpers import draw_tree
from PIL import Image
from rich.console import Console

from harness.data import demo, index, indexing, sets
from harness.data.dataset import Dataset, Read, open_folder, same_classes
from harness.data.files import TreeFiles
from harness.data.index import cache_folder, writable_index
from harness.errors import BadInput, RunFailed

INDEX = ".harness-index.npz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of two images."""
    return draw_tree(
        tmp_path / "data", classes=3, per_class=2, size=lambda k: (20 + k, 40), suffix=".jpg"
    )


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles hold the stream that was there when they were made."""
    monkeypatch.setattr(index, "out", Console(soft_wrap=True, highlight=False))


def path(data: Dataset, sample: int) -> Path:
    """File of a sample."""
    assert isinstance(data.files, TreeFiles)
    return Path(data.files.where(sample))


def names(data: Dataset) -> list[str]:
    return [str(path(data, sample).relative_to(data.root)) for sample in range(len(data))]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.is_dir()}


def image(path: Path, size: tuple[int, int] = (8, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (1, 2, 3)).save(path, **options)  # type: ignore[arg-type]
    return path


# What is in the index.


def test_an_image_has_its_size_and_label(root: Path) -> None:
    data = open_folder(root)
    assert data.classes == ["class0", "class1", "class2"]
    assert names(data) == [f"class{c}/{n:04d}.jpg" for c in range(3) for n in (c, c + 3)]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.width.tolist() == [20, 23, 21, 24, 22, 25]
    assert data.height.tolist() == [40] * 6
    assert data.size_bytes.tolist() == [path(data, k).stat().st_size for k in range(6)]


def test_labels_follow_the_names_of_the_folders(tmp_path: Path) -> None:
    for name in ("n10", "n9", "Zebra", "ä", "apple pie", "n1"):
        image(tmp_path / name / "x.png")
    data = open_folder(tmp_path)
    assert data.classes == sorted(data.classes) == ["Zebra", "apple pie", "n1", "n10", "n9", "ä"]
    assert path(data, 5) == tmp_path / "ä" / "x.png"


def test_only_images_in_class_folders_count(root: Path) -> None:
    for name in ("README.txt", "class0/Thumbs.db", "class0/list.jpg.txt", ".git/x.jpg", "loose.jpg",
                 "class1/._0001.jpg"):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    assert len(open_folder(root)) == 6


def test_suffixes_may_be_upper_case(tmp_path: Path) -> None:
    for name in ("a.JPEG", "b.JPG", "c.Png", "d.jpeg", "e.jpg", "f.png"):
        image(tmp_path / "class" / name)
    assert len(open_folder(tmp_path)) == 6


def test_links_to_folders_and_images_count(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "class0").symlink_to(root / "class0")
    (tmp_path / "linked" / "class1").mkdir()
    (tmp_path / "linked" / "class1" / "x.jpg").symlink_to(root / "class1" / "0001.jpg")
    assert len(open_folder(tmp_path / "linked")) == 3


def test_a_png_called_jpeg_is_an_image(tmp_path: Path) -> None:
    """ImageNet has one: n02105855_2933.JPEG."""
    image(tmp_path / "class" / "x.jpeg", (9, 7), format="PNG")
    data = open_folder(tmp_path)
    assert (data.width[0], data.height[0]) == (9, 7)


def test_sizes_ignore_the_rotation_of_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image(tmp_path / "class" / "x.jpg", (30, 10), exif=exif)
    with Image.open(tmp_path / "class" / "x.jpg") as turned:
        assert turned.getexif()[0x0112] == 6
    data = open_folder(tmp_path)
    assert (data.width[0], data.height[0]) == (30, 10)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    image(folder / "x.png")
    data = open_folder(tmp_path)
    assert path(data, 0) == folder / "x.png"
    assert data.files.read(0).size == data.size_bytes[0]


# Built once, and again when it must be.


def test_it_is_built_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_folder(root)
    before = (root / INDEX).stat().st_mtime_ns
    monkeypatch.setattr(indexing, "build_tree", None)
    again = open_folder(root)
    assert (root / INDEX).stat().st_mtime_ns == before
    assert again.digest == first.digest
    assert names(again) == names(first)
    assert files(root) == {INDEX}, "no lock and no half-written index is left"


def change_add(root: Path) -> None:
    image(root / "class1" / "new.png")


def change_remove(root: Path) -> None:
    (root / "class1" / "0001.jpg").unlink()


def change_rename(root: Path) -> None:
    (root / "class1" / "0001.jpg").rename(root / "class1" / "renamed.jpg")


def change_replace(root: Path) -> None:
    image(root / "new.jpg", (50, 60)).rename(root / "class1" / "0001.jpg")


def change_class(root: Path) -> None:
    (root / "class1").rename(root / "class9")


def change_classes(root: Path) -> None:
    rmtree(root / "class1")


@pytest.mark.parametrize(
    "change",
    [change_add, change_remove, change_rename, change_replace, change_class, change_classes],
)
def test_it_is_built_again_after_a_change(
    root: Path, change: object, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_folder(root)
    assert capsys.readouterr().out == ""
    assert callable(change)
    change(root)
    again = open_folder(root)
    said = capsys.readouterr().out
    assert said == f"{root / INDEX}: older than the images, building it again\n"
    assert again.digest != first.digest
    assert names(again) == sorted(names(again))
    assert all(path(again, sample).is_file() for sample in range(len(again)))
    assert open_folder(root).digest == again.digest
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("torn", [b"", b"PK\x03\x04", None])
def test_a_torn_index_is_built_again(root: Path, torn: bytes | None) -> None:
    first = open_folder(root)
    whole = (root / INDEX).read_bytes()
    (root / INDEX).write_bytes(whole[: len(whole) // 2] if torn is None else torn)
    assert open_folder(root).digest == first.digest
    assert (root / INDEX).stat().st_size == len(whole)


def test_a_header_that_does_not_parse_leaves_nothing(root: Path) -> None:
    bad = root / "class1" / "bad.jpg"
    none, early = "its header is not one of a JPEG or PNG", "ends early, before byte"
    for content, why in (
        (b"", none), (b"\xff\xd8\xff", f"{early} 6"), (b"<html>", none), (b"GIF89a\1\0;", none),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", f"{early} 33"),
    ):  # fmt: skip
        bad.write_bytes(content)
        hint = f"{why}; remove or replace it"
        with pytest.raises(BadInput, match=re.escape(f"{bad}: {hint}")):
            open_folder(root)
    assert files(root) == set()
    bad.unlink()
    bad.symlink_to("nowhere")
    with pytest.raises(BadInput, match=re.escape(f"{bad}: No such file or directory; remove or")):
        open_folder(root)
    assert files(root) == set()


def _open_after(barrier: object, root: Path, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    data = open_folder(root)
    results.put((data.digest, len(data)))  # type: ignore[attr-defined]


def test_four_processes_build_one_sound_index(tmp_path: Path) -> None:
    root = draw_tree(
        tmp_path / "data", classes=10, per_class=40, size=lambda k: (9, 9), suffix=".png"
    )
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=_open_after, args=(barrier, root, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    seen = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert set(seen) == {(open_folder(root).digest, 400)}
    assert files(root) == {INDEX}


# Where the data cannot be written.


@pytest.fixture
def read_only(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, not to be written; the cache folder is `cache`."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root and access(path, mode))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "deep" / "cache"))
    return root


def test_the_index_goes_into_the_cache(
    read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_folder(read_only)
    assert files(read_only) == set()
    assert data.files.index.parent == tmp_path / "deep" / "cache" / "index"
    assert files(data.files.index.parent) == {data.files.index.name}
    before = data.files.index.stat().st_mtime_ns
    assert open_folder(read_only).digest == data.digest
    assert data.files.index.stat().st_mtime_ns == before
    change_add(read_only)
    assert len(open_folder(read_only)) == 7
    assert "older than the images" in capsys.readouterr().out


def test_an_index_beside_the_data_serves_all(
    root: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    owner = open_folder(root)
    request.getfixturevalue("read_only")
    assert open_folder(root).files.index == owner.files.index
    assert not (tmp_path / "deep").exists()


def test_each_folder_has_its_own_index_in_the_cache(read_only: Path, tmp_path: Path) -> None:
    other = draw_tree(tmp_path / "x", classes=1, per_class=1, size=lambda k: (9, 9), suffix=".png")
    first = open_folder(read_only)
    assert writable_index(other).parent == other
    assert len(open_folder(other)) == 1
    assert len(open_folder(read_only)) == len(first)


def test_a_cache_that_cannot_be_made_is_named(
    read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    hint = "Not a directory; set HARNESS_CACHE to a folder you can write"
    with pytest.raises(BadInput, match=f"/file/cache: {hint}"):
        open_folder(read_only)
    with pytest.raises(BadInput, match=f"/file/cache: {hint}"):
        sets.demo("train")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="is not yours to write; set HARNESS_CACHE"):
        open_folder(read_only)


def test_the_cache_is_the_users_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "imagenet-harness"


# The digest.


def test_the_digest_tells_the_content_and_not_the_place(root: Path, tmp_path: Path) -> None:
    first = open_folder(root).digest
    assert re.fullmatch("[0-9a-f]{16}", first)
    moved = copytree(root, tmp_path / "elsewhere")
    (moved / INDEX).unlink()
    assert open_folder(moved).digest == first
    seen = {first}
    for change in (change_add, change_rename, change_replace, change_class):
        change(moved)
        seen.add(open_folder(moved).digest)
    assert len(seen) == 5


# Reading.


@pytest.mark.parametrize("read", get_args(Read))
def test_bytes_are_those_of_the_file(root: Path, read: Read) -> None:
    data = open_folder(root)
    for sample in range(len(data)):
        content = data.reader(read)(sample)
        assert content.dtype == np.uint8
        assert content.tobytes() == path(data, sample).read_bytes()


@pytest.mark.parametrize("read", get_args(Read))
def test_a_file_that_changed_its_size_is_named(root: Path, read: Read) -> None:
    data = open_folder(root)
    file = path(data, 3)
    for content in (file.read_bytes()[:50], file.read_bytes() + b"x", b""):
        file.write_bytes(content)
        with pytest.raises(RunFailed) as caught:
            data.reader(read)(3)
        assert str(caught.value) == (
            f"{file}: its size changed since it was indexed; remove {root / INDEX} and start again"
        )
    data.reader(read)(2)


def test_the_index_to_remove_is_the_one_in_use(read_only: Path) -> None:
    data = open_folder(read_only)
    path(data, 0).write_bytes(b"")
    with pytest.raises(RunFailed, match=re.escape(f"remove {data.files.index} and start again")):
        data.reader("mmap")(0)


@pytest.mark.parametrize("read", get_args(Read))
def test_a_file_that_is_gone_is_named(root: Path, read: Read) -> None:
    data = open_folder(root)
    path(data, 0).unlink()
    with pytest.raises(RunFailed, match=r"class0/0000\.jpg: No such file or directory"):
        data.reader(read)(0)


# Folders that cannot be trained on; test_bad_input.py has them from the command line.


def test_the_classes_of_both_sets_must_be_the_same(root: Path, tmp_path: Path) -> None:
    train = open_folder(root)
    other = copytree(root, tmp_path / "val")
    same_classes(train, open_folder(other))
    (other / "class1").rename(other / "klass1")
    val = open_folder(other)
    with pytest.raises(BadInput, match=f"^{other}: has no class folder class1, which {root} has"):
        same_classes(train, val)
    with pytest.raises(BadInput, match=f"^{root}: has no class folder klass1, which {other} has"):
        same_classes(val, train)


# The demo set.


@pytest.fixture
def _small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(demo, "VAL_IMAGES", 50)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("_small_demo")
def test_two_draws_are_the_same(tmp_path: Path) -> None:
    demo.draw(tmp_path / "a")
    demo.draw(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.usefixtures("_small_demo")
def test_the_demo_set_is_ten_balanced_classes(tmp_path: Path) -> None:
    demo.draw(tmp_path / "demo")
    train, val = open_folder(tmp_path / "demo" / "train"), open_folder(tmp_path / "demo" / "val")
    same_classes(train, val)
    assert train.classes == list(demo.CLASSES)
    assert np.bincount(train.labels).tolist() == [20] * 10
    assert np.bincount(val.labels).tolist() == [5] * 10
    sides = np.concatenate([train.width, train.height, val.width, val.height])
    assert (sides.min() >= 48, sides.max() <= 160) == (True, True)
    assert np.unique(sides).size > 80
    images = list(contents(tmp_path / "demo").items())
    assert len({content for name, content in images if name.endswith(".jpg")}) == 250


def test_more_images_begin_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image follows from its number, not from how many there are."""
    monkeypatch.setattr(demo, "VAL_IMAGES", 10)
    for count in (10, 20):
        monkeypatch.setattr(demo, "TRAIN_IMAGES", count)
        demo.draw(tmp_path / str(count))
    assert contents(tmp_path / "10").items() <= contents(tmp_path / "20").items()


def test_the_counts_that_the_readme_names() -> None:
    assert (demo.TRAIN_IMAGES, demo.VAL_IMAGES) == (4000, 1000)


@pytest.mark.usefixtures("_small_demo")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_draw_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    draw_one = demo._draw_one

    def fails_at_9(folder: Path, split: str, number: int) -> None:
        if number == 9:
            raise error
        draw_one(folder, split, number)

    with monkeypatch.context() as patched:
        patched.setattr(demo, "_draw_one", fails_at_9)
        with pytest.raises((BadInput, error)):
            demo.draw(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    demo.draw(tmp_path / "demo")
    assert len(contents(tmp_path / "demo")) == 250


@pytest.mark.usefixtures("_small_demo")
def test_it_is_drawn_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    train = sets.demo("train")
    monkeypatch.setattr(demo, "draw", None)
    assert sets.demo("train") == train
    assert sets.demo("val") == train.parent / "val"
    assert len(open_folder(train)) == 200
