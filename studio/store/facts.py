"""What a person, or a download, wrote beside a model: `studio.yaml` in its folder, `NAME.studio.yaml` beside its file."""

from pathlib import Path
from typing import Any

import yaml

from studio.errors import ModelError
from studio.yaml_text import read_yaml

FOLDER_FACTS = "studio.yaml"
# title … words decide how it is used; the others say where it comes from
ALLOWED = frozenset({"title", "family", "defaults", "latent_rgb", "words", "prediction", "parts_from"})
TOLD = frozenset({"source", "revision", "licence", "trigger_words", "sha256"})


def facts_file(path: Path) -> Path:
    """Return where the facts of a model's folder or file are."""
    return path / FOLDER_FACTS if path.is_dir() else path.with_name(f"{path.stem}.{FOLDER_FACTS}")


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts of a model's folder or file; {} if it has none.

    Raises:
        ModelError: if they cannot be read, or say what is not known.
    """
    file = facts_file(path)
    if not file.is_file():
        return {}
    try:
        facts = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from None
    allowed = ALLOWED | TOLD
    if not isinstance(facts, dict) or set(facts) - allowed or not isinstance(facts.get("defaults", {}), dict):
        raise ModelError(f"{file.name} must be a mapping with only: {', '.join(sorted(allowed))}")
    return facts
