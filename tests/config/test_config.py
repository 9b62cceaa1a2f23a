"""The config: defaults, YAML and flags into one checked whole, and what is said when they are not.

Everything here runs without a process group, and the commands without torch.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from helpers import ROOT, train
from hypothesis import example, given
from hypothesis import strategies as st

from harness.config import (
    Changes,
    Config,
    differing,
    fields,
    fingerprint,
    flat,
    load,
    rules,
    settings,
)
from harness.errors import BadInput
from harness.models.zoo import MODELS, SETTINGS

SYNTHETIC = "data: {source: synthetic}\n"
"""The least that a config must say."""

Nested = dict[str, dict[str, Any]]


def flag(field: str) -> str:
    return f"--{field}".replace("_", "-")


def nested(values: dict[str, Any]) -> Nested:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    sections: Nested = {}
    for field, value in values.items():
        section, _, key = field.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file to write to."""
    return tmp_path_factory.mktemp("configs") / "recipe.yaml"


def loaded(file: Path, text: str, *flags: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return load.load([str(file), *flags])


def refused(file: Path, text: str, *flags: str) -> str:
    with pytest.raises(BadInput) as caught:
        loaded(file, text, *flags)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Precedence.


@pytest.fixture(autouse=True, scope="module")
def no_switches_of_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        yield


UTF8 = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
PATHS = st.text(UTF8, min_size=1).filter(lambda text: text != "null" and text.strip() == text)
WORDS = st.text("abcXYZ019-_:#&*!~é", min_size=1)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
FLOATS = st.floats(0, 1e6, exclude_min=True) | st.sampled_from([1e-4, 1e-5, 2.5e-7, 1e22])
SIGNED = st.floats(-1e6, 1e6) | st.sampled_from([-1e-4, -0.5, -3e-9])
RISING = st.lists(FLOATS, unique=True, max_size=4).map(sorted)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "run.name": NAMES.filter(lambda name: name != "null"),
    "run.seed": st.integers(0, 2**63 - 1),
    "run.dry_run": st.booleans(),
    "model.weights": st.none() | PATHS,
    "model.zero_gamma": st.booleans(),
    "data.train": st.none() | PATHS,
    "data.flip": st.booleans(),
    "data.mean": st.tuples(SIGNED, SIGNED, SIGNED).map(list),
    "optim.weight_decay": FLOATS,
    "schedule.drop_epochs": RISING,
    "schedule.max_steps": st.none() | st.integers(1, 10**9),
    "schedule.warmup_start_lr": st.none() | FLOATS,
    "engine.compile": st.booleans() | st.just("auto"),
    "log.wandb": st.sampled_from(["auto", "online", "offline", "off"]),
    "log.tags": st.lists(WORDS, max_size=3),
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


@example(in_file={}, in_flags={"log.tags": ["--"]}, joined=True)
@given(in_file=SOME, in_flags=SOME, joined=st.booleans())
def test_flags_go_before_yaml_before_defaults(
    file: Path, in_file: dict[str, Any], in_flags: dict[str, Any], joined: bool
) -> None:
    words = []
    for field, value in in_flags.items():
        text = load.as_text(value)
        # As for any command, a text that begins with a dash is given behind a `=`.
        one_word = joined or re.match(r"-[^\d.]|-$", text)
        words += [f"{flag(field)}={text}"] if one_word else [flag(field), text]
    text = yaml.safe_dump(nested({"data.source": "synthetic"} | in_file), allow_unicode=True)
    config = loaded(file, text, *words)
    asked = {"data.source": "synthetic"} | in_file | in_flags
    left = {"run.name": f"recipe-s{asked.get('run.seed', 0)}"}
    assert flat(config) == flat(Config()) | left | asked


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("optim: {weight_decay: 1e-4}", 1e-4),  # text to YAML 1.1, which wants 1.0e-4
        ("optim: {weight_decay: 5E-5}", 5e-5),
        ("optim: {weight_decay: 0}", 0.0),
        ("schedule: {drop_epochs: 30}", [30.0]),
        ("schedule:\n  drop_epochs: 30, 60", [30.0, 60.0]),
        ("schedule: {drop_epochs: [30, 6e1]}", [30.0, 60.0]),
        ("schedule: {drop_epochs: []}", []),
        ("log: {wandb: off}", "off"),  # false to YAML 1.1
        ("log: {tags: [1, off, 2015-12-10]}", ["1", "off", "2015-12-10"]),
        ("run: {name: 007}", "007"),
        ("run: {name: 2015-12-10}", "2015-12-10"),
        ("run: {dry_run: yes}", True),
        ("model: {weights: null}", None),
        ("model: {weights: ~}", None),
        ("model: {weights: }", None),
        ("model: {weights: 'null'}", "null"),
        ("engine: {compile: true}", True),
        ("engine: {compile: auto}", "auto"),
    ],
)
def test_yaml_means_what_it_shows(file: Path, written: str, value: Any) -> None:
    section, key = re.findall(r"(\w+):", written)
    assert flat(loaded(file, SYNTHETIC + written))[f"{section}.{key}"] == value


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--data.mean", "-1e-4,0,-.5"], "data.mean", [-1e-4, 0, -0.5]),
        (["--schedule.drop-epochs", "[1, 2]"], "schedule.drop_epochs", [1, 2]),
        (["--schedule.drop-epochs", "[]"], "schedule.drop_epochs", []),
        (["--schedule.max-steps", "null"], "schedule.max_steps", None),
        (["--run.dry-run"], "run.dry_run", True),
        (["--run.dry-run", "--run.restart"], "run.dry_run", True),
        (["--run.dry-run", "false"], "run.dry_run", False),
        (["--engine.compile"], "engine.compile", True),
        (["--run.seed", "1", "--run.seed=2"], "run.seed", 2),
    ],
)
def test_flags_mean_what_they_show(file: Path, words: list[str], field: str, value: Any) -> None:
    before = "schedule: {max_steps: 3}\nrun: {dry_run: true}\n"
    assert flat(loaded(file, SYNTHETIC + before, *words))[field] == value


def test_merged_mappings_are_read(file: Path) -> None:
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert load.read_yaml(file)["b"] == {"x": "1", "y": "3"}


def test_an_empty_section_is_none(file: Path) -> None:
    assert loaded(file, f"{SYNTHETIC}model:\n") == loaded(file, SYNTHETIC)


def test_without_a_file_the_quickstart() -> None:
    config = load.load(["--run.seed", "3"])
    assert config == load.load([str(ROOT / "configs" / "quickstart.yaml"), "--run.seed", "3"])
    assert config.run.name == "quickstart-s3"


def test_the_environment_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = loaded(file, SYNTHETIC)
    for section, model in Config.model_fields.items():
        monkeypatch.setenv(section, '{"seed": 5}')
        monkeypatch.setenv(section.upper(), "x")
        assert isinstance(model.annotation, type)
    for field, _ in fields():
        monkeypatch.setenv(field.replace(".", "__").upper(), "1")
        monkeypatch.setenv(field.split(".")[1].upper(), "1")
    assert loaded(file, SYNTHETIC) == before


@pytest.mark.parametrize(
    ("stem", "flags", "name"),
    [
        ("resnet50_90ep", [], "resnet50_90ep-s0"),
        ("my recipe (2)", [], "my-recipe-2--s0"),
        (".hidden", [], "hidden-s0"),
        ("ä", [], "run-s0"),
        ("x", ["--run.mode", "eval", "--model.weights", "w"], "x-eval-s0"),
        ("x", ["--run.name", "mine"], "mine"),
    ],
)
def test_a_run_is_named_after_its_config(
    tmp_path: Path, stem: str, flags: list[str], name: str
) -> None:
    config = loaded(tmp_path / f"{stem}.yaml", SYNTHETIC, *flags)
    assert config.run.name == name
    again = tmp_path / "again.yaml"
    assert loaded(again, load.dump(config)) == config


def test_another_job_of_the_same_command_has_the_same_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert loaded(file, SYNTHETIC).run.name == "recipe-s0"


# Refusals.


def test_a_flag_resolves_a_contradiction(file: Path) -> None:
    text = f"{SYNTHETIC}optim: {{nesterov: true, momentum: 0}}"
    assert "optim.nesterov" in refused(file, text)
    assert loaded(file, text, "--optim.momentum", "0.5").optim.momentum == 0.5


TEXTS = ["abc", "-1", "0", "1", "1.5", "1e-4", "-1e-4", "nan", "-inf", "true", "Auto", "null",
         "x y", "None", "1,2", "2,1,3", "99999999999999999999", "{}", "resnet51", "off",
         "../x"]  # fmt: skip


def outcome(file: Path, text: str, *flags: str) -> Any:
    try:
        return flat(loaded(file, text, *flags))
    except BadInput as error:
        return str(error)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_yaml_and_flags_are_validated_alike(file: Path, text: str) -> None:
    """One field of each type and limits."""
    kinds = {repr((info.annotation, info.metadata)): field for field, info in fields()}
    for field in kinds.values():
        base = nested({"data.source": "synthetic"})
        by_flag = outcome(file, yaml.safe_dump(base), f"{flag(field)}={text}")
        section, _, key = field.partition(".")
        base.setdefault(section, {})[key] = None if text == "null" else text
        by_file = outcome(file, yaml.safe_dump(base))
        if isinstance(by_file, str):
            by_file = by_file.replace(f"{file}: {field}: ", f"{flag(field)}: ")
        assert by_flag == by_file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--optim.wieght-decay 1", "--optim.wieght-decay: no such flag; did you mean "
         "--optim.weight-decay?"),
        ("--train.global_batch 8", "--train.global_batch: no such flag; did you mean "
         "--train.global-batch?"),
        ("--zzz 8", "--zzz: no such flag; see --help"),
        ("--local-rank=0", "--local-rank: torch.distributed.launch gives it; start with torchrun "
         "instead"),
        ("--model {}", "--model: no such flag; did you mean --model.stem?"),
        ("--no-run.dry-run", "--no-run.dry-run: no such flag; did you mean --run.dry-run?"),
        ("other.yaml", "other.yaml: belongs to no flag; a config file comes before all flags"),
        ("--optim.momentum", "--optim.momentum: expected one argument"),
        ("--optim.momentum --run.dry-run", "--optim.momentum: expected one argument"),
        ("--model.name resnet5O", "--model.name: expected "
         f"{'|'.join(MODELS)}, got resnet5O; did you mean resnet56?"),
        ("--optim.momentum abc", "--optim.momentum: expected number, got abc"),
        ("--optim.momentum 1", "--optim.momentum: must be less than 1, got 1"),
        ("--optim.momentum -1e-4", "--optim.momentum: must be greater than or equal to 0, got "
         "-1e-4"),
        ("--optim.momentum nan", "--optim.momentum: must be a finite number, got nan"),
        ("--train.global-batch 1.5", "--train.global-batch: expected integer, got 1.5"),
        ("--train.max-local-batch x", "--train.max-local-batch: expected integer|null, got x"),
        ("--data.mean 1,2", "--data.mean: expected number,number,number, got 1,2"),
        ("--data.crop-area 1,2,3", "--data.crop-area: expected number,number, got 1,2,3"),
        ("--schedule.drop-epochs 1,x", "--schedule.drop-epochs: expected number,..., got x"),
        ("--data.flip perhaps", "--data.flip: expected true|false, got perhaps"),
        ("--engine.compile 7", "--engine.compile: expected true|false|auto, got 7"),
        ("--run.name ../x", "--run.name: must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', got "
         "../x"),
        ("--data.train=", "--data.train: must have at least 1 character, got nothing"),
    ],
)  # fmt: skip
def test_a_bad_flag_is_named(file: Path, words: str, message: str) -> None:
    assert refused(file, SYNTHETIC, *words.split()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {name: resnet18}", "modle: no such setting; did you mean model?"),
        ("Model: {name: resnet18}", "Model: no such setting; did you mean model?"),
        ("model: {nam: resnet18}", "model.nam: no such setting; did you mean name?"),
        ("train: {global-batch: 8}", "train.global-batch: no such setting; did you mean "
         "global_batch?"),
        ("train: {lr: 8}", "train.lr: no such setting; see --help"),
        ("_env_file: x", "_env_file: no such setting; did you mean engine?"),
        ("1: 2", "1: no such setting; see --help"),
        ("null: 2", "None: no such setting; see --help"),
        ("run: {null: 2}", "run.None: no such setting; did you mean name?"),
        ("schedule: {drop_epochs: 30,60}", "schedule.60: no such setting; see --help"),
        ("model: resnet18", "model: expected settings such as `key: value`, got resnet18"),
        ("model: [resnet18]", "model: expected settings such as `key: value`, got resnet18"),
        ("train: {global_batch: true}", "train.global_batch: expected integer, got true"),
        ("train: {global_batch: [8]}", "train.global_batch: expected integer, got 8"),
        ("optim: {lr_per_256: .inf}", "optim.lr_per_256: expected number, got .inf"),
        ("optim: {lr_per_256: }", "optim.lr_per_256: expected number, got null"),
        ("- model", "must hold sections such as `model:`, not a list"),
        ("model", "must hold sections such as `model:`, not a single value"),
        ("run: {seed: 1}\nrun: {seed: 2}", "line 2: not valid YAML: `run` is given twice; remove "
         "one"),
        ("run:\n  seed: 1\n  seed: 1", "line 3: not valid YAML: `seed` is given twice; remove one"),
        ("run: {seed: 1", "line 1: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("run: !!python/name:os.system", "line 1: not valid YAML: could not determine a "
         "constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("run: {seed: 1}\n---\nrun: {seed: 2}", "line 2: not valid YAML: but found another "
         "document"),
        ("\0", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(file: Path, text: str, message: str) -> None:
    assert refused(file, text) == f"{file}: {message}"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    hint = "give a config file, see configs/"
    with pytest.raises(BadInput, match=rf"^nope\.yaml: No such file or directory; {hint}$"):
        load.load(["nope.yaml"])
    with pytest.raises(BadInput, match=rf"{tmp_path}: Is a directory; {hint}$"):
        load.load([str(tmp_path)])
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02\xff")
    with pytest.raises(BadInput, match=rf"weights\.pt: not a text file; {hint}$"):
        load.load([str(tmp_path / "weights.pt")])


def test_an_empty_file_lacks_the_data(file: Path) -> None:
    assert refused(file, "") == refused(file, "# nothing\n")
    assert refused(file, "").startswith("data.val: no validation folder given; set --data.val DIR")


TWO_FOLDERS = "--data.source dali --data.train a --data.val b "
WHOLE = TWO_FOLDERS + "--data.mean-image --data.augment pad_crop --data.eval-resize-px 0 "
CONTRADICTIONS = {
    "--data.source dali": "data.val: no validation folder given",
    "--data.source dali --data.val x": "data.train: no training folder given",
    "--data.eval-resize-px 64": "data.eval_resize_px: 64 px is smaller than the crop",
    "--data.crop-area 0.5,0.4": "data.crop_area: (0.5, 0.4) is not least <= most",
    "--data.crop-area 0,1": "data.crop_area: (0.0, 1.0) is not",
    "--data.crop-area 0.5,1.1": "data.crop_area: (0.5, 1.1) is not",
    "--data.crop-ratio 2,1": "data.crop_ratio: (2.0, 1.0) is not",
    "--data.crop-ratio 0,1": "data.crop_ratio: (0.0, 1.0) is not",
    "--data.std 1,0,1": "data.std: (1.0, 0.0, 1.0) must be over 0",
    "--data.decode gpu": "data.decode: gpu needs",
    TWO_FOLDERS + "--data.decode gpu --engine.device cpu": "data.decode: gpu needs",
    TWO_FOLDERS + "--data.decode split --engine.device cpu": "data.decode: split needs",
    TWO_FOLDERS + "--data.holdout-images 5": "data.holdout_images: takes validation images from",
    "--data.holdout-images 5": "data.holdout_images: takes validation images from",
    "--data.augment scale_jitter --data.jitter-px 200,300": "data.jitter_px: (200, 300) is not",
    "--data.largest-px -1,100": "data.largest_px: (-1, 100) must be width and height in px",
    "--data.augment scale_jitter --data.jitter-px 300,256": "data.jitter_px: (300, 256) is not",
    TWO_FOLDERS + "--data.mean-image": "data.mean_image: is for images that are not resized",
    WHOLE + "--data.pad-px 9": "data.pad_px: 9 is too much with data.mean_image",
    WHOLE + "--eval.views ten_crop": "data.mean_image: is for images that are not resized",
    "--eval.views ten_crop --eval.local-batch 9": "eval.local_batch: 9 is less than the 10 views",
    "--schedule.warmup-until-top1-pct 20": "schedule.warmup_until_top1_pct: needs",
    "--schedule.drop-steps 20,10": "schedule.drop_steps: (20, 10) must be over 0 and rise",
    "--run.mode eval": "run.mode: eval scores published weights",
    "--model.name resnet20 --model.stem imagenet": "model.stem: resnet20 is a CIFAR network",
    "--model.name densenet121 --model.stem cifar": "model.stem: densenet121 has its own",
    "--model.name resnet18 --model.stride-in 1x1": "model.stride_in: resnet18 has no 1x1",
    "--model.name plain34 --model.shortcut A": "model.shortcut: plain34 has no shortcuts",
    "--model.name plain18 --model.zero-gamma": "model.zero_gamma: plain18 has no residual blocks",
    "--model.dropout 0.2": "model.dropout: resnet50 has no dropout, only DenseNets have",
    "--model.memory-saving": "model.memory_saving: resnet50 cannot save memory so, only Dense",
    "--model.bn-images 32 --train.global-batch 100": "model.bn_images: a train.global_batch of 100",
    "--model.stride-in 1x1 --model.weights torchvision:X": "model.stride_in: torchvision's",
    "--optim.nesterov --optim.momentum 0": "optim.nesterov: needs optim.momentum over 0",
    "--engine.compile --engine.bucket-mb 0.5": "engine.bucket_mb: 0.5 is too small for compiled",
    "--engine.compile false --engine.compile-mode max-autotune": "engine.compile_mode: max-autotune"
    " needs engine.compile true",
    "--engine.device cpu --engine.compile-mode reduce-overhead": "engine.compile_mode: "
    "reduce-overhead means CUDA graphs, which only a GPU has; use default",
    "--engine.device cpu --engine.compile --engine.compile-mode max-autotune": "engine."
    "compile_mode: max-autotune means CUDA graphs, which only a GPU has; use max-autotune-no",
    "--engine.device cuda --engine.bucket-mb 0.5": "engine.bucket_mb: 0.5 is too small",
    "--engine.device cpu --engine.coordinate-descent": "engine.coordinate_descent: needs engine.",
    "--engine.compile false --engine.compile-ddp": "engine.compile_ddp: needs engine.compile true",
    "--schedule.drop-epochs 60,30": "schedule.drop_epochs: (60.0, 30.0) must be over 0 and rise",
    "--schedule.drop-epochs 30,30": "schedule.drop_epochs: (30.0, 30.0) must",
    "--schedule.drop-epochs -30,30": "schedule.drop_epochs: (-30.0, 30.0) must",
    "--engine.device cpu --engine.precision fp16": "engine.precision: fp16 needs a GPU",
    "--engine.device cpu --engine.precision tf32": "engine.precision: tf32 needs a GPU",
}


@pytest.mark.parametrize(("words", "message"), CONTRADICTIONS.items())
def test_a_contradiction_is_refused(file: Path, words: str, message: str) -> None:
    assert refused(file, SYNTHETIC, *words.split()).startswith(message)


def test_every_rule_is_tried() -> None:
    """Each message of rules.py, by the field that it begins with."""
    nodes = ast.walk(ast.parse(Path(rules.__file__).read_text()))
    messages = [ast.unparse(node.value) for node in nodes if isinstance(node, ast.Yield)]  # type: ignore[arg-type]
    fields_ = [re.match(r"f?['\"]([a-z]+\.[a-z0-9_]+): ", message) for message in messages]
    by_field = [match[1] for match in fields_ if match] + [f"model.{key}" for key in SETTINGS]
    assert len(by_field) == len(messages) - 1 + len(SETTINGS), "one message is for all of SETTINGS"
    tried_fields = [message.split(":")[0] for message in CONTRADICTIONS.values()]
    assert all(by_field.count(field) <= tried_fields.count(field) for field in by_field)


@pytest.mark.parametrize(
    "words",
    [
        "--data.eval-resize-px 0",
        "--data.eval-resize-px 224",
        "--data.crop-area 1,1",
        "--run.mode eval --model.weights w --data.source dali --data.val x",
        TWO_FOLDERS + "--data.decode gpu",
        "--model.stride-in 1x1",
        "--model.bn-images 32 --train.global-batch 96",
        "--model.name densenet_40_12 --model.dropout 0.2 --model.memory-saving",
        "--model.name resnet18 --model.stem cifar",
        "--schedule.drop-epochs []",
        "--schedule.drop-steps 10,20",
        "--schedule.warmup-until-top1-pct 20 --schedule.warmup-start-lr 0.01",
        "--data.source dali --data.train a --data.holdout-images 5",
        "--data.augment scale_jitter --data.jitter-px 224,224",
        "--eval.views ten_crop --eval.local-batch 10",
        WHOLE + "--data.pad-px 8",
        "--engine.compile-ddp --engine.compile-mode reduce-overhead",
        "--engine.device cpu --engine.compile --engine.compile-mode max-autotune-no-cudagraphs",
        "--engine.device cuda --engine.bucket-mb 1 --engine.coordinate-descent",
    ],
)
def test_the_edge_of_a_rule_is_accepted(file: Path, words: str) -> None:
    loaded(file, SYNTHETIC, *words.split())


# Fingerprints, and the way back from a run's config.yaml.


@given(values=SOME)
def test_dump_then_load_is_the_same_config(file: Path, values: dict[str, Any]) -> None:
    asked = yaml.safe_dump(nested({"data.source": "synthetic"} | values))
    config = loaded(file, asked)
    again = loaded(file, load.dump(config))
    assert again == config
    assert [fingerprint(again, of) for of in ("result", "speed")] == [
        fingerprint(config, of) for of in ("result", "speed")
    ]
    assert differing(config, again, "result") == []


def other_value(value: Any, annotation: Any) -> Any:
    """A value of a setting that is not its default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value / 2 + 0.01
    if isinstance(value, tuple):
        return [part / 2 for part in value] or [7 if int in get_args(annotation) else "tag"]
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type)]
    if value is None:
        return {int: 7, float: 0.5, str: "other"}[kinds[0]]
    if bool in kinds:
        return False
    choices = [choice for choice in get_args(annotation) if choice != value]
    return choices[0] if choices else "other"


ONE_VALUED = {key for key, info in fields() if get_args(info.annotation) == (info.default,)}


@pytest.mark.parametrize(
    ("field", "changes"), [pair for pair in settings() if pair[0] not in ONE_VALUED]
)
def test_a_setting_is_in_the_fingerprints_that_it_says(field: str, changes: Changes) -> None:
    info = dict(fields())[field]
    default = Config()
    value = "1:2" if field == "profile.steps" else other_value(info.default, info.annotation)
    other = Config.model_validate(nested({field: value}))
    assert flat(other) != flat(default)
    for of in ("result", "speed"):
        says = of in changes
        assert (fingerprint(other, of) != fingerprint(default, of)) == says
        named = [line.split(" (")[0] for line in differing(default, other, of)]
        assert named == ([field] if says else [])


def test_fingerprints_are_stable() -> None:
    """Runs are found again by these: a change here must be meant, and said in the notes."""
    again = Config.model_validate({"optim": {"lr_per_256": "0.10"}, "run": {"name": "x"}})
    for config in (Config(), again):
        assert fingerprint(config, "result") == "d7f8db027a8c", "of November 2026"
        assert fingerprint(config, "speed") == "f70d6f5d5ee6"


# What the command shows.


def test_help_lists_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as ended:
        load.load(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    listed = re.findall(r"(?<= )--[a-z]+\.[a-z0-9-]+(?= [^ ]+ .*?\(default: )", text)
    by_flag = {found: text[text.index(f"{found} ") :] for found in listed}
    known = dict(fields())
    assert set(known) <= {found[2:].replace("-", "_") for found in by_flag}
    for field, info in known.items():
        assert info.description, f"{field} has no docstring"
        meaning = " ".join(info.description.split())
        entry = f"{meaning} (default: {load.as_text(info.default)})"
        assert entry in by_flag[flag(field)].split(" --", 1)[0], field


def test_the_flags_are_the_fields() -> None:
    options = load._parser("x")._option_string_actions
    assert set(options) == {"-h", "--help"} | {flag(field) for field, _ in fields()}
    assert all(
        re.fullmatch(r"--[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", flag(name)) for name, _ in fields()
    )


def test_a_default_can_be_typed_as_help_shows_it(file: Path) -> None:
    ask = {"run.name": "x", "data.source": "synthetic", "data.flip": "false"}
    before = loaded(file, yaml.safe_dump(nested(ask)))
    for field, info in fields():
        typed = loaded(
            file, yaml.safe_dump(nested(ask)), f"{flag(field)}={load.as_text(info.default)}",
            *(["--data.train=a", "--data.val=b"] if field == "data.source" else []),
        )  # fmt: skip
        if field not in ask and not field.startswith("data."):
            assert typed == before


def test_a_file_extends_another(tmp_path: Path) -> None:
    """Section by section, and whose mistake it is is said."""
    (tmp_path / "base.yaml").write_text(
        "optim: {lr_per_256: 0.3, momentum: 0.8}\nmodel: {name: resnet18}"
    )
    (tmp_path / "deeper").mkdir()
    middle, top = tmp_path / "deeper" / "middle.yaml", tmp_path / "top.yaml"
    middle.write_text("extends: ../base.yaml\noptim: {momentum: 0.7}\ndata: {train: a, val: b}")
    top.write_text("extends: deeper/middle.yaml\nmodel: {zero_gamma: true}")
    config = load.load([str(top), "--optim.nesterov"])
    assert (config.optim.lr_per_256, config.optim.momentum, config.optim.nesterov) == (
        0.3,
        0.7,
        True,
    )
    assert (config.model.name, config.model.zero_gamma) == ("resnet18", True)
    middle.write_text("extends: ../base.yaml\noptim: {momentum: x}")
    with pytest.raises(BadInput, match=r"middle\.yaml: optim\.momentum: expected number, got x"):
        load.load([str(top)])
    for wrong, message in {
        "extends: nowhere.yaml": r"nowhere\.yaml: No such file",
        "extends: top.yaml": "extends: goes round in a circle",
        "extends: [a, b]": r"top\.yaml: extends: must name one config file",
    }.items():
        top.write_text(wrong)
        with pytest.raises(BadInput, match=message):
            load.load([str(top)])


# Before torch.


def test_config_and_cli_import_no_torch() -> None:
    heavy = ("torch", "numpy", "nvidia", "wandb")
    code = f"import sys, harness.config.load; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command that is started imports torch for, it fails."""
    (tmp_path / "torch.py").write_text("raise ImportError('poisoned')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("no_torch")
def test_a_typo_is_rejected_before_torch(tmp_path: Path) -> None:
    done = train("--optim.momentun", "0.8", cwd=tmp_path, launched=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --optim.momentun: no such flag")
    (tmp_path / "recipe.yaml").write_text("optim: {momentun: 0.8}")
    done = train("recipe.yaml", cwd=tmp_path, launched=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: recipe.yaml: optim.momentun: no such setting; did you mean momentum?\n"
    )
    assert train("--help", cwd=tmp_path, launched=True).returncode == 0


@pytest.mark.usefixtures("no_torch")
def test_a_broken_torch_is_a_failed_run(tmp_path: Path) -> None:
    """And shows that the poison of the test above works."""
    done = train(cwd=tmp_path, launched=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: ImportError: poisoned"
    assert not (tmp_path / "runs").exists()
