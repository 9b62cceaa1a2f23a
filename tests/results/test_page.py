"""The page of a comparison: one file that says it all, to anybody, whatever runs are called."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from made_runs import made_run

from harness.__main__ import main
from harness.errors import BadInput
from harness.results.page.page import write_page
from harness.results.page.plots import COLORS
from harness.results.page.render import FOLDER
from harness.results.page.series import band, line
from harness.results.references import find, load_references
from harness.results.source import runs_at
from harness.results.stats.compare import Cell, Comparison, compare_cells
from harness.results.stats.metrics import metrics
from harness.results.stats.reproduce import reproduce

Floats = npt.NDArray[np.float64]
VOID = {"meta", "path", "use", "rect"}
HOSTILE = "<b>&\"'</b> $x^2$ \udc80\x01 #fe0000 " + "long" * 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of `a`, two of the faster `b`, and one on synthetic images."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        made_run(root / f"a-s{seed}", seed=seed, rate=1000 + seed, top1_pct=76.4 + seed / 100)
        made_run(
            root / f"b-s{seed}", seed=seed, rate=1200 + seed, top1_pct=76.4 + seed / 50,
            sections={"engine": {"compile": False}}, compiled=False,
        )  # fmt: skip
    made_run(
        root / "synthetic", source="synthetic", sections={"data": {"source": "synthetic"}},
        top1_pct=0.1,
    )  # fmt: skip
    return root


def cell(*addresses: Path | str) -> Cell:
    found = [run for address in addresses for run in runs_at(str(address))]
    return Cell(Path(addresses[0]).name, tuple(found))


def page(
    folder: Path, *cells: Cell, references: Sequence[str] = (), anyway: bool = False,
    testing: Sequence[str] = (),
) -> str:  # fmt: skip
    """The page of cells, each but the last next to the last, and next to references."""
    path = folder / "page.html"
    comparisons = [*compared(cells), *reproduced(cells, references)]
    write_page(path, cells, comparisons, testing=testing, anyway=anyway)
    return path.read_text(encoding="utf-8")


def compared(cells: Sequence[Cell]) -> list[Comparison]:
    *new, base = cells
    return [compare_cells(each, base, metrics(), "images_per_second") for each in new]


def reproduced(cells: Sequence[Cell], references: Iterable[str]) -> list[Comparison]:
    shelf = load_references()
    return [reproduce(each, find(shelf, name, "no")) for name in references for each in cells]


class Checker(HTMLParser):
    """Asserts that what is opened is closed; gathers what stands in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.outer: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base")
        assert not any(name.startswith("on") or name == "src" for name in names)
        assert str(names.get("href", "#")).startswith("#")
        assert str(names.get("xlink:href", "#")).startswith("#")
        self.ids += [str(names["id"])] if "id" in names else []
        if tag == "svg":
            assert self.outer["role"] == "img"
            assert self.outer["aria-label"]
        self.outer = names
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


def checked(text: str) -> str:
    """What a reader sees of a page that needs no network, is well-formed and hangs together."""
    assert text.startswith("<!DOCTYPE html>")
    assert "://" not in re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", text)
    assert "@import" not in text
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", text))
    checker = Checker(text)
    assert len(checker.ids) == len(set(checker.ids))
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]*)", text)) <= set(checker.ids)
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))
    for picture in pictures(text):
        ET.fromstring(picture)
    return " ".join("".join(checker.texts).split())


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def titles(text: str) -> list[str]:
    return re.findall(r"<h[23]>([^<]*)</h", text)


def test_a_comparison_says_it_all(runs: Path, tmp_path: Path) -> None:
    cells = cell(runs / "a-s*"), cell(runs / "b-s*")
    text = page(tmp_path, *cells, testing=["engine.compile"])
    said = checked(text)
    (comparison,) = compared(cells)
    for found in comparison.findings:
        assert found.metric.title in said
        assert found.verdict in said
    for run in (*cells[0].runs, *cells[1].runs):
        assert run.name in said
        assert run.address in said
    assert "engine.compile under test" in said
    assert titles(text) == [
        "Verdicts", "What differs", "Accuracy", "Accuracy over epochs",
        "Accuracy over training time", "Speed", "Throughput over training time", "Step time",
        "Where the time went", "Runs",
    ]  # fmt: skip
    assert len(pictures(text)) == 5 + len(comparison.findings)


def test_a_publication_stands_beside_runs(runs: Path, tmp_path: Path) -> None:
    ours = cell(runs / "a-s*")
    reference = "torchvision-v1-resnet50-top1"
    (reproduction,) = reproduced([ours], [reference])
    said = checked(page(tmp_path, ours, references=[reference], anyway=True))
    assert reproduction.findings[0].verdict in said
    assert f"ref:{reference}" in said
    assert reproduction.base.reference
    assert reproduction.base.reference.source in said


def test_what_is_not_comparable_gets_no_verdict(runs: Path, tmp_path: Path) -> None:
    cells = cell(runs / "a-s*"), cell(runs / "synthetic")
    (comparison,) = compared(cells)
    text = page(tmp_path, *cells)
    said = checked(text)
    assert f"not comparable: {comparison.doubts[0]}" in said
    assert set(re.findall(r'class="pill[^"]*">([^<]*)<', text)) == {"not comparable"}
    assert said.index("not comparable") < said.index("throughput")
    anyway = page(tmp_path, *cells, anyway=True)
    assert f"not comparable: {comparison.doubts[0]}" in checked(anyway)
    words = set(re.findall(r'class="pill[^"]*">([^<]*)<', anyway))
    assert words == {found.verdict for found in comparison.findings}


def test_one_run_alone_is_its_report(runs: Path, tmp_path: Path) -> None:
    text = page(tmp_path, cell(runs / "a-s0"))
    said = checked(text)
    assert "a-s0" in said
    assert "76.40" in said
    assert "Verdicts" not in titles(text)
    assert len(pictures(text)) == 5


def test_synthetic_images_have_no_accuracy(runs: Path, tmp_path: Path) -> None:
    text = page(tmp_path, cell(runs / "synthetic"))
    checked(text)
    assert "Accuracy" not in titles(text)
    assert "Throughput over training time" in titles(text)


def test_what_a_source_does_not_tell_is_left_out(runs: Path, tmp_path: Path) -> None:
    full = cell(runs / "a-s0")
    (run,) = full.runs
    blind = {name: np.full_like(values, np.nan) for name, values in run.train.items()}
    blind["attempt"], blind["step_ms_p50"] = run.train["attempt"], run.train["step_ms_p50"]
    none = {name: values[:0] for name, values in run.train.items()}
    few = {
        name: value
        for name, value in run.result.items()
        if not name.startswith(("step_ms", "accounts_s", "notes", "data_wait", "epochs"))
    }
    for train in (blind, none):
        val = {name: values[:0] for name, values in run.val.items()}
        bare = replace(run, name="bare", environment={}, result=few, train=train, val=val)
        assert "bare" in checked(page(tmp_path, Cell("bare", (bare,))))
        assert "bare" in checked(page(tmp_path, Cell("bare", (bare,)), full))


def test_scaling_is_shown_where_sizes_differ(tmp_path: Path) -> None:
    for ranks, rate in ((1, 400), (2, 760), (8, 2880)):
        made_run(tmp_path / f"w{ranks}", rate=rate, world_size=ranks, noise_pct=0)
    text = page(tmp_path, *(cell(tmp_path / f"w{ranks}") for ranks in (1, 2, 8)))
    checked(text)
    (label,) = re.findall(r'aria-label="(Scaling[^"]*)"', text)
    assert label == "Scaling efficiency: 1 rank 100.0 %, 2 ranks 95.0 %, 8 ranks 90.0 %"


def test_names_are_text_whatever_is_in_them(runs: Path, tmp_path: Path) -> None:
    def named(each: Cell) -> Cell:
        (run,) = each.runs
        about = {**run.environment, "versions": {"torch": HOSTILE}}
        return Cell(HOSTILE, (replace(run, name=HOSTILE, address=HOSTILE, environment=about),))

    text = page(tmp_path, named(cell(runs / "a-s0")), named(cell(runs / "b-s0")))
    said = checked(text)
    assert "<b>&" not in text
    shown = HOSTILE.replace("\udc80", "\ufffd").replace("\x01", "\ufffd")
    assert said.count(shown) > 6


def test_many_differences_are_folded(runs: Path, tmp_path: Path) -> None:
    cells = cell(runs / "a-s0"), cell(runs / "b-s0")
    assert "<details>" not in page(tmp_path, *cells)
    (run,) = cells[0].runs
    versions = {f"package{number}": "1" for number in range(20)}
    other = replace(run, environment={**run.environment, "versions": versions})
    text = page(tmp_path, Cell("other", (other,)), cells[1], testing=["package7"])
    checked(text)
    assert re.search(r"<summary>\d+ differences</summary>", text)
    first = text.index('class="differences"')
    assert text.index("package7", first) < text.index("package0", first)


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    cells = cell(runs / "a-s*"), cell(runs / "b-s*")
    before = page(tmp_path, *cells)
    # A user's own settings of matplotlib say nothing, and stay as they are.
    with matplotlib.rc_context({"lines.linewidth": 7, "text.usetex": True, "axes.grid": False}):
        assert page(tmp_path, *cells) == before
        assert matplotlib.rcParams["lines.linewidth"] == 7


@pytest.mark.parametrize("name", ["no/such/page.html", "folder", ".", "x" * 300])
def test_a_page_that_cannot_be_written_leaves_nothing(
    runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="give a file that can be written"):
        write_page(Path(name), [cell(runs / "a-s0")], [], anyway=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_long_columns_are_thinned() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 1000) + np.random.default_rng(0).normal(0, 0.1, len(x))
    y[::7] = np.nan
    thin = line(x, y, 0)
    assert thin is not None
    assert len(thin.x) == 200
    assert np.all(np.diff(thin.x) > 0)
    assert np.abs(thin.y - np.sin(thin.x / 1000)).max() < 0.1
    held = band([(x, y), (x, y)], 0)
    assert held is not None
    low, high = (np.interp(x, held[0], side) for side in held[1:3])
    known = np.isfinite(y)
    inside = ((low <= y) & (y <= high))[known].mean()
    assert 0.85 < inside < 0.95
    assert (held[0][0], held[0][-1]) == (x[known][0], x[known][-1])
    assert line(x, np.full_like(x, np.nan), 0) is None
    assert band([(x[:15], y[:15])], 0) is None


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_told_from_the_paper(dark: bool) -> None:
    colours = {name: seen(colour, dark) for name, colour in COLORS.items()}
    for name in ("ink", "quiet", *(name for name in colours if name.startswith("cell"))):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("good", "bad", "same", "unsure", "none"):
        assert contrast(colours[name], colours[f"{name}-card"]) >= 4.5, name
        assert contrast(colours[name], colours["band"]) >= 3, name


def test_dark_paper_is_what_the_filter_makes_of_white() -> None:
    (behind,) = re.findall(r"html { background: #(\w{6}); }", (FOLDER / "page.css").read_text())
    paper = seen(COLORS["paper"], dark=True)
    assert [int(behind[place : place + 2], 16) for place in (0, 2, 4)] == [*np.round(255 * paper)]


def seen(colour: str, dark: bool) -> Floats:
    """Red, green and blue from 0 to 1; on a dark page after the filters of page.css."""
    light = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    if not dark:
        return light
    style = (FOLDER / "page.css").read_text()
    (part,) = re.findall(r"filter: invert\(([\d.]+)\) hue-rotate\(180deg\);", style)
    turned = float(part) + light * (1 - 2 * float(part))
    # By half a turn of the hue, as CSS filters have it: around the luminance.
    return np.clip(2 * np.dot(turned, (0.213, 0.715, 0.072)) - turned, 0, 1)


def contrast(one: Floats, other: Floats) -> float:
    """As WCAG 2 has it."""

    def light(colour: Floats) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def told_by(*words: str | Path) -> None:
    main(["compare", *map(str, words)])


def test_the_command_writes_a_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.html"
    told_by(runs / "a-s0", "--html", out)
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {out}"
    alone = checked(out.read_text())
    told_by(runs / "a-s0", runs / "b-s0", "--html", out)
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {out}"
    assert checked(out.read_text()) != alone
    # As a shell spreads what is of one kind: one report, each run once.
    told_by(runs / "a-s0", runs / "a-s1", runs / "a-s0", "--html", out)
    assert "· 2 runs ·" in checked(out.read_text())


def test_one_side_without_a_page_is_a_mistake(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        told_by(runs / "a-s0")
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "a-s0 has nothing to be compared with" in said
    assert "--html FILE" in said


def test_a_verdict_ends_the_command_as_without_a_page(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        told_by(
            runs / "a-s*", runs / "b-s*", "--max-slowdown-pct", "1", "--html", tmp_path / "a.html"
        )
    assert ended.value.code == 1
    assert "worse" in checked((tmp_path / "a.html").read_text())


def test_matplotlib_is_asked_for_where_it_is_missing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("page", "plots", "figures"):
        monkeypatch.delitem(sys.modules, f"harness.results.page.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        told_by(runs / "a-s0", "--html", tmp_path / "a.html")
    assert ended.value.code == 2
    message = "error: --html needs matplotlib: pip install 'imagenet-harness[page]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.slow
def test_long_runs_make_a_small_page(tmp_path: Path) -> None:
    for seed in range(10):
        made_run(tmp_path / f"a-s{seed}", seed=seed, periods=10_000, epochs=90)
        made_run(
            tmp_path / f"b-s{seed}", seed=seed, rate=1100, periods=10_000, epochs=90,
            sections={"engine": {"compile": False}},
        )  # fmt: skip
    text = page(tmp_path, cell(tmp_path / "a-s*"), cell(tmp_path / "b-s*"))
    checked(text)
    assert len(text.encode()) < 2e6
