"""What a whole model in a single file is, told by the names and shapes of its tensors and by what its header says; never by its name.

Latent-diffusion's layout of Stable Diffusion 1.x, 2.x and XL, and the original layouts of Stable Diffusion 3 and Flux.1. What no shape
tells (heads, scales, the noise schedule) is the family's, as published. Reads no file and loads nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.families import FAMILIES
from studio.file_kinds import instead, is_lora, precision_problem
from studio.layouts import count, unet_config, vae_config, vae_names
from studio.lone_denoisers import PARTS, lone_denoiser, lone_family

Shapes = Mapping[str, Sequence[int]]
DENOISER = "model.diffusion_model."
VAE_PREFIX = ("first_stage_model.", "vae.")
HEAD = 64  # channels of an attention head in every family but the first
UNET = "UNet2DConditionModel"
CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
OPEN_CLIP_LAST = 24  # layers; Stable Diffusion 2 reads the one before the last, and diffusers leaves the last out
# As published: what is left out here, each scheduler class fills in with a default of its own.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DIFFUSION = BETAS | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
XL = BETAS | {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "timestep_spacing": "leading"}
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "rho": 7.0,
    "num_train_timesteps": 1000, "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "solver_order": 2,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX_SHIFT = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
}  # fmt: skip
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
VAE_SCALE: dict[str, dict[str, Any]] = {
    "sd1": {"scaling_factor": 0.18215, "sample_size": 512},
    "sd2": {"scaling_factor": 0.18215, "sample_size": 768},
    "sdxl": {"scaling_factor": 0.13025, "sample_size": 1024},
    "sd3": {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024},
}
PLAYGROUND_VAE = {  # Playground v2.5 measured SDXL's latents
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder: where a family's file keeps it, and as what diffusers knows it.

    Attributes:
        name: of the component.
        prefix: of its tensors' names.
        network: class name in transformers.
        open_clip: whether it has OpenCLIP's names; else transformers' own.
        activation: that no shape tells.
        pad: what its tokenizer fills prompts up with, "" for the end of the text.
        identity: whether the family reads it as it is where diffusers wants a projection.
    """

    name: str
    prefix: str
    network: str
    open_clip: bool = False
    activation: str = "quick_gelu"
    pad: str = ""
    identity: bool = False

    @property
    def tokenizer(self) -> str:
        """The name of its tokenizer."""
        return self.name.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class Layout:
    """How a family's files are built."""

    marks: tuple[str, ...]
    encoders: tuple[TextEncoder, ...]
    absent: tuple[str, ...] = ()


JOINT_T5 = "text_encoders.t5xxl.transformer."
REFINER = "refiner"
LAYOUTS: dict[tuple[str, str], Layout] = {  # (family, kind) -> layout; the first whose marks are all there counts
    ("sdxl", ""): Layout(
        ("input_blocks.0.0.weight", "conditioner.embedders.1."),
        (
            TextEncoder("text_encoder", "conditioner.embedders.0.transformer.", CLIP),
            TextEncoder("text_encoder_2", "conditioner.embedders.1.model.", CLIP_PROJECTED, True, "gelu", "!"),
        ),
    ),
    ("sdxl", REFINER): Layout(
        ("input_blocks.0.0.weight", "conditioner.embedders.0.model."),
        (TextEncoder("text_encoder_2", "conditioner.embedders.0.model.", CLIP_PROJECTED, True, "gelu", "!"),),
        absent=("text_encoder", "tokenizer"),
    ),
    ("sd2", ""): Layout(
        ("input_blocks.0.0.weight", "cond_stage_model.model."),
        (TextEncoder("text_encoder", "cond_stage_model.model.", CLIP, True, "gelu", "!"),),
    ),
    ("sd1", ""): Layout(
        ("input_blocks.0.0.weight", "cond_stage_model.transformer."),
        (TextEncoder("text_encoder", "cond_stage_model.transformer.", CLIP),),
    ),
    ("sd3", ""): Layout(
        ("joint_blocks.0.", "context_embedder.weight", "pos_embed"),
        (
            TextEncoder("text_encoder", "text_encoders.clip_l.transformer.", CLIP_PROJECTED, identity=True),
            TextEncoder("text_encoder_2", "text_encoders.clip_g.transformer.", CLIP_PROJECTED, False, "gelu", "!"),
            TextEncoder("text_encoder_3", JOINT_T5, T5),
        ),
    ),
    ("flux", ""): Layout(
        ("double_blocks.0.img_attn.norm.query_norm.scale", "vector_in.in_layer.weight", "img_in.weight"),
        (
            TextEncoder("text_encoder", "text_encoders.clip_l.transformer.", CLIP),
            TextEncoder("text_encoder_2", JOINT_T5, T5),
        ),
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model in a single file.

    Attributes:
        family: key of `FAMILIES`.
        kind: key of its `kinds`, or "".
        prediction: what the denoiser was trained to say: `epsilon`, `v_prediction`, `flow` or `edm`.
        told_by: what says so: `keys`, `metadata` or `family` (what is usual).
        layout: where its text encoders are.
        configs: component -> its `config.json`, for the components that the file holds; `scheduler` unless it is lacking.
        lacks: components that must come from another model of the family.
        vocabularies: tokenizer of a CLIP text encoder in the file -> how many words that knows.
        defaults: generation values that the file asks for, beyond its family's.
        prefix: of the denoiser's names, "" if they have none.
        told: what its shapes say of the denoiser's configuration, if another model gives the rest of it and the noise schedule.
    """

    family: str
    kind: str
    prediction: str
    told_by: str
    layout: Layout
    configs: dict[str, dict[str, Any]]
    lacks: tuple[str, ...] = ()
    vocabularies: dict[str, int] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    prefix: str = DENOISER
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """What the pipeline must be told when it is made."""
        return (
            {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False} if self.kind == REFINER else {}
        )

    @property
    def denoiser(self) -> str:
        """The name of the component that draws."""
        return "unet" if "unet" in self.configs else "transformer"


def understand(shapes: Shapes, metadata: Mapping[str, Any], prediction: str = "", step: int = 0) -> Checkpoint:
    """Return what a file of weights is.

    Args:
        shapes: of its tensors, by name.
        metadata: of its header.
        prediction: what a person says it was trained to predict, "" if nothing.
        step: its tensor `global_step`, which tells Stable Diffusion 2's two kinds apart; 0 if it has none.

    Raises:
        ValueError: saying what it is instead, or why it cannot be used, and what would do.
    """
    if problem := precision_problem(shapes):
        raise ValueError(problem)
    prefix = DENOISER if any(name.startswith(DENOISER) for name in shapes) else ""
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    known = [*bare, *shapes]
    found = next(
        (key for key, layout in LAYOUTS.items() if all(any(n.startswith(m) for n in known) for m in layout.marks)), None
    )
    if is_lora(shapes) or not (found or lone_family(bare)):
        raise ValueError(instead(shapes))
    if found is None:
        family, config, told = lone_denoiser(bare, len(shapes) - len(bare))
        configs = {"transformer": config}
        return Checkpoint(family, "", "flow", "family", Layout((), ()), configs, PARTS, prefix=prefix, told=told)
    family, kind = found
    layout = LAYOUTS[found]
    denoiser, config = BUILDS[family](bare)
    if kind != REFINER:
        kind = _kind(family, config["in_channels"])
    vae, lacks = _vae(family, shapes)
    configs: dict[str, dict[str, Any]] = {denoiser: config} | ({"vae": vae} if vae else {})
    vocabularies = {}
    for encoder in layout.encoders:
        told = text_config(encoder, shapes)
        if told:
            configs[encoder.name] = told
        if told and encoder.network != T5:
            vocabularies[encoder.tokenizer] = told["vocab_size"]
        else:  # T5's vocabulary is not among ours
            lacks += [encoder.tokenizer] if told else [encoder.name, encoder.tokenizer]
    said, told_by = _prediction(family, shapes, metadata, prediction, step)
    zero = "ztsnr" in shapes or str(metadata.get("ss_zero_terminal_snr", "")).lower() == "true"
    configs["scheduler"] = _scheduler(family, said, zero, config)
    if said == "edm" and "vae" in configs:
        configs["vae"] |= PLAYGROUND_VAE
    if family == "sd2" and said == "v_prediction":
        configs["unet"]["upcast_attention"] = True  # its attention does not fit into half precision
    defaults = _defaults(family, said, config, metadata)
    return Checkpoint(
        family, kind, said, told_by, layout, configs, tuple(lacks), vocabularies, defaults, prefix=prefix
    )  # fmt: skip


def _kind(family: str, channels: int) -> str:
    """Return the kind of a model by its denoiser's input channels.

    Raises:
        ValueError: if a single file of such a kind cannot be used.
    """
    kinds = FAMILIES[family].channels
    if channels not in kinds or kinds[channels] == "depth":
        what = {5: "reads depth", 8: "follows instructions", 384: "fills masks", 128: "follows edges or depth"}
        raise ValueError(
            f"its denoiser has {channels} input channels ({what.get(channels, 'an unknown kind')}), "
            f"which is not supported as a single file of {FAMILIES[family].title}"
        )
    return kinds[channels]


def _unet(family: str) -> Callable[[Shapes], tuple[str, dict[str, Any]]]:
    def build(shapes: Shapes) -> tuple[str, dict[str, Any]]:
        own = {name: shape for name, shape in shapes.items() if name.startswith(UNET_PARTS)}
        config = unet_config(own) | {"_class_name": UNET, "sample_size": VAE_SCALE[family]["sample_size"] // 8}
        heads = [width // HEAD for width in config["block_out_channels"]]
        config["attention_head_dim"] = 8 if family == "sd1" else heads
        if "addition_embed_type" in config:
            config["addition_time_embed_dim"] = 256
        return "unet", config

    return build


UNET_PARTS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")


def _sd3(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    width = shapes["context_embedder.weight"][0]
    patch = shapes["x_embedder.proj.weight"]
    dual = sorted({int(n.split(".")[1]) for n in shapes if re.match(r"joint_blocks\.\d+\.x_block\.attn2\.", n)})
    side = round(shapes["pos_embed"][1] ** 0.5)
    return "transformer", {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch[2],
        "in_channels": patch[1],
        "out_channels": shapes["final_layer.linear.weight"][0] // patch[2] ** 2,
        "num_layers": count(shapes, r"joint_blocks\.(\d+)\."),
        "attention_head_dim": HEAD,
        "num_attention_heads": width // HEAD,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": side,
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _flux(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    width, channels = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return "transformer", {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],
    }


BUILDS: dict[str, Callable[[Shapes], tuple[str, dict[str, Any]]]] = {
    "sd1": _unet("sd1"),
    "sd2": _unet("sd2"),
    "sdxl": _unet("sdxl"),
    "sd3": _sd3,
    "flux": _flux,
}


def _vae(family: str, shapes: Shapes) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration of the file's autoencoder and []; or {} and what is lacking."""
    prefix = next((one for one in VAE_PREFIX if any(name.startswith(one) for name in shapes)), None)
    if prefix is None:
        return {}, ["vae"]
    own = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    names = {new: own[old] for old, new in vae_names(own).items()}
    return vae_config(names) | VAE_SCALE[family] | {"_class_name": "AutoencoderKL", "norm_num_groups": 32}, []


def text_config(encoder: TextEncoder, shapes: Shapes) -> dict[str, Any]:
    """Return a text encoder's configuration; {} if the file does not hold it."""
    own = {
        name.removeprefix(encoder.prefix): shape for name, shape in shapes.items() if name.startswith(encoder.prefix)
    }
    if not own:
        return {}
    if encoder.network == T5:
        words, width = own["shared.weight"]
        gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in own
        buckets, heads = own["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        inner = own["encoder.block.0.layer.0.SelfAttention.q.weight"][0]
        inside = own[f"encoder.block.0.layer.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight"][0]
        return {
            "vocab_size": words, "d_model": width, "d_kv": inner // heads, "d_ff": inside, "num_heads": heads,
            "num_layers": count(own, r"encoder\.block\.(\d+)\."), "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": False,
        }  # fmt: skip
    own = {name.removeprefix("text_model."): shape for name, shape in own.items()}
    table = "token_embedding.weight" if encoder.open_clip else "embeddings.token_embedding.weight"
    places = "positional_embedding" if encoder.open_clip else "embeddings.position_embedding.weight"
    first = "transformer.resblocks.0.mlp.c_fc.weight" if encoder.open_clip else "encoder.layers.0.mlp.fc1.weight"
    layers = count(own, r"transformer\.resblocks\.(\d+)\." if encoder.open_clip else r"encoder\.layers\.(\d+)\.")
    if encoder.open_clip and encoder.network == CLIP and layers == OPEN_CLIP_LAST:
        layers -= 1
    words, width = own[table]
    projection = own.get("text_projection", own.get("text_projection.weight", (width, width)))
    projection = (width, width) if encoder.identity else projection
    return {
        "vocab_size": words, "hidden_size": width, "intermediate_size": own[first][0], "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD), "max_position_embeddings": own[places][0],
        "projection_dim": projection[1] if encoder.open_clip else projection[0], "hidden_act": encoder.activation,
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 0 if encoder.pad else words - 1,
    }  # fmt: skip


PREDICTIONS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction",
}  # fmt: skip
SD2_BASE_STEP = (
    875_000  # `global_step` of stable-diffusion-2-base, the only published one of its family that says epsilon
)


def _prediction(
    family: str, shapes: Shapes, metadata: Mapping[str, Any], said: str, step: int
) -> tuple[str, str]:  # fmt: skip
    """Return what the denoiser predicts, and what tells it."""
    if FAMILIES[family].noise == "flow":
        return "flow", "family"
    if said:
        if said not in PREDICTIONS:
            raise ValueError(f"prediction={said!r} must be one of: epsilon, v_prediction")
        return PREDICTIONS[said], "studio.yaml"
    if "edm_vpred.sigma_max" in shapes:
        raise ValueError("it is a CosXL model, whose noise schedule is not supported; use another SDXL model")
    if "edm_mean" in shapes:
        return "edm", "keys"
    if "v_pred" in shapes:
        return "v_prediction", "keys"
    for key in ("modelspec.prediction_type", "prediction_type"):
        if (told := str(metadata.get(key, "")).lower()) in PREDICTIONS:
            return PREDICTIONS[told], "metadata"
    if str(metadata.get("ss_v_parameterization", metadata.get("ss_v2_v_parameterization", ""))).lower() == "true":
        return "v_prediction", "metadata"
    if family == "sd2":
        return ("epsilon", "keys") if step == SD2_BASE_STEP else ("v_prediction", "family")
    return "epsilon", "family"


def _scheduler(family: str, said: str, zero: bool, denoiser: dict[str, Any]) -> dict[str, Any]:
    """Return the noise schedule that a model was trained with."""
    if family == "flux":
        return FLOW | (FLUX_SHIFT if denoiser["guidance_embeds"] else {"shift": 1.0})
    if said in ("flow", "edm"):
        return dict(FLOW if said == "flow" else EDM)
    return (XL if family == "sdxl" else DIFFUSION) | {"prediction_type": said} | (ZERO_SNR if zero else {})


def _defaults(family: str, said: str, denoiser: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation values that a file asks for."""
    made: dict[str, Any] = {}
    if family == "sd2" and said == "epsilon":
        made = {"width": 512, "height": 512}
    if family == "flux" and not denoiser["guidance_embeds"]:  # distilled to few steps (schnell)
        made = {"num_inference_steps": 4, "guidance_scale": 1.0}
    size = re.fullmatch(r"(\d{3,4})x(\d{3,4})", str(metadata.get("modelspec.resolution", "")))
    step = FAMILIES[family].size_step
    if size and all(256 <= int(side) <= 2048 and int(side) % step == 0 for side in size.groups()):
        made |= {"width": int(size[1]), "height": int(size[2])}
    return made
