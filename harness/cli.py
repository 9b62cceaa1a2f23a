"""From YAML file and flags to a Config; every mistake is one line that names the field."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from harness.config import Config, Section, check
from harness.errors import BadInput

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"

EPILOG = """\
Defaults, then CONFIG.yaml, then the flags. Lists are written 30,60,80.
examples:
  torchrun launch/train.py                          the quickstart, on data that it draws by itself
  torchrun --nproc-per-node 8 launch/train.py configs/resnet50_90ep.yaml \\
      --data.train /imagenet/train --data.val /imagenet/val
  torchrun launch/train.py configs/resnet50_90ep.yaml --run.dry-run true ...   show the plan only
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors raised as one line and the nearest option named."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            raise BadInput(f"{flag}: no such option{_nearest(flag, known)}")
        return parsed


def load(argv: Sequence[str], *, prog: str = "torchrun launch/train.py") -> Config:
    """Config from `[CONFIG.yaml] [--section.key value ...]`; without a file, the quickstart.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range, contradiction.
        SystemExit: after printing --help.
    """
    path, flags = _split(argv)
    values = read_yaml(path)
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [CONFIG.yaml] [--section.key VALUE ...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train, or score weights, as CONFIG.yaml and the flags say.",
        allow_abbrev=False,
    )
    source: CliSettingsSource[Any] = CliSettingsSource(
        Config,
        cli_parse_args=list(flags),
        root_parser=parser,
        parse_args_method=_Parser.parse_args,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        config = Config(_cli_settings_source=source, **values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise BadInput(_one_line(error, path)) from None
    if config.run.name is None:
        config = _named(config, path.stem)
    check(config)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's sections.

    Raises:
        BadInput: cannot be read, is not YAML, or is not a mapping of sections.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise BadInput(f"{path}: {reason}; give a config file, see configs/") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise BadInput(f"{path}: {where}not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise BadInput(f"{path}: must hold sections such as `model:`, not a {kind}")
    return values


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` takes back."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    head = "# Every setting of this run. Pass this file to launch/train.py to run it again."
    return f"{head}\n{text}"


def _split(argv: Sequence[str]) -> tuple[Path, Sequence[str]]:
    if argv and not argv[0].startswith("-"):
        return Path(argv[0]), argv[1:]
    return DEFAULT_CONFIG, argv


def _named(config: Config, stem: str) -> Config:
    parts = [stem, "eval"] if config.run.mode == "eval" else [stem]
    parts.append(f"s{config.run.seed}")
    if job := os.environ.get("SLURM_JOB_ID"):
        parts.append(job)
    run = config.run.model_copy(update={"name": "-".join(parts)})
    return config.model_copy(update={"run": run})


def _one_line(error: ValidationError, path: Path) -> str:
    """The first mistake, as `section.key: what is wrong (where it was given)`."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    field = ".".join(loc[:2])
    if first["type"] == "extra_forbidden":
        return f"{path}: {field}: no such setting{_nearest(loc[-1], _siblings(loc))}"
    flag = f"--{field}".replace("_", "-")
    given = flag if any(word.split("=")[0] == flag for word in sys.argv) else str(path)
    message = first["msg"].removeprefix("Value error, ")
    return f"{given}: {field}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _siblings(loc: list[str]) -> list[str]:
    if len(loc) == 1:
        return list(Config.model_fields)
    section = Config.model_fields[loc[0]].annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return list(section.model_fields)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "; see --help"
