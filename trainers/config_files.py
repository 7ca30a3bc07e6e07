"""Configs as files: YAML in and out, `field=value` on a command line, and one sentence about what is wrong."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from studio.errors import InvalidRequest, first_problem
from studio.yaml_text import read_setting, read_yaml
from trainers.configs import TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)


def read_config(config_class: type[Config], path: Path, overrides: list[str]) -> Config:
    """Read a YAML file and `field=value` overrides.

    Raises:
        InvalidRequest: one sentence: field, value, what is allowed.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest("config", f"config={str(path)!r} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("config", f"{path.name} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidRequest("config", f"{path.name} must be a mapping of fields to values")

    def is_text(name: str, text: str) -> bool:
        field = config_class.model_fields.get(name)
        return field is not None and (
            field.annotation is str or (field.annotation == tuple[str, ...] and text[:1] != "[")
        )

    values |= dict(read_setting(override, is_text) for override in overrides)
    return check_config(config_class, values)


def check_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Make a config of plain values.

    Raises:
        InvalidRequest: one sentence about the first wrong field.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "extra_forbidden":
            field = ".".join(map(str, problem["loc"]))
            near = _nearest(field, list(config_class.model_fields))
            raise InvalidRequest(field, f"{field} is not a field of this method{near}") from None
        raise first_problem(error) from None


def _nearest(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]}?" if found else "; `python -m trainers METHOD --help` lists the fields"


def dump_config(config: TrainingConfig) -> str:
    """Write a config as YAML, every field, in the order of their declaration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
