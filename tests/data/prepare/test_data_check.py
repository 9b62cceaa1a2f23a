"""`harness data check` finds each planted fault, names it, and finds nothing in sound images."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import packs
import pytest
from PIL import Image
from ranks import python

from harness.data.prepare import check
from harness.data.prepare.pack import Encoding, Packing, pack
from harness.data.prepare.sources import Source, open_sources
from harness.data.prepare.sources.source import Place

A, B = packs.WNIDS[:2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return packs.tree(tmp_path / "tree")


def looked(root: Path, *, decode: bool = True) -> check.Report:
    return check.check(open_sources(root), decode=decode, workers=2)


def test_sound_images_have_no_findings(tree: Path) -> None:
    for decode in (False, True):
        report = looked(tree, decode=decode)
        assert report.findings == []
        train, val = report.splits
        assert (train.split, train.images, train.classes) == ("train", 24, 4)
        assert (train.least_per_class, train.most_per_class) == (6, 6)
        assert (val.split, val.images, val.least_per_class) == ("val", 8, 2)
        assert train.median_width_px == 42


def empty(tree: Path) -> Path:
    path = tree / "train" / A / f"{A}_1.JPEG"
    path.write_bytes(b"")
    return path


def unreadable(tree: Path) -> Path:
    path = tree / "train" / A / f"{A}_2.JPEG"
    path.write_bytes(b"<html>not found</html>")
    return path


def corrupt(tree: Path) -> Path:
    path = tree / "val" / A / sorted(p.name for p in (tree / "val" / A).iterdir())[0]
    path.write_bytes(path.read_bytes()[:-100])
    return path


def cmyk(tree: Path) -> Path:
    path = tree / "train" / B / f"{B}_1.JPEG"
    Image.new("CMYK", (30, 30), (1, 2, 3, 4)).save(path)
    return path


def png(tree: Path) -> Path:
    path = tree / "train" / B / f"{B}_2.JPEG"
    path.write_bytes(packs.jpeg(77, format="PNG"))
    return path


def rotated(tree: Path) -> Path:
    path, exif = tree / "train" / B / f"{B}_3.JPEG", Image.Exif()
    exif[0x0112] = 6
    # A header that is longer than what is read first.
    path.write_bytes(packs.jpeg(78, exif=exif, icc_profile=bytes(9000)))
    return path


def huge(tree: Path) -> Path:
    path = tree / "train" / B / f"{B}_4.JPEG"
    Image.new("L", (8000, 5000)).save(path, quality=1)
    return path


def duplicate(tree: Path) -> Path:
    path = next((tree / "val" / B).iterdir())
    path.write_bytes((tree / "train" / A / f"{A}_5.JPEG").read_bytes())
    return path


PLANTED: dict[str, Callable[[Path], Path]] = {
    "empty": empty, "unreadable": unreadable, "corrupt": corrupt, "CMYK": cmyk, "PNG": png,
    "rotated": rotated, "huge": huge, "leak": duplicate,
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_each_planted_fault_is_found_and_nothing_else(tree: Path, kind: str) -> None:
    where = PLANTED[kind](tree)
    (finding,) = looked(tree).findings
    assert (finding.kind, finding.where) == (kind, str(where))
    assert finding.wrong == (kind in check.WRONG)
    without = looked(tree, decode=False).findings
    assert without == ([] if kind == "corrupt" else [finding])


def test_all_of_them_at_once(tree: Path) -> None:
    planted = {kind: str(plant(tree)) for kind, plant in PLANTED.items()}
    found = looked(tree).findings
    assert {each.kind: each.where for each in found} == planted
    assert len(found) == len(planted)


def test_a_few_of_many_in_both_splits_are_worth_a_note(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duplicate(tree)
    monkeypatch.setattr(check, "LEAK_PCT", 20)
    (finding,) = looked(tree).findings
    assert (finding.kind, finding.wrong) == ("duplicate", False)
    assert finding.detail == f"is {tree}/train/{A}/{A}_5.JPEG"


def test_classes_that_differ(tree: Path) -> None:
    (tree / "val" / A).rename(tree / "val" / "n00000000")
    found = looked(tree).findings
    assert [(each.kind, each.where, each.detail) for each in found] == [
        ("classes", f"{tree}/val", f"has no {A}, which {tree}/train has (1 such)"),
        ("classes", f"{tree}/train", f"has no n00000000, which {tree}/val has (1 such)"),
    ]


def test_labels_that_do_not_count_from_0(tmp_path: Path) -> None:
    packs.tar(tmp_path / "a.tar", {"1.jpg": packs.jpeg(1), "1.cls": b"1"})
    (finding,) = looked(tmp_path).findings
    assert (finding.kind, finding.detail) == ("no images", "class 0: labels count from 0")


def imagenet(root: Path, split: str, per_class: int) -> Source:
    """1000 classes by name, whose images are not looked at."""
    classes = [f"n{k:08d}" for k in range(1000)]
    labels = [k for k in range(1000) for _ in range(per_class)]
    images = [Place(k, f"{classes[k]}/{n}", root, 0, 0) for n, k in enumerate(labels)]
    return Source(root, "made", split, classes, images)


def test_the_counts_of_imagenet(tmp_path: Path) -> None:
    assert list(check._counts(imagenet(tmp_path, "val", 50))) == []
    few = imagenet(tmp_path, "val", 50)
    few.labels[0] = 1
    (finding,) = check._counts(few)
    assert finding.detail == "class n00000001 has 51 images, each has 50 (2 such classes)"
    (finding,) = check._counts(imagenet(tmp_path, "train", 3))
    assert finding.detail == "3,000 images, ImageNet has 1,281,167"


@pytest.mark.parametrize("kind", ["ilsvrc", "kaggle"])
def test_other_layouts_are_checked_where_they_lie(tmp_path: Path, kind: str) -> None:
    assert looked(getattr(packs, kind)(tmp_path)).findings == []


def test_a_shard_with_other_bytes_than_were_packed(tree: Path, tmp_path: Path) -> None:
    for source in open_sources(tree):
        pack(source, tmp_path / "s" / source.split, Packing(5, 0, Encoding()), 1)
    assert looked(tmp_path / "s").findings == []
    path = tmp_path / "s" / "train" / "train-000001.tar"
    with tarfile.open(path) as tar:
        image = next(member for member in tar if member.name.endswith(".jpg"))
    with path.open("r+b") as file:
        file.seek(image.offset_data + image.size - 30)
        file.write(b"\x00\x01\x02")
    altered = [each for each in looked(tmp_path / "s").findings if each.kind == "altered"]
    assert [each.where for each in altered] == [str(path)]


def harness(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "harness", "data", "check", *words)


def test_from_the_command_line(tree: Path, tmp_path: Path) -> None:
    done = harness(tree)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{tree}: 32 headers are good; --decode looks")
    corrupt(tree)
    damaged = rotated(tree).with_name(f"{B}_4.JPEG")  # EXIF of which Pillow warns, without a name
    damaged.write_bytes(packs.jpeg(79, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12\0\3"))
    done = harness(tree)
    assert (done.returncode, done.stderr) == (0, "")
    done = harness(tree, "--decode", "--json", tmp_path / "found.json")
    assert (done.returncode, done.stderr) == (1, "")
    assert "WRONG: 1 x corrupt (does not decode to its end)" in done.stdout
    assert "note: 1 x rotated (EXIF rotation" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"{tree}: 1 finding would make training wrong; fix them and check again"
    )
    report = json.loads((tmp_path / "found.json").read_text())
    assert Counter(each["kind"] for each in report["findings"]) == {"corrupt": 1, "rotated": 1}
    assert report["splits"][0]["images"] == 24


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no"], "no: No such file or directory; give the folder of your images"),
        (["tree", "--json", "no/x.json"], "no: no such folder; give --json another FILE"),
    ],
)
def test_wrong_words(
    tree: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tree.parent)
    done = harness(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {says}\n")


@pytest.mark.shared_data
def test_the_real_images_are_sound(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "data" / "imagenet-sample-250.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    report = looked(tmp_path / "imagenet-sample")
    assert report.splits[0].images == 250
    assert report.wrong == []
    assert {each.kind for each in report.findings} <= {"rotated"}
