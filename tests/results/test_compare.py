"""`harness compare`: sides, what differs, verdicts, gates and published results, end to end."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import ENVIRONMENT, made_run

from harness.__main__ import main
from harness.results.measured import facts, identity
from harness.results.sides import read_sides
from harness.results.source import runs_at
from harness.results.stats.compare import Comparison, compare_cells
from harness.results.stats.metrics import metrics, steady_rate

RATES = (0.995, 1.0, 1.006)
"""How three runs of one kind differ."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def three(name: str, rate: float = 1000.0, top1_pct: float = 76.0, **more: Any) -> list[Path]:
    """Three seeds of one kind."""
    return [
        made_run(Path(f"{name}-s{seed}"), seed=seed, rate=rate * off, top1_pct=top1_pct + off - 1,
                 **more)
        for seed, off in enumerate(RATES)
    ]  # fmt: skip


def compared(*words: str) -> Comparison:
    new, base = read_sides(words, report=False)[0]
    return compare_cells(new, base, metrics(), "images_per_second")


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {found.metric.name: found.verdict for found in comparison.findings}


def harness(*words: str) -> int:
    """The exit code of `harness compare ...`."""
    try:
        main(["compare", *words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_verdicts_on_two_kinds_of_three_runs_each(capsys: pytest.CaptureFixture[str]) -> None:
    three("slow", rate=900, top1_pct=77)
    three("fast", rate=1000)
    found = verdicts(compared("slow-s*", "fast-s*"))
    assert found["images_per_second"] == found["step_ms"] == "worse"
    assert found["top1"] == "better"
    assert found["memory_gib"] == found["data_wait_pct"] == "equivalent"
    assert harness("slow-s*", "fast-s*") == 0
    shown = capsys.readouterr().out
    assert "nothing differs but the seeds" in shown
    assert "slow-s*: throughput worse, top-1 better" in shown
    assert "± 0.5 % (3)" in shown


def test_runs_of_one_kind_are_equivalent_or_nothing_can_be_told() -> None:
    three("a")
    three("b", rate=1001)
    assert set(verdicts(compared("a-s*", "b-s*")).values()) <= {"equivalent", "cannot tell"}


def test_a_single_run_beside_another_says_what_it_assumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_run(Path("a"), rate=1010)
    made_run(Path("b"))
    assert harness("a", "b") == 0
    shown = capsys.readouterr().out
    assert "a standard deviation of 2 % is assumed for throughput" in shown
    assert "throughput cannot tell, top-1 cannot tell" in shown
    assert harness("a", "b", "--assume-std", "images_per_second=0.1") == 0
    assert "throughput equivalent" in capsys.readouterr().out
    assert harness("a", "b", "--assume-std", "images_per_second=0.1",
                   "--margin", "images_per_second=0.2") == 0  # fmt: skip
    assert "throughput better" in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ("a-s*", "b-s*"),
    ("a-s0", "a-s1", "a-s2", "vs", "b-s0", "b-s1", "b-s2"),
    ("a-s0", "a-s1", "a-s2", "b-s0", "b-s1", "b-s2"),
])  # fmt: skip
def test_sides_by_globs_by_vs_and_by_kind(words: tuple[str, ...]) -> None:
    three("a")
    three("b", sections={"engine": {"compile": False}}, compiled=False)
    new, base = read_sides(words, report=False)[0]
    assert [len(new.runs), len(base.runs)] == [3, 3]
    assert (new.label, base.label) == ("a-s*", "b-s*")
    comparison = compared(*words)
    assert [(each.key, each.new, each.base) for each in comparison.differences] == [
        ("engine.compile", True, False)
    ]


def test_what_auto_came_to_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    made_run(Path("a"), sections={"engine": {"precision": "auto"}})
    made_run(Path("b"), sections={"engine": {"precision": "bf16"}})
    assert not compared("a", "b").differences


DIFFERENT: dict[str, dict[str, Any]] = {
    "batch": {"sections": {"train": {"global_batch": 512}}},
    "torch": {"environment": {"versions": ENVIRONMENT["versions"] | {"torch": "2.15.0"}}},
    "commit": {"environment": {"harness": ENVIRONMENT["harness"] | {"git_commit": "beef"}}},
    "gpu": {"environment": {"device": ENVIRONMENT["device"] | {"name": "NVIDIA H200"}}},
    "variable": {"environment": {"variables": {"NCCL_ALGO": "Ring"}}},
    "ranks": {"world_size": 16},
    "images": {"train_digest": "cc"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_runs_of_another_kind_are_never_averaged(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(Path("a-s0"))
    made_run(Path("a-s1"), seed=1, **DIFFERENT[what])
    made_run(Path("b"))
    assert harness("a-s*", "b") == 3
    captured = capsys.readouterr()
    assert "its runs are not of one kind: they differ in" in captured.out
    assert "cannot tell: not comparable" in captured.err
    assert harness("a-s*", "b", "--anyway") == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_seed_name_path_and_wandb_make_no_other_kind(seed: int) -> None:
    made_run(Path("a"))
    switched = {
        "variables": ENVIRONMENT["variables"] | {"WANDB_NAME": "b", "WANDB_MODE": "offline"}
    }
    elsewhere = {"data": {"train": "/elsewhere"}}
    made_run(Path("b"), seed=seed, sections=elsewhere, environment=switched)
    (a,), (b,) = runs_at("a"), runs_at("b")
    assert facts(a) == facts(b)
    assert identity(a) == identity(b)


@pytest.mark.parametrize(("more", "says"), [
    ({"protocol": "centre crop 32 px"}, "validated in another way"),
    ({"val_digest": "zz"}, "validated on other images"),
    ({"val_images": 5000}, "validated on 5,000 images, where ImageNet has 50,000"),
    ({"recompiles": 3}, "3 recompiles, 0 graph breaks in the timed part"),
    ({"environment": {"harness": {"git_dirty": True}}}, "ran with uncommitted changes"),
    ({"source": "synthetic"}, "one side trained on synthetic images"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said_to_be_so(
    more: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(Path("a"), **more)
    made_run(Path("b"))
    assert harness("a", "b", "--max-slowdown-pct", "50") == 3
    captured = capsys.readouterr()
    assert f"not comparable: {says}" in captured.out or f": {says}" in captured.out
    assert "--anyway" in captured.err
    assert "equivalent" not in captured.out.partition("equivalent: certainly")[0]


@pytest.mark.parametrize("about", [{}, {"harness": {"git_commit": None, "git_dirty": None}}])
def test_two_unknown_commits_are_not_said_to_be_one(
    about: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        made_run(Path(name), environment=about)
    assert harness("a", "b") == 0
    said = "the commit is unknown, so the code may be another: a, b"
    assert (said in capsys.readouterr().out) == bool(about)


def test_same_seed_again_says_nothing_of_how_seeds_differ() -> None:
    for number in range(3):
        made_run(Path(f"a{number}"), top1_pct=76.0)
        made_run(Path(f"b{number}"), top1_pct=76.3)
    found = compared("a*", "b*").finding("top1")
    assert found is not None
    assert (found.new.n, found.new.std, found.verdict) == (1, None, "cannot tell")


def test_a_rate_leaves_out_the_first_period_of_each_attempt() -> None:
    made_run(Path("a"), noise_pct=0)
    rows = [json.loads(line) for line in Path("a/rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["train_s"] += 1000  # the first period was slow
    Path("a/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = runs_at("a")
    assert steady_rate(run) == pytest.approx(1000)


def test_time_to_accuracy_of_an_accuracy_named_afterwards() -> None:
    three("slow", rate=500)
    three("fast", rate=1000)
    new, base = read_sides(["slow-s*", "fast-s*"], report=False)[0]
    comparison = compare_cells(new, base, metrics(57.0), "images_per_second")
    found = comparison.finding("train_s_to_target")
    assert found is not None
    assert found.difference == pytest.approx(100, abs=2)
    assert found.verdict == "worse"
    # An accuracy that was not reached is no time.
    comparison = compare_cells(new, base, metrics(90.0), "images_per_second")
    assert comparison.finding("train_s_to_target") is None


Gate = tuple[list[str], int, str]
GATES: list[Gate] = [
    (["same-s*", "base-s*", "--max-slowdown-pct", "3"], 0, "not slower by more than 3 %"),
    (["slow-s*", "base-s*", "--max-slowdown-pct", "3"], 1, "slower by more than 3 %"),
    (["slow-s*", "base-s*", "--max-slowdown-pct", "10"], 3, "cannot tell whether slower by more"),
    (["same-s*", "base-s*", "--min-top1-pct", "75.9"], 0, "top-1 76.00 % (3 seeds): at least 75.9"),
    (["same-s*", "base-s*", "--min-top1-pct", "76.5"], 1, "top-1 76.00 % (3 seeds): below 76.5 %"),
    (["slow-s*", "base-s*", "--max-slowdown-pct", "10", "--min-top1-pct", "80"], 1, "below 80 %"),
]


@pytest.mark.parametrize(("words", "code", "says"), GATES)
def test_gate(words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    three("base")
    three("same", rate=1001)
    three("slow", rate=900)
    assert harness(*words, "--junit", "junit.xml") == code
    captured = capsys.readouterr()
    last = (captured.err if code else captured.out).splitlines()[-1]
    assert last.startswith({0: "good: ", 1: "FAILED: ", 3: "cannot tell: "}[code])
    assert says in last
    suite = ET.parse("junit.xml").getroot()
    kinds = {0: [], 1: ["failure"], 3: ["error"]}[code]
    assert {child.tag for case in suite for child in case} - {"system-out"} >= set(kinds)
    assert int(suite.attrib["failures"]) == sum(1 for _ in suite.iter("failure"))
    assert int(suite.attrib["errors"]) == sum(1 for _ in suite.iter("error"))


def test_gate_on_accuracy_without_a_second_side(capsys: pytest.CaptureFixture[str]) -> None:
    goyal("run", [76.38, 76.45, 76.41, 76.30, 76.52])
    words = ["run-s*", "ref:goyal2017-resnet50-b256", "--min-top1-pct"]
    assert harness(*words, "76.3") == 0
    assert harness(*words, "76.5") == 1
    assert "below 76.5 %" in capsys.readouterr().err


def goyal(name: str, tops: list[float], **more: Any) -> None:
    """Seeds of Goyal et al.'s recipe."""
    for seed, top1_pct in enumerate(tops):
        about = {"median_last5_top1_pct": top1_pct, "epochs": 90.0} | more
        made_run(Path(f"{name}-s{seed}"), seed=seed, top1_pct=top1_pct, **about)


Reproduced = tuple[list[float], int, str]


@pytest.mark.parametrize(("tops", "code", "says"), [
    ([76.38, 76.45, 76.41, 76.30, 76.52], 0, "reproduced"),
    ([77.00, 77.10, 76.90], 0, "reproduced"),
    ([75.60, 75.70, 75.50], 1, "not reproduced"),
    ([76.10, 76.50, 76.40], 3, "more seeds: "),
    ([76.35], 3, "needs "),
])  # fmt: skip
def test_does_it_reproduce(
    tops: list[float], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    goyal("run", tops)
    assert harness("run-s*", "ref:goyal2017-resnet50-b256") == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err
    assert "Goyal et al. 2017" in captured.out
    assert "76.40 ± 0.12 (5)" in captured.out


@pytest.mark.parametrize(("reference", "more", "says"), [
    ("goyal2017-resnet101-b256", {}, "is about resnet101, the runs about resnet50"),
    ("goyal2017-resnet50-b256", {"classes": 10, "val_images": 100}, "imagenet has 1000 classes"),
    ("he2015-resnet50-10crop-top1", {}, "centre crop 224 px of 256 | 10 crops of 224 px"),
    ("goyal2017-resnet50-b256", {"median_last5_top1_pct": None}, "which were not all validated"),
])  # fmt: skip
def test_a_publication_about_something_else(
    reference: str, more: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    goyal("run", [76.4, 76.3], **more)
    assert harness("run-s*", f"ref:{reference}") == 3
    assert says in capsys.readouterr().out


Broken = Callable[[Path], Any]


def _older(path: Path) -> None:
    result = json.loads((path / "result.json").read_text()) | {"schema_version": 0}
    (path / "result.json").write_text(json.dumps(result))


def _crashed(path: Path) -> None:
    (path / "result.json").unlink()
    (path / "state").write_text("failed")
    (path / "failure.json").write_text(json.dumps({"rank": 3, "message": "boom", "host": "n1"}))


def _running(path: Path) -> None:
    (path / "result.json").unlink()
    (path / "state").write_text("running")


def _another_config(path: Path) -> None:
    (path / "config.yaml").write_text("train: {global_batchs: 3}\n")


BAD: list[tuple[Broken, str]] = [
    (shutil.rmtree, "error: a: no such run folder"),
    (_running, "error: a: is running at epoch 4.00: compare it when it has finished"),
    (_crashed, "error: a: has failed at epoch 4.00 (boom): start it again, then compare"),
    (_older, "error: a/result.json: schema_version: input should be 1; was it written by another"),
    (_another_config, "error: a/config.yaml: train.global_batchs: was written by another"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_a_run_that_cannot_be_compared_is_one_line(
    spoil: Broken, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(Path("a"))
    made_run(Path("b"))
    spoil(Path("a"))
    assert harness("a", "b") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(says)
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize(("words", "says"), [
    (["ref:goyal2017-resnet50-b25", "a"], "did you mean goyal2017-resnet50-b256?"),
    (["ref:goyal2017-resnet50-b256"], "name at least one run folder"),
    (["a", "vs"], "`vs` stands between two sides"),
    (["a", "b", "c"], "these 3 runs are all of one kind"),
    (["a", "b", "--primary", "speed"], "--primary: speed: no such metric; known: top1"),
    (["a", "b", "--testing", "engine.compil"], "no such setting or fact; did you mean engine"),
    (["a", "b", "--margin", "top1"], "write METRIC=VALUE"),
    (["a", "b", "--margin", "top9=1"], "top9: no such metric"),
    (["a", "eval"], "have no metric in common"),
    (["a", "ref:goyal2017-resnet50-scaling"], "scaling_efficiency_pct, which no single run has"),
    (["a", "ref:goyal2017-resnet50-b256", "--max-slowdown-pct", "3"], "needs two sides"),
    (["a", "b", "--junit", "."], ".: "),
    (["a", "b", "--junit", "no/such/dir.xml", "--min-top1-pct", "1"], "no/such/dir.xml: No such"),
])  # fmt: skip
def test_words_that_make_no_comparison(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        made_run(Path(name))
    nothing = {"images_per_second": None, "step_ms_p50": None, "data_wait_pct": None}
    made_run(Path("eval"), periods=4, source="synthetic", memory_peak_gib=0.0, **nothing)
    assert harness(*words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_rows_torn_at_the_end_are_no_obstacle() -> None:
    made_run(Path("a"))
    made_run(Path("b"))
    with Path("a/rows.jsonl").open("a") as file:
        file.write('{"schema_version":1,"kind":"tr')
    assert compared("a", "b").finding("images_per_second") is not None
