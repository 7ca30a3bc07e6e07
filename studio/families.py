"""Model families as data: which diffusers classes do which task, and what is usual for them. No torch is imported here."""

from typing import Any

from studio.errors import ModelError
from studio.family import GUIDED, SECOND_STAGE, LatentRgb, ModelFamily, Variant
from studio.latent_colours import FLUX_LATENT_RGB, SD3_LATENT_RGB, SD_LATENT_RGB, SDXL_LATENT_RGB
from studio.schedulers import PREDICT_CORRECT, SCHEDULERS
from studio.spec import IMAGE2IMAGE, INPAINT, TEXT2IMAGE


def _classes(text2image: str, image2image: str = "", inpaint: str = "") -> dict[str, str]:
    classes = {TEXT2IMAGE: text2image, IMAGE2IMAGE: image2image, INPAINT: inpaint}
    return {task: name for task, name in classes.items() if name}


SD_PIPELINES = _classes("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
SD_PAG = _classes(
    "StableDiffusionPAGPipeline", "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline"
)
SD_KINDS = {"inpaint": {INPAINT: SD_PIPELINES[INPAINT]}}
# UNets that were distilled to take guidance as a number, once a step: there is no second run for a negative prompt.
LCM = {"time_cond_proj_dim": "lcm"}
LCM_FIXED = {"lcm": {"negative_prompt": ""}}
LCM_DEFAULTS = {"num_inference_steps": 8, "guidance_scale": 8.0, "scheduler": "LCM"}
ONE_STEP = {"num_inference_steps": 1, "guidance_scale": 1.0, "scheduler": "Euler a"}
ANCESTRAL = {"_class_name": "EulerAncestralDiscreteScheduler"}
TRAILING = {"timestep_spacing": "trailing", "prediction_type": "epsilon"}
SD_LOADING = {"safety_checker": None, "requires_safety_checker": False}
SDXL_PIPELINES = _classes(
    "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"
)
# Transformers that follow flows, with a language model or T5 to read the prompt: no control units, and nothing changes half-way.
TRANSFORMER: dict[str, Any] = {
    "units": frozenset(),
    "noise": "flow",
    "refused_schedulers": frozenset({"Flow Heun"}),  # takes no noise levels from the pipeline
    "syntax": False,
    "size_step": 16,
    "options": frozenset(),
    "arguments": GUIDED,
    "interval_tasks": frozenset(),
    "rescale_tasks": frozenset(),
    "switched": {},
}
NOISY = frozenset(name for name, one in SCHEDULERS.items() if one.noise == "diffusion")
# Networks that read no words.
WORDLESS: dict[str, Any] = {
    "units": frozenset(),
    "lora": False,
    "syntax": False,
    "options": frozenset({"eta"}),
    "rescale_tasks": frozenset(),
    "sized": True,
}
NO_VAE: dict[str, Any] = {"vae": None, "vae_tiling": False, "vae_slicing": False}
ON_PIXELS: dict[str, Any] = WORDLESS | {
    "module": "studio.engine.wordless",  # diffusers' own take no size, no start and no callback
    "channels": {3: ""},
    "fixed": {"": {"prompt": "", "negative_prompt": "", "guidance_scale": 1.0} | NO_VAE},
    "arguments": {"eta": "eta"},
    "interval_tasks": frozenset(),
    "switched": {},
    "size_step": 32,
    "pixels": True,
}
WITHOUT_ETA: dict[str, Any] = ON_PIXELS | {"options": frozenset(), "arguments": {}}
RGB: LatentRgb = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
# Sizes are what a person chose; captions are not rewritten by packages that may or may not be installed.
AS_GIVEN = {"use_resolution_binning": False, "clean_caption": False, "negative_prompt": None}
FAMILIES: dict[str, ModelFamily] = {
    "sd1": ModelFamily(
        "Stable Diffusion 1.x",
        SD_PIPELINES,
        {"width": 512, "height": 512, "num_inference_steps": 20, "guidance_scale": 7.0, "scheduler": "Euler a"},
        SD_LATENT_RGB,
        kinds=SD_KINDS | {"lcm": SD_PIPELINES},
        marks=LCM,
        others=frozenset({"LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"}),
        variants=(Variant("LCM", LCM_DEFAULTS, kind="lcm"),),
        fixed=LCM_FIXED,
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
        kinds_without={"depth": frozenset({"ip_adapters"})},  # diffusers' pipeline takes no image encoder
        variants=(Variant("SD Turbo", {"width": 512, "height": 512} | ONE_STEP, {"scheduler": TRAILING}),),
        pag_pipelines=SD_PAG,
        load_options=SD_LOADING,
    ),
    "sdxl": ModelFamily(
        "Stable Diffusion XL",
        SDXL_PIPELINES,
        {"width": 1024, "height": 1024, "num_inference_steps": 30, "guidance_scale": 6.0, "scheduler": "Euler"},
        SDXL_LATENT_RGB,
        "sdxl",
        kinds={
            "inpaint": {INPAINT: "StableDiffusionXLInpaintPipeline"},
            "refiner": _classes("", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
            "lcm": SDXL_PIPELINES,
        },
        marks={"requires_aesthetics_score": "refiner"} | LCM,
        fixed=LCM_FIXED,
        variants=(
            Variant("LCM", LCM_DEFAULTS, kind="lcm"),
            Variant("SDXL Turbo", {"width": 512, "height": 512} | ONE_STEP, {"scheduler": ANCESTRAL | TRAILING}),
            Variant("SDXL Lightning", {"num_inference_steps": 4, "guidance_scale": 1.0}, {"scheduler": TRAILING}),
        ),
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
        arguments=GUIDED,
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
        arguments=dict(GUIDED, true_cfg_scale="true_cfg_scale"),
        guidance="true_cfg_scale",
        interval_tasks=frozenset(),
        switched={},
    ),
    "z-image": ModelFamily(
        "Z-Image",
        _classes("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 50, "guidance_scale": 5.0, "scheduler": "Flow Euler"},
        FLUX_LATENT_RGB,  # it has Flux.1's autoencoder
        "z_image",
        channels={16: ""},
        variants=(
            Variant("Z-Image Turbo", {"num_inference_steps": 8, "guidance_scale": 1.0}, {"scheduler": {"shift": 3.0}}),
        ),
        pictures=frozenset({INPAINT}),  # diffusers 0.42: encodes what it is given for the masked part, even latents
        text_limits=(512,),
        guidance_offset=1.0,
        float_noise=True,
        **TRANSFORMER,
    ),
    "flux2-klein": ModelFamily(
        "Flux.2 klein",
        # Its image to image is its inpainting of the whole picture, which the model also sees as a reference.
        _classes("Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2KleinInpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 28, "guidance_scale": 4.0, "scheduler": "Flow Euler"},
        (),
        "flux2",
        channels={128: ""},
        kinds={"distilled": _classes("Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2KleinInpaintPipeline")},
        marks={"is_distilled": "distilled"},
        lora_targets=("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"),
        fixed={"distilled": {"guidance_scale": 1.0, "negative_prompt": ""}},
        variants=(
            Variant("Flux.2 klein, distilled", {"num_inference_steps": 4, "guidance_scale": 1.0}, kind="distilled"),
        ),
        text_limits=(512,),
        **TRANSFORMER,
    ),
    "qwen-image": ModelFamily(
        "Qwen-Image",
        _classes("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        {"width": 1328, "height": 1328, "num_inference_steps": 40, "guidance_scale": 4.0, "scheduler": "Flow Euler"},
        (),
        "qwen_image",
        channels={64: ""},
        text_limits=(1024,),
        call_options={"max_sequence_length": 1024},
        **dict(TRANSFORMER, arguments={"guidance_scale": "true_cfg_scale"}),
    ),
    "chroma": ModelFamily(
        "Chroma",
        _classes("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 35, "guidance_scale": 5.0, "scheduler": "Flow Euler"},
        FLUX_LATENT_RGB,
        "chroma",
        channels={64: ""},
        text_limits=(512,),
        denoiser_config={"guidance_embeds": False},  # diffusers 0.42: ChromaInpaintPipeline, which does not use it
        **TRANSFORMER,
    ),
    "pixart-sigma": ModelFamily(
        "PixArt-Sigma",
        _classes("PixArtSigmaPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 20, "guidance_scale": 4.5, "scheduler": "DPM++ 2M"},
        SDXL_LATENT_RGB,
        "pixart",
        channels={4: ""},
        lora=False,
        text_limits=(300,),
        call_options=AS_GIVEN,
        **dict(TRANSFORMER, noise="", options=frozenset({"eta"}), arguments=dict(GUIDED, eta="eta")),
    ),
    "sana": ModelFamily(
        "Sana",
        _classes("SanaPipeline"),
        {"width": 1024, "height": 1024, "num_inference_steps": 20, "guidance_scale": 4.5, "scheduler": "Flow DPM++ 2M"},
        (),
        "sana",
        channels={32: ""},
        text_limits=(300,),
        call_options=AS_GIVEN,
        float_noise=True,
        **dict(TRANSFORMER, noise="flow-solver", size_step=32),
    ),
    # A decoder that draws from the embedding of a picture, which the prior makes from words. Its calls give the solver a generator,
    # tell it of no noise levels (so none that counts in them works), and its guess of the variance is for DDPM alone.
    "kandinsky-2.2": ModelFamily(
        "Kandinsky 2.2",
        _classes("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline"),
        {"width": 768, "height": 768, "num_inference_steps": 50, "guidance_scale": 4.0, "scheduler": "DDPM"},
        (),
        "kandinsky",
        kinds={"inpaint": _classes("", "", "KandinskyV22InpaintPipeline")},
        others=frozenset(f"KandinskyV22{task}CombinedPipeline" for task in ("", "Img2Img", "Inpaint")),
        fixed={"inpaint": {"strength": 1.0, "masked_content": "original"}},  # it always begins with noise
        pictures=frozenset({IMAGE2IMAGE, INPAINT}),
        lora=False,
        text_limits=(77,),
        call_options={"negative_image_embeds": None},
        module="studio.engine.kandinsky",
        autoencoder="movq",
        prior="KandinskyV22PriorPipeline",
        prior_from="kandinsky-community/kandinsky-2-2-prior",
        **TRANSFORMER
        | {
            "noise": "",
            "refused_schedulers": NOISY - {"DDPM", "DDIM", "DPM++ 2M", "DPM++ 2M SDE"},
            "size_step": 64,
            "options": frozenset({"prior_guidance_scale"}),
            "interval_tasks": frozenset({TEXT2IMAGE, IMAGE2IMAGE}),
            "switched": {"image_embeds": "image_embeds"},
        },
    ),
    # Two networks of pixels, each with its own size and steps; the first one's T5 reads for both.
    "deepfloyd-if": ModelFamily(
        "DeepFloyd IF",
        _classes("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline"),
        {"width": 64, "height": 64, "num_inference_steps": 100, "guidance_scale": 7.0, "scheduler": "DDPM"},
        RGB,
        "deepfloyd",
        channels={3: "", 6: SECOND_STAGE},
        kinds={SECOND_STAGE: {SECOND_STAGE: "IFSuperResolutionPipeline"}},
        others=frozenset({"IFImg2ImgSuperResolutionPipeline", "IFInpaintingSuperResolutionPipeline"}),
        variants=(
            Variant(
                "DeepFloyd IF, second stage",
                {"width": 256, "height": 256, "num_inference_steps": 50, "guidance_scale": 4.0, "scheduler": "DDPM"},
                kind=SECOND_STAGE,
            ),
        ),
        fixed={"": NO_VAE, SECOND_STAGE: NO_VAE | {"loras": ()}},
        text_limits=(77,),
        module="studio.engine.deepfloyd",
        pixels=True,
        sized=True,
        cascade=4,
        **TRANSFORMER
        | {
            "noise": "diffusion",
            "refused_schedulers": frozenset(),
            "size_step": 8,
            "options": frozenset({"eta", "refiner"}),
            "arguments": dict(GUIDED, eta="eta"),
        },
    ),
    "unconditional": ModelFamily(
        "Unconditional",
        _classes("DDPMPipeline", "DDPMImg2ImgPipeline"),
        {"width": 64, "height": 64, "num_inference_steps": 50, "guidance_scale": 1.0, "scheduler": "DDIM"},
        RGB,
        "nothing",
        others=frozenset({"DDIMPipeline", "ConsistencyModelPipeline"}),  # the latter of EDM's networks
        **ON_PIXELS,
    ),
    "score": ModelFamily(
        "Score",
        _classes("ScoreSdeVePipeline"),
        {"width": 64, "height": 64, "num_inference_steps": 150, "guidance_scale": 1.0, "scheduler": PREDICT_CORRECT},
        RGB,
        "nothing",
        noise="ve",
        **WITHOUT_ETA,
    ),
    "dit": ModelFamily(
        "DiT (classes)",
        _classes("DiTPipeline"),
        {"width": 256, "height": 256, "num_inference_steps": 50, "guidance_scale": 4.0, "scheduler": "DDIM"},
        (),
        "classes",
        channels=dict.fromkeys((4, 8, 16, 32), ""),
        fixed={"": {"negative_prompt": ""}},
        interval_tasks=frozenset({TEXT2IMAGE}),
        switched={"class_labels": "class_labels"},
        size_step=16,
        module="studio.engine.dit",
        **WORDLESS,
    ),
}


def pipelines_of(family: str, kind: str) -> dict[str, str]:
    """Return task -> diffusers class name for a model; the first is what it is loaded as."""
    return FAMILIES[family].kinds[kind] if kind else FAMILIES[family].pipelines


def defaults_of(
    family: str, kind: str, configs: dict[str, dict[str, Any]], scheduler: str | None = None
) -> dict[str, Any]:
    """Return the generation values that are usual for a model.

    Args:
        family: key of `FAMILIES`.
        kind: of the model.
        configs: component -> the content of its config.
        scheduler: that it was saved with, which counts unless its kind was distilled for another.
    """
    fitting = (one for one in FAMILIES[family].variants if one.kind in ("", kind) and _has(configs, one.clues))
    found = next(fitting, None)
    usual, saved = FAMILIES[family].defaults, {"scheduler": scheduler} if scheduler else {}
    if found is None:
        return usual | saved
    return usual | saved | found.defaults if found.kind else usual | found.defaults | saved


def _has(configs: dict[str, dict[str, Any]], clues: dict[str, dict[str, Any]]) -> bool:
    return all(
        configs.get(part, {}).get(name) == value for part, entries in clues.items() for name, value in entries.items()
    )


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
    if denoiser.get("num_class_embeds"):
        raise ModelError("the denoiser wants the number of a class (num_class_embeds), which nothing here tells it")
    told = (kind for flag, kind in FAMILIES[name].marks.items() if index.get(flag) or denoiser.get(flag))
    return name, kinds[channels] or next(told, "")


def prior_of(index: dict[str, Any]) -> str:
    """Name the family whose prior a diffusers folder is, from its `model_index.json`; "" if it is none."""
    class_name = index.get("_class_name")
    return next((name for name, family in FAMILIES.items() if family.prior and family.prior == class_name), "")


def _class_names(family: ModelFamily) -> set[str]:
    tables = (family.pipelines, *family.kinds.values())
    return set(family.others) | {name for table in tables for name in table.values()}
