"""Model families as data: which diffusers classes do which task, and what is usual for them. No torch is imported here."""

from dataclasses import dataclass, field
from typing import Any

from studio.errors import ModelError
from studio.spec import IMAGE2IMAGE, INPAINT, TEXT2IMAGE
from studio.units import MODE_LABELS, UNIT_FIELDS, UNITS_MAX

LatentRgb = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class ModelFamily:
    """One family.

    Attributes:
        title: as people call it.
        pipelines: task -> diffusers class name, for a model of the usual kind.
        defaults: generation values for a model that has no `studio.yaml`.
        latent_rgb: (C + 1, 3) linear map from latents to colour: one row a channel, then a constant.
        prompts: key of `engine.prompts.ENCODERS`: which text encoders there are and how their results are joined.
        cross_attention_dims: tells apart families that share a pipeline class; empty for the one that takes all others.
        channels: input channels of the denoiser -> kind; "" is the usual one.
        kinds: kind -> task -> diffusers class name, for kinds that can do less.
        units: request fields of control units that work.
        control_modes: of ControlNets that mean something here.
        ip_adapters: how many can work at once.
        noise: `flow` if only flow-matching schedulers work: others run and draw nonsense; "" if the model's own scheduler decides.
        refused_schedulers: that have the right noise and still do not work.
        text_limits: lengths, ascending, that the T5 encoder's tokens are padded to; nothing longer is read.
        syntax: whether its text encoders can weigh words, so that A1111's prompt syntax means something; else brackets are text.
        size_step: of width and height in pixels: cells of the autoencoder times patches of the denoiser.
        marks: flags of `model_index.json` that make a model another kind.
        pag_pipelines: task -> diffusers class name with perturbed attention guidance.
        options: request fields beyond everybody's that have a meaning here; others must keep their defaults.
        arguments: request fields that every call of a pipeline is given under the same name.
        guidance: the request field that switches the negative prompt on when it is above 1.
        interval_tasks: where guidance can be switched half-way.
        rescale_tasks: whose pipelines can rescale guidance.
        switched: for that: the pipeline's tensor -> the embedding it is made of, "" for rows that are the same with and without.
        load_options: what the pipeline classes are told when they are made.
    """

    title: str
    pipelines: dict[str, str]
    defaults: dict[str, Any]
    latent_rgb: LatentRgb
    prompts: str = "clip"
    cross_attention_dims: frozenset[int] = field(default_factory=frozenset)
    channels: dict[int, str] = field(default_factory=lambda: {4: "", 9: "inpaint"})
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    pag_pipelines: dict[str, str] = field(default_factory=dict)
    units: frozenset[str] = frozenset(UNIT_FIELDS)
    control_modes: frozenset[str] = frozenset(MODE_LABELS)
    ip_adapters: int = UNITS_MAX
    noise: str = ""
    refused_schedulers: frozenset[str] = frozenset()
    text_limits: tuple[int, ...] = ()
    syntax: bool = True
    size_step: int = 8
    options: frozenset[str] = frozenset({"eta", "guidance_rescale", "clip_skip"})
    arguments: tuple[str, ...] = ("guidance_scale", "eta")
    guidance: str = "guidance_scale"
    interval_tasks: frozenset[str] = frozenset({TEXT2IMAGE, IMAGE2IMAGE})
    rescale_tasks: frozenset[str] = frozenset({TEXT2IMAGE})
    switched: dict[str, str] = field(default_factory=lambda: {"prompt_embeds": "prompt_embeds"})
    load_options: dict[str, Any] = field(default_factory=dict)


# Maps for cheap previews, as A1111 and ComfyUI have them: a row a latent channel, then the constant.
SD_LATENT_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
    (0.0, 0.0, 0.0),
)
SDXL_LATENT_RGB = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)
SD3_LATENT_RGB = (
    (-0.0922, -0.0175, 0.0749),
    (0.0311, 0.0633, 0.0954),
    (0.1994, 0.0927, 0.0458),
    (0.0856, 0.0339, 0.0902),
    (0.0587, 0.0272, -0.0496),
    (-0.0006, 0.1104, 0.0309),
    (0.0978, 0.0306, 0.0427),
    (-0.0042, 0.1038, 0.1358),
    (-0.0194, 0.0020, 0.0669),
    (-0.0488, 0.0130, -0.0268),
    (0.0922, 0.0988, 0.0951),
    (-0.0278, 0.0524, -0.0542),
    (0.0332, 0.0456, 0.0895),
    (-0.0069, -0.0030, -0.0810),
    (-0.0596, -0.0465, -0.0293),
    (-0.1448, -0.1463, -0.1189),
    (0.2394, 0.2135, 0.1925),
)
FLUX_LATENT_RGB = (
    (-0.0346, 0.0244, 0.0681),
    (0.0034, 0.0210, 0.0687),
    (0.0275, -0.0668, -0.0433),
    (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329),
    (0.0004, 0.0383, 0.0115),
    (0.0405, 0.0861, 0.0915),
    (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180),
    (0.1008, 0.0755, -0.0421),
    (-0.0515, 0.0201, 0.0011),
    (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749),
    (-0.1264, -0.0522, -0.1103),
    (-0.0280, -0.0881, -0.0499),
    (-0.1262, -0.0982, -0.0778),
    (-0.0329, -0.0718, -0.0851),
)


def _classes(text2image: str, image2image: str = "", inpaint: str = "") -> dict[str, str]:
    classes = {TEXT2IMAGE: text2image, IMAGE2IMAGE: image2image, INPAINT: inpaint}
    return {task: name for task, name in classes.items() if name}


SD_PIPELINES = _classes("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
SD_PAG = _classes(
    "StableDiffusionPAGPipeline", "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline"
)
SD_KINDS = {"inpaint": {INPAINT: SD_PIPELINES[INPAINT]}}
SD_LOADING = {"safety_checker": None, "requires_safety_checker": False}
FAMILIES: dict[str, ModelFamily] = {
    "sd1": ModelFamily(
        "Stable Diffusion 1.x",
        SD_PIPELINES,
        {"width": 512, "height": 512, "num_inference_steps": 20, "guidance_scale": 7.0, "scheduler": "Euler a"},
        SD_LATENT_RGB,
        kinds=SD_KINDS,
        pag_pipelines=SD_PAG,
        load_options=SD_LOADING,
    ),
    "sd2": ModelFamily(
        "Stable Diffusion 2.x",
        SD_PIPELINES,
        {"width": 768, "height": 768, "num_inference_steps": 25, "guidance_scale": 7.5, "scheduler": "Euler a"},
        SD_LATENT_RGB,
        cross_attention_dims=frozenset({1024}),
        channels={4: "", 9: "inpaint", 5: "depth"},
        kinds=SD_KINDS | {"depth": {IMAGE2IMAGE: "StableDiffusionDepth2ImgPipeline"}},
        pag_pipelines=SD_PAG,
        load_options=SD_LOADING,
    ),
    "sdxl": ModelFamily(
        "Stable Diffusion XL",
        _classes("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 30, "guidance_scale": 6.0, "scheduler": "Euler"},
        SDXL_LATENT_RGB,
        "sdxl",
        kinds={
            "inpaint": {INPAINT: "StableDiffusionXLInpaintPipeline"},
            "refiner": _classes("", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        },
        marks={"requires_aesthetics_score": "refiner"},
        options=frozenset({"eta", "guidance_rescale", "clip_skip", "refiner"}),
        pag_pipelines=_classes(
            "StableDiffusionXLPAGPipeline", "StableDiffusionXLPAGImg2ImgPipeline", "StableDiffusionXLPAGInpaintPipeline"
        ),
        rescale_tasks=frozenset({TEXT2IMAGE, IMAGE2IMAGE, INPAINT}),
        switched={"prompt_embeds": "prompt_embeds", "add_text_embeds": "pooled_prompt_embeds", "add_time_ids": ""},
        load_options={"add_watermarker": False},  # else an installed package would decide about the pixels
    ),
    "sd3": ModelFamily(
        "Stable Diffusion 3",
        _classes("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 28, "guidance_scale": 5.0, "scheduler": "Flow Euler"},
        SD3_LATENT_RGB,
        "sd3",
        channels={16: ""},
        units=frozenset({"controls", "ip_adapters"}),  # nobody makes T2I-Adapters for it
        control_modes=frozenset({"balanced", "control"}),  # its blocks are alike: none of them is further out
        ip_adapters=1,  # diffusers 0.42
        noise="flow",
        text_limits=(256, 512),
        size_step=16,
        options=frozenset({"clip_skip"}),
        arguments=("guidance_scale",),
        interval_tasks=frozenset({TEXT2IMAGE}),  # diffusers 0.42: img2img's callback cannot change the pooled prompt
        switched={"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "pooled_prompt_embeds"},
    ),
    # Flux was distilled to take guidance as a number (CFG Scale here, as in other tools) and needs no second, negative run.
    # A negative prompt counts only with True CFG above 1, which doubles the time.
    "flux": ModelFamily(
        "Flux.1",
        _classes("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 28, "guidance_scale": 3.5, "scheduler": "Flow Euler"},
        FLUX_LATENT_RGB,
        "flux",
        channels={64: ""},
        units=frozenset(),
        noise="flow",
        refused_schedulers=frozenset({"Flow Heun"}),  # takes no noise levels from the pipeline
        text_limits=(512,),
        syntax=False,
        size_step=16,
        options=frozenset({"true_cfg_scale"}),
        arguments=("guidance_scale", "true_cfg_scale"),
        guidance="true_cfg_scale",
        interval_tasks=frozenset(),
        switched={},
    ),
}


def pipelines_of(family: str, kind: str) -> dict[str, str]:
    """Return task -> diffusers class name for a model; the first is what it is loaded as."""
    return FAMILIES[family].kinds[kind] if kind else FAMILIES[family].pipelines


def detect_family(index: dict[str, Any], denoiser: dict[str, Any]) -> tuple[str, str]:
    """Name the family and the kind of a diffusers folder.

    Args:
        index: content of `model_index.json`.
        denoiser: content of the `config.json` of its `unet` or `transformer`.

    Raises:
        ModelError: if no family has this pipeline, or the denoiser is of a kind that cannot be used.
    """
    class_name = index.get("_class_name")
    known = {name: _class_names(family) for name, family in FAMILIES.items()}
    fitting = [name for name, names in known.items() if class_name in names]
    if not fitting:
        everything = sorted(set().union(*known.values()))
        raise ModelError(f"pipeline {class_name!r} is not supported yet; supported: {', '.join(everything)}")
    dim = denoiser.get("cross_attention_dim")
    name = next((name for name in fitting if dim in FAMILIES[name].cross_attention_dims), fitting[0])
    channels, kinds = denoiser.get("in_channels"), FAMILIES[name].channels
    if channels not in kinds:
        raise ModelError(
            f"the denoiser has {channels} input channels (5: depth, 8: instructions), which is not supported yet; "
            f"{FAMILIES[name].title}: {', '.join(f'{number} ({kind or TEXT2IMAGE})' for number, kind in kinds.items())}"
        )
    mark = next((kind for flag, kind in FAMILIES[name].marks.items() if index.get(flag)), "")
    return name, mark or kinds[channels]


def _class_names(family: ModelFamily) -> set[str]:
    return set(family.pipelines.values()) | {name for tasks in family.kinds.values() for name in tasks.values()}
