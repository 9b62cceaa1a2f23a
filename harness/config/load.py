"""From YAML file and flags to a Config; every mistake is one line that names the field."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.config import Config, fields
from harness.config.rules import check
from harness.errors import BadInput

DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

EPILOG = """\
Defaults, then CONFIG.yaml (and before it the file that it `extends`), then the flags.
W&B's own variables and files fill in what these say nothing of, such as WANDB_PROJECT log.project.
Lists are written 30,60,80; no value is null.
examples:
  torchrun launch/train.py                          the quickstart, on data that it draws by itself
  torchrun --nproc-per-node 8 launch/train.py configs/resnet50_90ep.yaml \\
      --data.train /imagenet/train --data.val /imagenet/val
  torchrun launch/train.py configs/resnet50_90ep.yaml --run.dry-run ...   show the plan only
"""

_TYPES = {int: "integer", float: "number", str: "text", bool: "true|false", NoneType: "null"}


class _Loader(yaml.SafeLoader):
    """YAML whose values stay text, as a flag's do, so that the same models read both alike.

    Only null is more than text. YAML 1.1 would read `off` as false and `1e-4` as text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (so declared by the base class)
        first: [(tag, pattern) for tag, pattern in rules if tag.endswith((":null", ":merge"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a mapping with a key twice: YAML itself would keep the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"`{key.value}` is given twice; remove one", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node


class Parser(argparse.ArgumentParser):
    """argparse, with its errors raised as one line."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput, where argparse would exit."""
        raise BadInput(message.removeprefix("argument "))


def load(argv: Sequence[str], *, prog: str = "torchrun launch/train.py", label: str = "") -> Config:
    """Return the config of `[CONFIG.yaml] [--section.key value ...]`; by default the quickstart.

    Args:
        prog: the command, for --help.
        label: what a run's name ends with, after config and seed, if none is given.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range, contradiction.
        SystemExit: after printing --help.
    """
    config = read(argv, prog=prog, label=label)
    check(config)
    return config


def read(argv: Sequence[str], *, prog: str, label: str = "") -> Config:
    """Return the same without applying the rules on settings that must go together.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range.
    """
    has_file = bool(argv) and not argv[0].startswith("-")
    path, args = (Path(argv[0]), argv[1:]) if has_file else (DEFAULT_CONFIG, argv)
    if not has_file and not path.exists():
        raise BadInput("CONFIG.yaml: give one: the configs are not installed, a checkout has them")
    flags = _read_flags(args, prog)
    values, origin = _read_chain(path)
    for field, text in flags.items():
        section, _, key = field.partition(".")
        if isinstance(part := values.setdefault(section, {}), dict):
            part[key] = None if text == "null" else text
    log = values.setdefault("log", {})
    if isinstance(log, dict) and log.get("wandb") != "off":
        from harness.config import wandb_says

        origin |= wandb_says.heed(log, os.environ)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        mistake = error.errors()[0]
        file = origin.get(_field(mistake), path)
        raise BadInput(_one_line(mistake, file, flags)) from None
    if config.run.name is None:
        name = _name(config, path, label)
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's sections, their values as text.

    Raises:
        BadInput: cannot be read, is not YAML, or is not a mapping of sections.
    """
    try:
        # The loader is a SafeLoader.
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise BadInput(f"{path}: {reason}; give a config file, see configs/") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise BadInput(f"{path}: {where}not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "list" if isinstance(values, list) else "single value"
        raise BadInput(f"{path}: must hold sections such as `model:`, not a {kind}")
    # A section whose settings are all commented out is empty, not null.
    return {str(name): {} if part is None else part for name, part in values.items()}


def _read_chain(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return a file's values over those of the file it `extends`, and the file of each."""
    values = read_yaml(path)
    extended = values.pop("extends", None)
    if extended is None:
        base: dict[str, Any] = {}
        origin: dict[str, Path] = {}
    elif not isinstance(extended, str) or not extended:
        raise BadInput(f"{path}: extends: must name one config file, relative to this one")
    elif path.resolve() in above:
        raise BadInput(f"{path}: extends: goes round in a circle")
    else:
        base, origin = _read_chain(path.parent / extended, (*above, path.resolve()))
    for name, part in values.items():
        keys = part if isinstance(part, dict) else ()
        origin |= {name: path} | {f"{name}.{key}": path for key in keys}
        both = isinstance(part, dict) and isinstance(base.get(name), dict)
        base[name] = base[name] | part if both else part
    return base, origin


def dump(config: Config) -> str:
    """Return the resolved config as YAML that `load` takes back."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    head = "# Every setting of this run. Pass this file to launch/train.py to run it again."
    return f"{head}\n{text}"


def as_text(value: Any) -> str:
    """Return a value as it is written after a flag."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value)) or "[]"
    return str(value)


def _read_flags(args: Sequence[str], prog: str) -> dict[str, str]:
    """Return `section.key` -> text of each flag that is given."""
    parser = _parser(prog)
    known, unknown = parser.parse_known_args(_negatives_joined(args))
    if unknown and not unknown[0].startswith("-"):
        raise BadInput(f"{unknown[0]}: belongs to no flag; a config file comes before all flags")
    if unknown:
        flag = unknown[0].split("=")[0]
        if flag in ("--local-rank", "--local_rank"):
            raise BadInput(
                f"{flag}: torch.distributed.launch gives it; start with torchrun instead"
            )
        raise BadInput(f"{flag}: no such flag{nearest(flag, [_flag(key) for key, _ in fields()])}")
    # Before Python 3.13, argparse takes two dashes out of `--flag=--`, and leaves an empty list.
    return {key: "--" if text == [] else text for key, text in vars(known).items()}


def _parser(prog: str) -> Parser:
    """Return a parser with a flag for every setting, all of them text, which the models parse."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [CONFIG.yaml] [--section.key VALUE ...]",
        description="Train, or score weights, as CONFIG.yaml and the flags say.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = {
        name: parser.add_argument_group(name, (section.annotation.__doc__ or "").splitlines()[0])
        for name, section in Config.model_fields.items()
    }
    for key, field in fields():
        kind = _kind(field.annotation)
        meaning = f"{field.description} (default: {as_text(field.default)})".replace("%", "%%")
        # `--run.dry-run` alone is `--run.dry-run true`.
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if "true|false" in kind else {}
        group = groups[key.split(".")[0]]
        group.add_argument(_flag(key), dest=key, metavar=kind, help=meaning, **alone)
    return parser


def _negatives_joined(args: Sequence[str]) -> list[str]:
    """Write `--key -1e-4` as `--key=-1e-4`: argparse would take the value for another flag."""
    joined: list[str] = []
    for arg in args:
        if joined and joined[-1].startswith("--") and re.match(r"-[\d.]", arg):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def _flag(key: str) -> str:
    return f"--{key}".replace("_", "-")


def _kind(annotation: Any) -> str:
    """Return what a setting's value looks like: `number,number`, `text|null`."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(args)
    if origin is tuple:
        return ",".join("..." if arg is Ellipsis else _kind(arg) for arg in args)
    return "|".join(map(_kind, args))


def _name(config: Config, path: Path, label: str) -> str:
    """Return a run's name from its config: `configs/he2015/resnet50.yaml`: he2015-resnet50-s0."""
    parts = path.with_suffix("").parts
    folders = [i for i, part in enumerate(parts[:-1]) if part == "configs"]
    title = "-".join(parts[folders[-1] + 1 :] if folders else parts[-1:])
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", title).lstrip(".-_") or "run"
    mode = "eval" if config.run.mode == "eval" else None
    return "-".join(filter(None, (title, mode, f"s{config.run.seed}", label)))


def _field(mistake: ErrorDetails) -> str:
    return ".".join(map(str, mistake["loc"][:2]))


def _one_line(mistake: ErrorDetails, path: Path, flags: dict[str, str]) -> str:
    """Return a mistake as `where it was given: what is wrong`."""
    field = _field(mistake)
    where = _flag(field) if field in flags else f"{path}: {field}"
    known = dict(fields())
    section, _, key = field.partition(".")
    if field not in known and (mistake["type"] == "extra_forbidden" or key):
        siblings = [name for part, name in (k.split(".") for k in known) if part == section]
        names = siblings if key else list(Config.model_fields)
        return f"{where}: no such setting{nearest(key or section, names)}"
    given = as_text(mistake["input"]) or "nothing"
    if field not in known:
        return f"{where}: expected settings such as `key: value`, got {given}"
    # Pydantic's messages on limits are good ("Input should be greater than 0"), on types too long.
    if mistake["type"].endswith(("_type", "_parsing", "_error", "missing", "too_long")):
        kind = _kind(known[field].annotation)
        return f"{where}: expected {kind}, got {given}{nearest(given, kind.split('|'), '')}"
    return f"{where}: {re.sub('^[A-Z][a-z]+ should', 'must', mistake['msg'])}, got {given}"


def nearest(name: str, known: list[str], otherwise: str = "; see --help") -> str:
    """Return what to add to the message about an unknown name: the known one that is meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else otherwise
