"""How a model is kept and run: what changes pixels is a field of a request; where its parts lie is a plan, and changes none."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from studio.fields import control

Weights = Literal["full", "float8", "int8", "nf4"]
FULL: Weights = "full"
Plan = Literal["resident", "model-offload", "group-offload"]
PlanSetting = Literal["automatic", "resident", "model-offload", "group-offload"]
PLANS: tuple[Plan, ...] = get_args(Plan)  # from the fastest to the one that needs least
ROOM = 3 * 2**29  # bytes that a picture's own numbers may take beside the weights: 1.5 GiB
COSTS: dict[Plan, str] = {
    "resident": "all of the model lies on the device",
    "model-offload": "its parts take turns on the device, which costs moving each there and back for every picture",
    "group-offload": "its layers are on the device one at a time, which costs moving all of them at every step",
}


@dataclass(frozen=True)
class Keeping:
    """A way to keep the denoiser's weights.

    Attributes:
        title: as people call it.
        packages: that must be installed.
        cuda: whether it works on CUDA devices only.
        folders: whether it needs a diffusers folder: a single file is turned round while it is read.
    """

    title: str
    packages: tuple[str, ...] = ()
    cuda: bool = False
    folders: bool = False


KEEPINGS: dict[Weights, Keeping] = {
    "full": Keeping("Full"),
    "float8": Keeping("float8, cast layer by layer"),
    "int8": Keeping("int8 (torchao)", ("torchao",), folders=True),
    "nf4": Keeping("4-bit NF4 (bitsandbytes)", ("bitsandbytes",), cuda=True, folders=True),
}
WEIGHTS: Any = control(
    "Weights of the denoiser",
    "memory",
    "All but Full take less memory and change the picture: float8 a half of bfloat16 (slower), int8 likewise, NF4 a quarter.",
)
Attention = Literal["automatic", "math", "flash", "efficient", "cudnn"]
ATTENTION: Any = control(
    "Attention of the denoiser",
    "memory",
    "Which kernel of torch's: Math needs most memory; one that the device lacks is refused. Changes the last bits.",
)
VAE_TILING: Any = control(
    "VAE tiling", "memory", "Decode in tiles: large pictures need less memory; it changes them a little."
)
VAE_SLICING: Any = control(
    "VAE slicing", "memory", "Decode a batch one picture at a time, which needs less memory; changes the last bits."
)
assert tuple(KEEPINGS) == get_args(Weights)


def missing_package(weights: Weights) -> str:
    """Return the package that a way to keep weights lacks here; "" if none."""
    return next((name for name in KEEPINGS[weights].packages if importlib.util.find_spec(name) is None), "")


def weights_problem(weights: Weights) -> str:
    """Say why weights cannot be kept in a way on this machine; "" if they can, as far as its packages tell."""
    if package := missing_package(weights):
        return f"weights={weights!r} needs {package}, which is not installed; `pip install {package}`, or use float8 or full"
    return ""


def weights_choices() -> list[tuple[str, str]]:
    """Return what a form offers; what cannot work says so, and is refused with the reason."""
    return [
        (keeping.title + (f" – needs {package}" if (package := missing_package(name)) else ""), name)
        for name, keeping in KEEPINGS.items()
    ]


def choose_plan(sizes: Mapping[str, int], free: int | None) -> Plan:
    """Choose the fastest plan that fits; none of them changes a picture.

    Args:
        sizes: bytes of each network of the model.
        free: bytes of the device; None for one that shares the machine's own memory, where nothing can be moved out.
    """
    if free is None or sum(sizes.values()) + ROOM <= free:
        return "resident"
    return "model-offload" if max(sizes.values(), default=0) + ROOM <= free else "group-offload"


def smaller_plan(plan: Plan) -> Plan:
    """Return the plan that needs less than another; the last one has none."""
    return "model-offload" if plan == "resident" else "group-offload"


def plan_note(plan: Plan, sizes: Mapping[str, int], device: str) -> str:
    """Say that a model is offloaded and what that costs; "" where it is not."""
    if plan == "resident":
        return ""
    total = sum(sizes.values()) / 2**30
    return f"Memory plan {plan}: the model's {total:.1f} GiB do not all lie on {device}; {COSTS[plan]}."
