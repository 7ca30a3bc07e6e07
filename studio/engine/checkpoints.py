"""Whole models from single files: diffusers' conversion where it has one, strict about names; the shapes tell the configuration."""

import importlib
import inspect
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from studio.checkpoints import T5, UNET, VAE_PREFIX, Checkpoint, TextEncoder, understand
from studio.engine.devices import Device
from studio.engine.gguf_files import load_gguf, quantising
from studio.engine.single_files import built, vae_state
from studio.families import FAMILIES
from studio.gguf_header import is_gguf, read_header
from studio.records import ModelRef
from studio.settings import CLIP_VOCABULARY, CLIP_WORDS

State = dict[str, torch.Tensor]
OPEN_CLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
FLUX_BLOCKS = (  # Flux.1's own names, but for those that are split
    (r"^time_in\.in_layer\.", "time_text_embed.timestep_embedder.linear_1."),
    (r"^time_in\.out_layer\.", "time_text_embed.timestep_embedder.linear_2."),
    (r"^vector_in\.in_layer\.", "time_text_embed.text_embedder.linear_1."),
    (r"^vector_in\.out_layer\.", "time_text_embed.text_embedder.linear_2."),
    (r"^guidance_in\.in_layer\.", "time_text_embed.guidance_embedder.linear_1."),
    (r"^guidance_in\.out_layer\.", "time_text_embed.guidance_embedder.linear_2."),
    (r"^txt_in\.", "context_embedder."),
    (r"^img_in\.", "x_embedder."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^double_blocks\.", "transformer_blocks."),
    (r"^single_blocks\.", "single_transformer_blocks."),
    (r"\.img_mod\.lin\.", ".norm1.linear."),
    (r"\.txt_mod\.lin\.", ".norm1_context.linear."),
    (r"\.modulation\.lin\.", ".norm.linear."),
    (r"\.img_mlp\.0\.", ".ff.net.0.proj."),
    (r"\.img_mlp\.2\.", ".ff.net.2."),
    (r"\.txt_mlp\.0\.", ".ff_context.net.0.proj."),
    (r"\.txt_mlp\.2\.", ".ff_context.net.2."),
    (r"\.img_attn\.proj\.", ".attn.to_out.0."),
    (r"\.txt_attn\.proj\.", ".attn.to_add_out."),
    (r"\.img_attn\.norm\.(query|key)_norm\.scale$", r".attn.norm_\1.weight"),
    (r"\.txt_attn\.norm\.(query|key)_norm\.scale$", r".attn.norm_added_\1.weight"),
    (r"\.norm\.(query|key)_norm\.scale$", r".attn.norm_\1.weight"),
    (r"\.linear2\.", ".proj_out."),
    (r"(norm_(?:added_)?)query\.", r"\1q."),
    (r"(norm_(?:added_)?)key\.", r"\1k."),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.in_layer\.", r"\1.linear_1."),  # Chroma, which is built like it
    (r"^(distilled_guidance_layer\.layers\.\d+)\.out_layer\.", r"\1.linear_2."),
    (r"^(distilled_guidance_layer\.norms\.\d+)\.scale$", r"\1.weight"),
)
ONE_WIDTH = ("FluxTransformer2DModel", "ChromaTransformer2DModel")  # the only one that diffusers' conversion knows
FLUX_SPLIT = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}


def load_checkpoint(model: ModelRef, pipeline_class: Any, device: Device) -> Any:
    """Load a model from a single file; what it lacks comes from `model.donor`.

    Raises:
        ValueError: if the file does not hold exactly what such a model has.
    """
    found = look_at(Path(model.path), model.prediction)
    state = load_gguf(Path(model.path)) if model.quantised else load_file(model.path)
    config = _donor_json(model.donor, f"{found.denoiser}/config.json") if found.told else found.configs[found.denoiser]
    parts: dict[str, Any] = {found.denoiser: _denoiser(found.prefix, config, state, device, blocks=model.quantised)}
    if "vae" in found.configs:
        prefix = next(one for one in VAE_PREFIX if any(name.startswith(one) for name in state))
        own = vae_state({name: tensor for name, tensor in state.items() if name.startswith(prefix)})
        parts["vae"] = built(diffusers_class("AutoencoderKL"), _without_class(found.configs["vae"]), own, device)
    for encoder in found.layout.encoders:
        if encoder.name in found.configs:
            parts[encoder.name] = _text_encoder(encoder, found.configs[encoder.name], state, device)
        if encoder.tokenizer not in found.lacks:
            words = found.vocabularies[encoder.tokenizer]
            parts[encoder.tokenizer] = _tokenizer(encoder, words, model.donor)
    if "scheduler" in found.configs:
        scheduler = dict(found.configs["scheduler"])
        parts["scheduler"] = diffusers_class(scheduler.pop("_class_name")).from_config(scheduler)
    for name in found.lacks:
        parts[name] = _from_donor(name, model.donor, device)
    told = _donor_json(model.donor, "model_index.json") if found.told else {}
    flags = {name: value for name, value in told.items() if not isinstance(value, list)}
    options = flags | FAMILIES[model.family].load_options | found.options
    wanted = inspect.signature(pipeline_class.__init__).parameters
    absent = [name for name, one in wanted.items() if one.default is one.empty and name not in ("self", *parts)]
    known = {name: value for name, value in options.items() if name in wanted}
    return pipeline_class(**(dict.fromkeys(absent) | parts | known))


def look_at(path: Path, prediction: str = "") -> Checkpoint:
    """Return what a file is, from its header."""
    if is_gguf(path):
        header = read_header(path)
        metadata = header.pop("__metadata__")
        return understand({name: one["shape"] for name, one in header.items()}, metadata, prediction)
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
        step = int(file.get_tensor("global_step")) if "global_step" in shapes else 0
        return understand(shapes, file.metadata() or {}, prediction, step)


def diffusers_class(name: str) -> Any:
    return getattr(importlib.import_module("diffusers"), name)


def _denoiser(prefix: str, config: dict[str, Any], state: State, device: Device, *, blocks: bool) -> Any:
    """Build the network that draws around its weights, which must be exactly those of the network.

    Args:
        prefix: of its names in the file.
        config: its `config.json`.
        state: the file's tensors.
        device: to put it on.
        blocks: whether they are GGUF's.
    """
    network = diffusers_class(config["_class_name"])
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if config["_class_name"] in ONE_WIDTH:
        own = flux_state(own)
    if config["_class_name"] == ONE_WIDTH[0] and not blocks:
        return built(network, _without_class(config), own, device)
    given = state if config["_class_name"] == UNET else own
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        told = quantising(device) if blocks else {}
        made = network.from_single_file(dict(given), config=folder, dtype=device.dtype, local_files_only=True, **told)
    if missing := next((name for name, weight in made.named_parameters() if weight.is_meta), None):
        raise ValueError(f"{missing} is not in the file")  # diffusers passes over what it does not find
    return made.to(device.place).eval().requires_grad_(False)


def _without_class(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def flux_state(own: State) -> State:
    """Return Flux.1's or Chroma's weights under diffusers' names."""
    made: State = {}
    for name, tensor in own.items():
        block = next((one for one in FLUX_SPLIT if f".{one}." in name), None)
        if block:
            width = own["img_in.weight"].shape[0]
            names = FLUX_SPLIT[block]
            sizes = [width, width, width] + ([len(tensor) - 3 * width] if len(names) > 3 else [])
            pieces = zip(names, tensor.split(sizes), strict=True)
            split = {name.replace(f".{block}.", f".{new}."): piece.clone() for new, piece in pieces}
        else:
            split = {name: tensor}
        made |= {_renamed(one, FLUX_BLOCKS): piece for one, piece in split.items()}
    for name in ("norm_out.linear.weight", "norm_out.linear.bias"):  # diffusers has scale and shift the other way round
        if name in made:  # Chroma has none
            shift, scale = made[name].chunk(2)
            made[name] = torch.cat([scale, shift])
    return made


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _text_encoder(encoder: TextEncoder, config: dict[str, Any], state: State, device: Device) -> Any:
    """Build a text encoder around its weights, which must be exactly those of the network."""
    library: Any = importlib.import_module("transformers")
    network = getattr(library, encoder.network)
    own = {n.removeprefix(encoder.prefix): tensor for n, tensor in state.items() if n.startswith(encoder.prefix)}
    if encoder.network == T5:
        named = {name: tensor for name, tensor in own.items() if name != "encoder.embed_tokens.weight"}
        made_config = library.T5Config(**config)
    else:
        named = clip_state(encoder, own, config)
        made_config = library.CLIPTextConfig(**config)
        with torch.device("meta"):
            nested = any(name.startswith("text_model.") for name in network(made_config).state_dict())
        if nested:  # transformers 5.6 flattened one of the two
            named = {n if n.startswith("text_projection") else f"text_model.{n}": t for n, t in named.items()}
    made, told = network.from_pretrained(
        None, config=made_config, state_dict=named, dtype=device.dtype, output_loading_info=True
    )
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, told[problem])):
            raise ValueError(f"{encoder.name} is not whole: {names[0]} ({problem.split('_')[0]})")
    return made.to(device.place).eval().requires_grad_(False)


def clip_state(encoder: TextEncoder, own: State, config: dict[str, Any]) -> State:
    """Return a CLIP text encoder's weights under transformers' names, without `text_model.`."""
    own = {n.removeprefix("text_model."): t for n, t in own.items() if not n.endswith(("position_ids", "logit_scale"))}
    if encoder.open_clip:
        own = _from_open_clip(own)
    layers = config["num_hidden_layers"]
    own = {n: t for n, t in own.items() if not (at := re.match(r"encoder\.layers\.(\d+)\.", n)) or int(at[1]) < layers}
    own.pop("attn_mask", None)
    if encoder.network != "CLIPTextModelWithProjection":
        own.pop("text_projection.weight", None)
    elif encoder.identity:
        own["text_projection.weight"] = torch.eye(config["hidden_size"])
    return own


def _from_open_clip(own: State) -> State:
    made: State = {}
    for name, tensor in own.items():
        new = _renamed(name, OPEN_CLIP)
        if name == "text_projection":
            made["text_projection.weight"] = tensor.T.contiguous()
        elif at := re.search(r"in_proj_(weight|bias)$", new):
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                made[new.replace(at[0], f"{letter}_proj.{at[1]}")] = piece.clone()
        else:
            made[new] = tensor
    return made


def _tokenizer(encoder: TextEncoder, words: int, donor: ModelRef | None) -> Any:
    """Return the tokenizer of a CLIP text encoder: CLIP's own, or the donor's if that knows as many words."""
    library: Any = importlib.import_module("transformers")
    pad = {"pad_token": encoder.pad} if encoder.pad else {}
    folder = CLIP_VOCABULARY
    if words != CLIP_WORDS:
        if donor is None:
            raise ValueError(f"its text encoder knows {words:,} words, and there is no vocabulary of that size")
        folder = Path(donor.path) / "tokenizer"
    return library.CLIPTokenizer.from_pretrained(folder, local_files_only=True, **pad)


def _from_donor(name: str, donor: ModelRef | None, device: Device) -> Any:
    """Load a component of a diffusers folder."""
    if donor is None:
        raise ValueError(f"it lacks {name}, and no other model of its family is there to take it from")
    library, class_name = _donor_json(donor, "model_index.json")[name]
    loader = getattr(importlib.import_module(library), class_name)
    if name.startswith(("tokenizer", "scheduler")):
        return loader.from_pretrained(donor.path, subfolder=name, local_files_only=True)
    made = loader.from_pretrained(
        donor.path, subfolder=name, dtype=device.dtype, local_files_only=True, use_safetensors=True
    )
    return made.to(device.place).eval().requires_grad_(False)


def _donor_json(donor: ModelRef | None, name: str) -> dict[str, Any]:
    if donor is None:
        raise ValueError("no other model of its family is there to take the rest from")
    return json.loads((Path(donor.path) / name).read_text(encoding="utf-8"))
