"""Settings of the process: read once at the start from flags and `STUDIO_*` variables, then frozen."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from studio.errors import StudioError, first_problem
from studio.fields import Frozen
from studio.memory import PlanSetting

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"
CLIP_VOCABULARY = ROOT / "presets" / "tokenizers" / "clip"
CLIP_WORDS = 49_408
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|STUDIO_AUTH", re.IGNORECASE)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a process that only computes gets of an environment: no token, password or key."""
    return {name: value for name, value in environment.items() if not SECRET.search(name)}


def default_threads() -> int:
    """Half the processors: PyTorch gains little from hyper-threads, and the page needs a core too."""
    return max(1, (os.cpu_count() or 2) // 2)


class Settings(Frozen):
    """Where things are and on what they run.

    Attributes:
        data_dir: the data root.
        device: `auto` is CUDA if there is one, else Apple's MPS, else the CPU.
        cpu_threads: changes the last bits of every CPU result, so it is stored with each picture.
        memory_plan: where models' parts lie; `automatic` is the fastest plan that fits into the device's free memory.
        scorers: what finds a scorer of pictures for the Lab: a name, because no room may import the trainers'.
    """

    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=1, le=65535)
    share: bool = False
    auth: str | None = None
    data_dir: Path = Path("data")
    model: str = "shapes"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    executor: Literal["inline", "worker"] = "worker"
    extra_models: tuple[Path, ...] = ()
    mcp: bool = False
    preview: bool = True
    cpu_threads: int = Field(default_factory=default_threads, ge=1, le=256)
    memory_plan: PlanSetting = "automatic"
    scorers: str = "trainers.scorers.choice:prompt_scorer"

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of `--auth USER:PASS`, or None."""
        if self.auth is None:
            return None
        user, colon, password = self.auth.partition(":")
        if not (user and colon and password):
            raise StudioError("auth must be USER:PASSWORD with both parts given")
        return user, password

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which diffusers folders are looked for, ours first."""
        return (ROOT / "presets" / "models", self.data_dir / "models" / "checkpoints", *self.extra_models)

    @property
    def part_roots(self) -> tuple[Path, ...]:
        """Folders that hold `controlnets`, `upscalers` and other parts, ours first."""
        return (ROOT / "presets", *self.extra_models, self.data_dir / "models")

    @property
    def runs(self) -> Path:
        """Folder of the training runs."""
        return self.data_dir / "runs"

    @property
    def tool_pictures(self) -> Path:
        """Folder of the pictures that tools made, kept until the next start."""
        return self.data_dir / "cache" / "tools"

    @property
    def annotators(self) -> Path:
        """Folder of the preprocessors' weights."""
        return self.data_dir / "models" / "annotators"


def read_settings(
    flags: dict[str, object], environment: dict[str, str], usual: dict[str, object] | None = None
) -> Settings:
    """Join flags (which win), `STUDIO_*` variables, and what is usual at this place.

    Raises:
        StudioError: one sentence naming the first wrong setting.
    """
    values: dict[str, object] = dict(usual or {})
    for name in Settings.model_fields:
        text = environment.get(f"STUDIO_{name.upper()}")
        if text:
            values[name] = tuple(filter(None, text.split(os.pathsep))) if name == "extra_models" else text
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise first_problem(error) from None
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().resolve()})
