"""Presets of training: the values that are known to work, by method, family and memory; ours and a person's own. No torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from studio.errors import InvalidRequest
from studio.store import writer
from studio.store.models import Model
from studio.store.runs import METHOD_LINE
from studio.yaml_text import read_yaml

SMALL = "shapes"  # what presets call a model that draws as small as the embedded one
SMALL_SIDE = 256  # pixels
PRESET_FAMILIES = {"sd1": "sd15", "sd2": "sd15", "sdxl": "sdxl", "sd3": "sd35", "flux": "flux1"}
# Whose values come nearest where a method has none for a family.
METHODS_NEAR = {"dreambooth": ("lora",), "lora": ("dreambooth",)}
FAMILIES_NEAR = {"sd15": ("sdxl",), "sdxl": ("sd15",), "sd35": ("flux1", "sdxl"), "flux1": ("sd35", "sdxl")}
FLOW = ("sd35", "flux1")
NOT_FOR_FLOW = ("snr_gamma", "rescale_betas_zero_snr")
ROOMY = 20.0  # GiB from which no preset for less memory is taken
FILE_MAX = 100_000  # bytes
NAME = re.compile(r"[A-Za-z0-9][\w. -]{0,59}")
_SIZED = re.compile(r"-(\d+)gb$")


@dataclass(frozen=True)
class Preset:
    """Values of a method.

    Attributes:
        name: of its file.
        method: as on the command line.
        values: as the file has them.
        own: whether a person made it.
    """

    name: str
    method: str
    values: dict[str, Any]
    own: bool = False

    @property
    def memory(self) -> int:
        """GiB for which it was made; 0 if it does not say."""
        match = _SIZED.search(self.name)
        return int(match[1]) if match else 0

    @property
    def family(self) -> str:
        """As its name says: one of `PRESET_FAMILIES`, or `SMALL`."""
        return _SIZED.sub("", self.name.removeprefix(f"{self.method}-"))


def read_preset(text: str, name: str, methods: Iterable[str], *, method: str = "") -> Preset:
    """Read a config file, ours, of a run, or a stranger's: its first line, or else its name, says the method.

    Args:
        text: of the file.
        name: without an ending.
        methods: that there are.
        method: counts if the file says none.

    Raises:
        InvalidRequest: if it is no mapping of fields to values, or no method is known.
    """
    try:
        values = read_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidRequest("preset", f"{name} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidRequest("preset", f"{name} must be a mapping of fields to values")
    told = text.partition("\n")[0].removeprefix(METHOD_LINE).strip() if text.startswith(METHOD_LINE) else ""
    known = sorted(methods, key=len, reverse=True)
    found = told or next((one for one in known if name.startswith(f"{one}-")), method)
    if found not in known:
        raise InvalidRequest("preset", f"{name} is for the method {found!r}, which must be one of: {', '.join(known)}")
    return Preset(name, found, values)


def read_presets(folder: Path, methods: Iterable[str], *, own: bool = False) -> list[Preset]:
    """Read the presets of a folder that can be read, by name."""
    found, methods = [], list(methods)
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= FILE_MAX else ""
            one = read_preset(text, path.stem, methods)
        except (InvalidRequest, OSError, UnicodeDecodeError):
            continue
        found.append(Preset(one.name, one.method, one.values, own))
    return found


def save_preset(folder: Path, name: str, method: str, config: str) -> Path:
    """Keep a config under a name of one's own.

    Args:
        folder: of a person's presets.
        name: letters, digits, spaces, `.`, `-` and `_`.
        method: of the config.
        config: as YAML.

    Raises:
        InvalidRequest: if the name is none.
    """
    name = name.strip()
    if not NAME.fullmatch(name) or name.endswith("."):
        raise InvalidRequest(
            "preset", f"the name {name[:60]!r} must begin with a letter or digit and have only letters, digits, . - _"
        )
    path = folder / f"{name}.yaml"
    writer.make_folder(folder)
    writer.write_file(path, f"{METHOD_LINE}{method}\n{config}".encode())
    return path


def preset_family(model: Model | None) -> str:
    """Return what presets call the family of a model; `SMALL` without one."""
    if model is None or max(model.defaults.get("width", 0), model.defaults.get("height", 0)) <= SMALL_SIDE:
        return SMALL
    return PRESET_FAMILIES.get(model.family, "")


def nearest(presets: Iterable[Preset], method: str, family: str, memory: float | None = None) -> Preset | None:
    """Return the preset that comes nearest: of the method and family, then of a like method, then of a like family.

    Args:
        presets: to choose from.
        method: as on the command line.
        family: as `preset_family` calls it.
        memory: of the device, in GiB; None if it is not known, or a CPU's.
    """
    wanted = [(method, family), *((other, family) for other in METHODS_NEAR.get(method, ()))]
    wanted += [(method, other) for other in FAMILIES_NEAR.get(family, ())]
    shipped = [one for one in presets if not one.own]
    for pair in wanted:
        found = [one for one in shipped if (one.method, one.family) == pair]
        if not found:
            continue
        sized = sorted((one for one in found if one.memory), key=lambda one: one.memory)
        plain = next((one for one in found if not one.memory), None)
        if plain and (not sized or memory is None or memory >= ROOMY):
            return plain
        return max(
            (one for one in sized if memory and one.memory <= memory), key=lambda one: one.memory, default=sized[0]
        )
    return None


def preset_values(preset: Preset | None, method: str, model: Model | None) -> dict[str, Any]:
    """Return what a preset says to a model, without what names its own model and pictures.

    A preset of another family keeps its rates; the size is the model's own.
    """
    values = dict(preset.values) if preset else {}
    family = preset_family(model)
    if preset is None and method == "controlnet":
        values["preprocessor"] = "canny"
    if family in FLOW:
        values = {name: value for name, value in values.items() if name not in NOT_FOR_FLOW}
    if model and (preset is None or preset.family != family or model.family == "sd2"):
        side = round((model.defaults["width"] * model.defaults["height"]) ** 0.5 / 64) * 64
        values["resolution"] = [side]
    return {name: value for name, value in values.items() if name not in ("model", "dataset", "concepts")}
