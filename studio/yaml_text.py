"""YAML that a person gives, within limits: plain values only, not too long, not too deep, and no larger when written out."""

from collections.abc import Callable
from typing import Any

import yaml

from studio.errors import InvalidRequest

CHARACTERS_MAX = 500_000
DEPTH_MAX = 20
VALUES_MAX = 100_000


class Shallow(yaml.SafeLoader):
    """Makes plain values, and stops where they lie too deep: the parser calls itself for every level."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """See yaml.composer.Composer."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise yaml.YAMLError(f"it is nested more than {DEPTH_MAX} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: if it is none, names types of a language, or is beyond the limits; also by aliases (`*name`), which make
            much of little.
    """
    if len(text) > CHARACTERS_MAX:
        raise yaml.YAMLError(f"it has {len(text):,} characters; at most {CHARACTERS_MAX:,} are read")
    loader = Shallow(text)
    try:
        value = loader.get_single_data()
        _count(value, {}, set())
    except RecursionError:  # deeper than the stack before a node is composed
        raise yaml.YAMLError(f"it is nested more than {DEPTH_MAX} deep") from None
    except (ValueError, TypeError) as error:  # such as the date 2026-02-30, or a key that is a list
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()
    return value


def read_setting(override: str, is_text: Callable[[str, str], bool]) -> tuple[str, Any]:
    """Read a command line's `FIELD=VALUE`; return (field, value).

    Args:
        override: as it was typed.
        is_text: told field and text, whether the text is the value as it stands; otherwise it is read as YAML.

    Raises:
        InvalidRequest: naming what cannot be read.
    """
    name, equals, text = override.partition("=")
    if not equals:
        raise InvalidRequest("set", f"--set {override} must be FIELD=VALUE")
    try:
        return name, text if is_text(name, text) else read_yaml(text)
    except yaml.YAMLError:
        raise InvalidRequest(name, f"--set {override}: the value cannot be read") from None


def _count(value: Any, known: dict[int, int], above: set[int]) -> int:
    """Return how many values there are when every alias is written out."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) in above:
        raise yaml.YAMLError("it holds itself by an alias")
    if id(value) not in known:
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known, above | {id(value)}) for one in inside)
    if known[id(value)] > VALUES_MAX:
        raise yaml.YAMLError(f"it has more than {VALUES_MAX:,} values")
    return known[id(value)]
