"""The shelf: every row makes sense, says where it is from, and can be asked for."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import torchvision
import yaml
from helpers import ROOT

from harness.__main__ import main
from harness.errors import BadInput
from harness.models.zoo import MODELS
from harness.results.references import REFERENCES, Reference, find, load_references, pick

ROW: dict[str, Any] = {
    "id": "somebody2020-resnet50",
    "model": "resnet50",
    "dataset": "imagenet",
    "protocol": "centre crop 224 px of 256",
    "metric": "top1",
    "value": 76.4,
    "std": 0.12,
    "n": 5,
    "gpus": 8,
    "epochs": 90,
    "source": "Somebody 2020, table 1",
    "evidence": "primary",
}


@pytest.fixture(scope="module")
def shelf() -> dict[str, Reference]:
    return load_references()


def written(folder: Path, *rows: dict[str, Any], **shared: Any) -> Path:
    path = folder / "shelf.yaml"
    path.write_text(yaml.safe_dump([{**shared, "rows": list(rows)}]))
    return path


def test_the_shelf_holds_what_recipes_name(shelf: dict[str, Reference]) -> None:
    assert len(shelf) > 100
    for row in shelf.values():
        assert (row.dataset == "imagenet") == (not MODELS[row.model].cifar), row.id
        if row.metric in ("top1", "top5"):
            assert 50 < row.value < 97, row.id
    assert {row.model for row in shelf.values()} >= {
        *("plain18", "plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"),
        *("densenet121", "densenet161", "densenet169", "densenet201", "densenet264"),
        *("densenet_40_12", "densenet_bc_100_12", "densenet_bc_190_40"),
    }
    assert {row.metric for row in shelf.values()} == {
        *("top1", "top5", "images_per_second", "minutes_to_train", "epochs_to_target"),
        "scaling_efficiency_pct",
    }


def test_rows_with_the_same_number_are_not_one_row_twice(shelf: dict[str, Reference]) -> None:
    rows = [row.model_dump(exclude={"id"}) for row in shelf.values()]
    assert [row for row in rows if rows.count(row) > 1] == []


def test_torchvisions_rows_are_what_torchvision_says(shelf: dict[str, Reference]) -> None:
    rows = [row for row in shelf.values() if row.id.startswith("torchvision-v1-")]
    assert len(rows) == 14
    for row in rows:
        weights = torchvision.models.get_model_weights(row.model)["IMAGENET1K_V1"]
        published = weights.meta["_metrics"]["ImageNet-1K"]
        assert row.value == published[{"top1": "acc@1", "top5": "acc@5"}[row.metric]]


@pytest.mark.parametrize(
    ("name", "error", "std"),
    [
        # As the papers print them, each typed by hand.
        ("he2015-resnet50-10crop-top1", 22.85, None),
        ("he2015-resnet152-10crop-top5", 5.71, None),
        ("he2015-cifar10-resnet110", 6.61, 0.16),
        ("goyal2017-resnet50-b256", 23.60, 0.12),
        ("goyal2017-resnet50-b8192", 23.74, 0.09),
        ("goyal2017-resnet50-b65536", 33.96, 0.80),
        ("goyal2017-resnet101-b8192", 22.36, 0.09),
        ("huang2017-densenet121-1crop-top1", 25.02, None),
        ("huang2017-cifar10-densenet-bc-190-40", 3.46, None),
        ("huang2017-cifar100-densenet-40-12-no-aug", 27.55, None),
    ],
)
def test_errors_in_the_papers_are_accuracies_here(
    shelf: dict[str, Reference], name: str, error: float, std: float | None
) -> None:
    assert shelf[name].value == pytest.approx(100 - error, abs=1e-9)
    assert shelf[name].std == std


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 123.0}, "an accuracy is at most 100 %"),
        ({"value": 0.0}, "somebody2020-resnet50.value: Input should be greater than 0"),
        ({"value": "76.4"}, "somebody2020-resnet50.value: Input should be a valid number"),
        ({"protocol": None}, "an accuracy needs its protocol"),
        ({"source": ""}, "somebody2020-resnet50.source: "),
        ({"evidence": "memory"}, "somebody2020-resnet50.evidence: "),
        ({"model": "vgg16"}, "somebody2020-resnet50.model: "),
        ({"n": 1}, "one run has no std"),
        ({"std": -0.1}, "somebody2020-resnet50.std: "),
        ({"id": "Some Body"}, "Some Body.id: "),
        ({"id": "a/b"}, "a/b.id: "),
        ({"speed": 3}, "somebody2020-resnet50.speed: Extra inputs are not permitted"),
        ({"metric": "images_per_second", "gpus": None}, "a throughput needs its gpus"),
        ({"metric": "epochs_to_target"}, "epochs to a target need target_top1_pct"),
        ({"metric": "minutes_to_train", "epochs": None}, "needs epochs or target_top1_pct"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert load_references(written(tmp_path, ROW)) == {ROW["id"]: Reference(**ROW)}
    with pytest.raises(BadInput) as caught:
        load_references(written(tmp_path, ROW | change))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'shelf.yaml'}: ")


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="somebody2020-resnet50: this id is given twice"):
        load_references(written(tmp_path, ROW, ROW))


def test_rows_share_what_their_source_says_and_may_say_otherwise(tmp_path: Path) -> None:
    rest = {key: value for key, value in ROW.items() if key not in ("epochs", "n")}
    path = written(tmp_path, rest, rest | {"id": "b", "epochs": 45.0}, epochs=90, n=3)
    assert [(row.epochs, row.n) for row in load_references(path).values()] == [(90, 3), (45, 3)]


@pytest.mark.parametrize("text", ["a: 1", "- b", "- source: x", "[", "\t", "- rows: [1]"])
def test_a_file_that_is_no_shelf_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "shelf.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"shelf\.yaml: "):
        load_references(path)


def test_pick_takes_both_filters(shelf: dict[str, Reference]) -> None:
    assert pick(shelf, model=None, metric=None) == list(shelf.values())
    both = pick(shelf, model="resnet101", metric="minutes_to_train")
    assert [row.id for row in both] == ["goyal2017-resnet101-b8192-minutes"]
    assert find(shelf, both[0].id) is both[0]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["show", *words])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_show_references_prints_whole_ids(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "references", "--model", "resnet50", "--metric", "top1"])
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("reference", "metric", "value", "(n)", "batch", "epochs", "hardware", "how"),
    ]
    assert any(row.startswith("goyal2017-resnet50-b8192-constant-warmup ") for row in rows)
    (baseline,) = [row for row in rows if row.startswith("goyal2017-resnet50-b256 ")]
    for part in ("top1", "76.4 ± 0.12 (5)", " 256 ", " 90 ", "8 x P100, fp32", "centre crop 224"):
        assert part in baseline
    assert last.startswith("31 references")
    assert "harness show references ID" in last


def test_show_one_reference_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "references", "goyal2017-resnet50-b256"])
    text = " ".join(capsys.readouterr().out.split())
    assert "arXiv:1706.02677, figure 3 and table 1" in text
    assert "evidence copy" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("references --model resnet5O", "--model: no reference for resnet5O; did you mean resnet5"),
        ("references --metric top3", "--metric: no reference gives top3; did you mean top"),
        ("references --model zzz", "--model: no reference for zzz; known: plain18, resnet18, "),
        ("references --model resnet20 --metric top5", "no reference for resnet20 gives top5, only"),
        ("references goyal2017-resnet50", "did you mean goyal2017-resnet50-b128?"),
        ("runs --model resnet50", "show runs: --model and --metric belong to `show references`"),
    ],
)
def test_unknown_names_are_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = refused(capsys, *words.split())
    assert message in printed
    assert printed.count("\n") == 1


def test_an_installed_copy_has_every_file_that_is_read() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packaged = {
        ROOT / package.replace(".", "/") / name
        for package, names in setup["options.package_data"].items()
        for name in names.split()
    }
    others = {
        path
        for path in (ROOT / "harness").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert packaged == others
    assert REFERENCES in others
