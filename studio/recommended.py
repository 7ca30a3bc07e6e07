"""A first model to get: a short list, as data; the Hub says the true size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommended:
    """A model on the Hub.

    Attributes:
        title: as people call it.
        family: key of `FAMILIES`.
        source: `owner/name`.
        size: about how many GB arrive.
        licence: as its page names it.
        gated: whether its licence must be accepted there first.
        note: what it is good for.
        file: the one file that is wanted, "" for its diffusers folder.
    """

    title: str
    family: str
    source: str
    size: float
    licence: str
    note: str
    gated: bool = False
    file: str = ""


RECOMMENDED = (
    Recommended(
        "Stable Diffusion 1.5", "sd1", "stable-diffusion-v1-5/stable-diffusion-v1-5", 4.3, "CreativeML OpenRAIL-M",
        "small and quick, thousands of LoRA and ControlNets", file="v1-5-pruned-emaonly.safetensors",
    ),
    Recommended(
        "Stable Diffusion XL 1.0", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 6.9, "CreativeML OpenRAIL++-M",
        "1024 pixels, the base of most fine-tunes", file="sd_xl_base_1.0.safetensors",
    ),
    Recommended(
        "Juggernaut XL v9", "sdxl", "RunDiffusion/Juggernaut-XL-v9", 7.1, "CreativeML OpenRAIL-M",
        "a photographic fine-tune of XL", file="Juggernaut-XL_v9_RunDiffusionPhoto_v2.safetensors",
    ),
    Recommended(
        "NoobAI XL v-pred 1.0", "sdxl", "Laxhar/noobai-XL-Vpred-1.0", 7.1, "Fair AI Public License 1.0-SD",
        "a drawing and anime fine-tune of XL", file="NoobAI-XL-Vpred-v1.0.safetensors",
    ),
    Recommended(
        "Z-Image Turbo", "z-image", "Tongyi-MAI/Z-Image-Turbo", 33, "Apache 2.0", "photographs in eight steps",
    ),
    Recommended(
        "Flux.2 klein 4B", "flux2-klein", "black-forest-labs/FLUX.2-klein-4B", 16, "Apache 2.0", "quick, draws and edits",
    ),
    Recommended(
        "Stable Diffusion 3.5 Medium", "sd3", "stabilityai/stable-diffusion-3.5-medium", 16, "Stability Community",
        "reads long prompts, writes words", gated=True,
    ),
    Recommended(
        "Flux.1 schnell", "flux", "black-forest-labs/FLUX.1-schnell", 34, "Apache 2.0", "four steps; wants a large GPU",
    ),
    Recommended(
        "Flux.1 dev", "flux", "black-forest-labs/FLUX.1-dev", 34, "FLUX.1 non-commercial", "the best of Flux.1; wants a large GPU",
        gated=True,
    ),
)  # fmt: skip
