"""The manuals: what they link to and name exists."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import ROOT
from test_layers import ROWS

from harness.config import Config, fields

FOLDERS = ("configs", "harness", "launch", "slurm", "tests")
MANUALS = [
    ROOT / "README.md",
    *sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.md")),
]
every_manual = pytest.mark.parametrize(
    "path", MANUALS, ids=[str(path.relative_to(ROOT)) for path in MANUALS]
)

WRITTEN_BY_USERS = {"slurm/site.sh", "bench/sweep/best.yaml"}
"""Paths that a manual may name though the checkout has none."""

OF_OTHER_PROGRAMS = {
    "--no-deps", "--container-image", "--nv", "--format", "--array", "--partition", "--account",
    "--qos", "--constraint", "--exclude", "--dist",
}  # fmt: skip
"""Options of pip, sbatch, pyxis, apptainer and ruff that none of our sources names."""

SOURCES = "\n".join(
    path.read_text()
    for name in FOLDERS
    for path in (ROOT / name).rglob("*")
    if path.suffix in (".py", ".sh") or path.name == "prove_gpu"
)
PARAMETERS = re.findall(r"\b([a-z]\w+): ", SOURCES)
OPTIONS = {
    *re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", SOURCES),
    *("--" + name.replace("_", "-") for name in PARAMETERS),
}


def code(text: str) -> str:
    """Code blocks and inline code, which alone name files, settings and options."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", prose)])


def anchors(path: Path) -> set[str]:
    """Names that GitHub gives to the headings of a file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_first_manual_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    for manual in MANUALS[1:]:
        assert f"]({manual.relative_to(ROOT)})" in text, "each manual is one click away"


@every_manual
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@every_manual
def test_paths_exist(path: Path) -> None:
    named = re.findall(r"(?<![\w./:~*-])[\w.][\w.*-]*/[\w./*-]*", code(path.read_text()))
    for name in named:
        ours = name.split("/")[0] in FOLDERS or name.endswith((".py", ".sh", ".yaml", ".md"))
        if ours and name not in WRITTEN_BY_USERS:
            assert any([*ROOT.glob(name), *path.parent.glob(name)]), name


@every_manual
def test_settings_options_and_verbs_exist(path: Path) -> None:
    text = code(path.read_text())
    known = {key.replace("_", "-") for key, _ in fields()} | {"section.key"}
    flags = set(re.findall(r"--([a-z]+\.[a-z0-9-]+)", text))
    sections = "|".join(Config.model_fields)
    pairs = set(re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z0-9_-]+)=", text))
    assert {name.replace("_", "-") for name in flags | pairs} <= known
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+(?![\w.-])", text)):
        assert option in OPTIONS | OF_OTHER_PROGRAMS, option
    for verb in re.findall(r"(?:^\$? ?|-m )harness ([a-z]+)", text, re.MULTILINE):
        assert (ROOT / "harness" / "commands" / f"{verb}.py").exists(), verb


def test_site_variables_are_in_the_manual() -> None:
    scripts = "\n".join(path.read_text() for path in (ROOT / "slurm").glob("*.sh"))
    manuals = "\n".join(path.read_text() for path in MANUALS)
    assert set(re.findall(r"HARNESS_[A-Z_]+", scripts)) <= set(
        re.findall(r"`(HARNESS_[A-Z_]+)", (ROOT / "slurm" / "README.md").read_text())
    )
    assert all(name in SOURCES for name in set(re.findall(r"HARNESS_[A-Z_]+", manuals)))


def test_the_rows_of_the_package_are_those_of_the_imports() -> None:
    rows: dict[int, set[str]] = {}
    for line in (ROOT / "harness" / "README.md").read_text().splitlines():
        if match := re.match(r"\| (\d) \| (.+?) \| ", line):
            names = re.findall(r"\[(?:\w+/)?(\w+)(?:/|\.py)\]", match[2])
            rows.setdefault(int(match[1]), set()).update(names)
    rows[9].add("launch")  # which is outside the package
    assert rows == dict(enumerate(ROWS, start=1))


def test_the_two_commands_come_first() -> None:
    """As .ci/run takes them: the line after each of the first two fences."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first = [after for fence, after in pairwise(lines) if fence == "```bash"]
    assert first[0].startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && ")
    assert first[0].endswith(".venv/bin/torchrun launch/train.py")
    assert first[1] == ".venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
