"""Shards, whoever made them: read where they lie, refused in one line where not whole."""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from pathlib import Path
from shutil import copytree, move

import numpy as np
import packs
import pytest
import torch
from helpers import TINY, train
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import RESIZED, dali, samples_of
from rich.console import Console

from harness.data import index
from harness.data.dataset import Dataset, open_folder, same_classes
from harness.data.prepare.pack import Encoding, Packing, pack
from harness.data.prepare.sources import open_sources
from harness.errors import BadInput, RunFailed

INDEX = ".harness-index.npz"


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "out", Console(soft_wrap=True, highlight=False))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The training split in five shards that pack made, indexed."""
    source = open_sources(packs.tree(tmp_path / "tree"))[0]
    pack(source, tmp_path / "shards", Packing(5, 0, Encoding()), 2)
    open_folder(tmp_path / "shards")
    return tmp_path / "shards"


def foreign(labels: list[int], first: int = 0) -> dict[str, bytes]:
    """As other tools write them: names without folders, more members than are needed."""
    members = {}
    for number, label in enumerate(labels, first):
        members[f"{number:06d}.jpeg"] = packs.jpeg(number, (20 + number, 30))
        members[f"{number:06d}.json"] = b"{}"
        members[f"{number:06d}.cls"] = b"%d\n" % label
    return members


def read(data: Dataset) -> list[tuple[int, bytes]]:
    return [(int(data.labels[k]), data.content(k)) for k in range(len(data))]


# Foreign shards.


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_shards_are_read_in_place(tmp_path: Path, kind: int) -> None:
    packs.tar(tmp_path / "a-0.tar", foreign([2, 0, 1]), kind)
    packs.tar(tmp_path / "a-1.tar", foreign([0, 2], first=3), kind)
    data = open_folder(tmp_path)
    assert data.classes == ["0", "1", "2"]
    assert not data.named
    assert data.labels.tolist() == [0, 0, 1, 2, 2]
    order = [1, 3, 2, 0, 4]  # by label, then name
    assert data.width.tolist() == [20 + number for number in order]
    assert read(data) == [
        (label, packs.jpeg(number, (20 + number, 30)))
        for label, number in zip([0, 0, 1, 2, 2], order, strict=True)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, "a-0.tar", "a-1.tar"]


def test_long_names_and_folders_in_tars(tmp_path: Path) -> None:
    name = "./" + "x" * 120
    members = {f"{name}/{k}.PNG": packs.jpeg(k, format="PNG") for k in range(2)}
    members |= {f"{name}/{k}.cls": b"0" for k in range(2)}
    ordered = {key: members[key] for key in sorted(members)}
    packs.tar(tmp_path / "a.tar", ordered, tarfile.PAX_FORMAT)
    data = open_folder(tmp_path)
    assert [content for _, content in read(data)] == [packs.jpeg(k, format="PNG") for k in (0, 1)]
    assert str(tmp_path / "a.tar") in data.where(0)


def test_files_of_macos_are_left_alone(tmp_path: Path) -> None:
    packs.tar(tmp_path / "a.tar", {"._1.jpg": b"mac", **foreign([0]), ".DS_Store": b""})
    packs.tar(tmp_path / "._a.tar", {"x": b""})
    assert len(open_folder(tmp_path)) == 1


@settings(max_examples=30)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=12), cut=st.integers(1, 5))
def test_the_index_is_of_all_samples_by_label_then_name(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    for first in range(0, len(labels), cut):
        members = foreign(labels[first : first + cut], first)
        packs.tar(folder / f"{first:03d}.tar", members)
    data = open_folder(folder)
    order = sorted(range(len(labels)), key=lambda number: (labels[number], number))
    assert data.labels.tolist() == [labels[number] for number in order]
    for sample, number in enumerate(order):
        expected = packs.jpeg(number, (20 + number, 30))
        assert bytes(data.files.mapped(sample)) == bytes(data.files.read(sample)) == expected
        assert data.size_bytes[sample] == len(expected)
        assert f"({number:06d}.jpeg)" in data.where(sample)
    part = data.part(np.array([0]), "first")
    assert read(part) == read(data)[:1]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"1.jpg": packs.jpeg(1)}, "offset 512 (1.jpg): no label belongs to it, 1.cls is missing"),
        ({"1.cls": b"1"}, "offset 512 (1.cls): no .jpg or .png belongs to it"),
        ({"1.jpg": packs.jpeg(1), "1.cls": b"cat"}, "1.cls, is no class number: b'cat'"),
        ({"1.jpg": packs.jpeg(1), "1.cls": b"-1"}, "1.cls, is no class number: b'-1'"),
        ({"1.jpg": b"GIF89a", "1.cls": b"1"}, "offset 512 (1.jpg): its header is not one of a JPE"),
        ({"1.jpg": b"", "1.cls": b"1"}, "offset 512 (1.jpg): its header is not one of a JPEG or P"),
        ({}, "its shards hold no jpg, jpeg, png with a .cls beside it"),
    ],
)
def test_shards_that_are_none(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    packs.tar(tmp_path / "a.tar", members)
    with pytest.raises(BadInput, match=re.escape(says)) as caught:
        open_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert not (tmp_path / INDEX).exists()


def test_compressed_or_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content in (b"", b"no tar at all" * 100):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.tar: is no uncompressed tar \(.*\); replace it"):
            open_folder(tmp_path)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(BadInput, match=r"a\.tar: is no uncompressed tar"):
        open_folder(tmp_path)


def test_a_tar_cut_anywhere_is_never_read_as_whole(tmp_path: Path) -> None:
    whole = packs.tar_bytes(foreign([0, 1, 2]))
    end = len(whole) - len(whole) % 512
    while not any(whole[end - 512 : end]):
        end -= 512
    path = tmp_path / "a.tar"
    for cut in (1, 511, 512, 513, 1100, end // 2, end - 600, end - 512, end - 1, end, end + 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadInput, match=rf"^{path}: "):
            open_folder(tmp_path)
    path.write_bytes(whole[: end + 512])
    assert len(open_folder(tmp_path)) == 3


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(packs.tar_bytes(foreign([0, 1, 2])))
    at = whole.index(b"000001.jpeg")
    whole[at : at + 4] = b"\xff" * 4
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(BadInput, match=rf"a\.tar: offset {at:,}: is no tar header"):
        open_folder(tmp_path)


# The index, and shards that are not those that it is of.


def test_it_is_built_once_and_again_after_a_change(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "pack.json").unlink()  # as of other people's shards
    first = open_folder(root)
    assert capsys.readouterr().out == ""
    packs.tar(root / "z.tar", {f"n12267677/{k}": v for k, v in foreign([3]).items()})
    again = open_folder(root)
    assert capsys.readouterr().out == f"{root / INDEX}: older than the shards, building it again\n"
    assert len(again) == len(first) + 1
    assert again.digest != first.digest
    os.utime(root / "z.tar")  # copied again
    assert open_folder(root).digest == again.digest
    assert "older than the shards" in capsys.readouterr().out


def test_a_moved_or_copied_folder_keeps_its_digest(root: Path, tmp_path: Path) -> None:
    digest = open_folder(root).digest
    copy = copytree(root, tmp_path / "copy")
    assert open_folder(copy).digest == digest
    assert open_folder(Path(move(root, tmp_path / "moved"))).digest == digest


def test_a_shard_that_is_missing_is_named(root: Path) -> None:
    (root / "train-000003.tar").unlink()
    with pytest.raises(BadInput, match=r"train-000003\.tar: No such file or directory, pack\.json"):
        open_folder(root)
    (root / "pack.json").unlink()
    with pytest.raises(BadInput, match=r"train-000003\.tar: is missing, the index of .* lists it"):
        open_folder(root)
    (root / INDEX).unlink()
    assert len(open_folder(root)) < 24


def test_a_shard_of_another_size_is_named(root: Path) -> None:
    path = root / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(
        BadInput, match=r"train-000002\.tar: has [\d,]+ bytes, [\d,]+ when it was p"
    ):
        open_folder(root)


@pytest.mark.parametrize("how", ["mmap", "pread"])
def test_a_shard_cut_after_it_was_indexed_ends_the_run_in_one_line(root: Path, how: str) -> None:
    data = open_folder(root)
    for path in root.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:512])
    with pytest.raises(
        RunFailed, match=r"\.tar: has 512 bytes, [\d,]+ when it was indexed; copy i"
    ):
        data.reader(how)(0)  # type: ignore[arg-type]
    for path in root.glob("*.tar"):
        path.unlink()
    with pytest.raises(RunFailed, match=r"\.tar: No such file or directory"):
        data.reader(how)(0)  # type: ignore[arg-type]


def test_an_image_that_does_not_decode_is_named_with_its_shard(tmp_path: Path) -> None:
    members = foreign([0] * 12)
    whole = members["000007.jpeg"]
    members["000007.jpeg"] = whole[: -len(whole) // 4]
    packs.tar(tmp_path / "a.tar", members)
    data = open_folder(tmp_path)
    hint = f"find all such by harness data check --decode {tmp_path}"
    where = (
        rf"a\.tar: offset [\d,]+ \(000007\.jpeg\): sample 7 does not decode \(.*\); .*, or {hint}"
    )
    with pytest.raises(RunFailed, match=where):
        list(dali(data, RESIZED, batch=4))


# Classes of shards that have none but numbers.


def test_labels_must_be_classes_of_both_sets(root: Path, tmp_path: Path) -> None:
    named = open_folder(root)
    assert same_classes(named, named) == 4
    packs.tar(tmp_path / "good" / "a.tar", foreign([0, 1, 2, 3]))
    assert same_classes(open_folder(tmp_path / "good"), named) == 4
    packs.tar(tmp_path / "bad" / "a.tar", foreign([1, 2, 3, 4]))
    bad = open_folder(tmp_path / "bad")
    outside = r"bad/a\.tar: offset [\d,]+ \(000003\.jpeg\): label 4 is outside of the 4 classes of"
    with pytest.raises(BadInput, match=outside):
        same_classes(bad, named)
    assert same_classes(bad, open_folder(tmp_path / "good")) == 5


# In training.


def test_the_folder_above_the_splits_is_named(root: Path) -> None:
    above = root.parent
    for folder in (above / "tree", above):
        with pytest.raises(BadInput, match=rf"^{folder}: its images lie deeper; give {folder}/"):
            open_folder(folder)


@pytest.mark.slow
def test_a_run_on_shards_is_the_run_on_the_tree(root: Path) -> None:
    """Bit by bit, on three ranks, with the same digests of what was seen."""
    found = []
    for name, images in (("tree", root.parent / "tree" / "train"), ("shards", root)):
        words = ["--data.train", images, "--data.val", images, "--run.name", name]
        words += ["--train.global-batch", "6", "--eval.local-batch", "4", "--data.read", "pread"]
        done = train(*TINY, *words, ranks=3, cwd=root.parent)
        assert done.returncode == 0, done.stderr
        run = root.parent / "runs" / name
        result = json.loads((run / "result.json").read_text())
        weights = torch.load(run / "checkpoints" / "final.pt")["model"]
        found.append((result["digests"], result["train_digest"], result["val_loss"], weights))
    assert found[0][:3] == found[1][:3]
    assert all(torch.equal(found[0][3][name], found[1][3][name]) for name in found[0][3])


def test_memory_of_a_reader_does_not_grow(root: Path) -> None:
    """What is mapped is the kernel's; what is this process's own must stay."""

    def own_kb() -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines()
                   if line.startswith("RssAnon")]  # fmt: skip
        return int(line.split()[1])

    data = open_folder(root)
    batches = dali(data, RESIZED, samples=itertools.chain.from_iterable(
        samples_of(data, RESIZED, 6, epochs=5) for _ in range(20)), batch=6)  # fmt: skip
    for _ in range(5 * 4 * 5):
        next(batches)
    before = own_kb()
    for _ in range(5 * 4 * 15):
        next(batches)
    assert own_kb() - before < 4000
