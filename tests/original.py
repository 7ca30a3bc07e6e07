"""Writes tiny models as single files, in the layouts in which checkpoints are published: the inverse of what Studio reads."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
INNER = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def unet_to_ldm(state: State, layers: int, prefix: str = "model.diffusion_model.") -> State:
    """Write UNet2DConditionModel's weights under latent-diffusion's names."""
    table = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"] | DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
    made = {}
    for name, tensor in state.items():
        new = table.get(name, name)
        at = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name)
        if at:
            side, block, kind, layer, rest = at.groups()
            deep = layers + (side == "up")
            place = int(block) * (layers + 1) + int(layer) + (side == "down")
            assert int(layer) < deep
            new = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"
        elif at := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
            new = f"input_blocks.{(int(at[1]) + 1) * (layers + 1)}.0.op.{at[2]}"
        elif at := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
            attended = f"up_blocks.{at[1]}.attentions.0.norm.weight" in state
            new = f"output_blocks.{int(at[1]) * (layers + 1) + layers}.{1 + attended}.conv.{at[2]}"
        elif at := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
            new = f"middle_block.{1 if at[1] == 'attentions' else 2 * int(at[2])}.{at[3]}"
        if ".resnets." in name:
            for ours, theirs in INNER.items():
                new = re.sub(rf"\.{ours}\.(weight|bias)$", rf".{theirs}.\1", new)
        made[prefix + new] = tensor
    return made


def vae_to_ldm(state: State, prefix: str = "first_stage_model.") -> State:
    """Write AutoencoderKL's weights under latent-diffusion's names."""
    levels = 1 + max(int(at[1]) for name in state if (at := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    made = {}
    for name, tensor in state.items():
        new = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
        new = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", new)
        new = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda at: f".up.{levels - 1 - int(at[1])}.block.", new)
        new = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda at: f".up.{levels - 1 - int(at[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda at: f"mid.block_{int(at[1]) + 1}", new)
        if "mid_block.attentions.0" in new and tensor.ndim == 2:
            tensor = tensor[:, :, None, None].contiguous()
        for ours, theirs in {
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }.items():
            new = new.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        made[prefix + new] = tensor
    return made


def clip_to(state: State, prefix: str) -> State:
    """Write a CLIP text encoder's weights under transformers' classic names."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return {
        prefix + (name if name.startswith("text_projection") else f"text_model.{name}"): tensor
        for name, tensor in bare.items()
    }


def clip_to_open(state: State, prefix: str) -> State:
    """Write a CLIP text encoder's weights under OpenCLIP's names."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    rules = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.",
        "encoder.layers.": "transformer.resblocks.",
        ".layer_norm": ".ln_",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
        ".self_attn.": ".attn.",
    }
    made: State = {f"{prefix}logit_scale": torch.tensor(4.6)}
    for name, tensor in bare.items():
        new = name
        for ours, theirs in rules.items():
            new = new.replace(ours, theirs)
        if name == "text_projection.weight":
            made[f"{prefix}text_projection"] = tensor.T.contiguous()
        elif at := re.search(r"\.([qkv])_proj\.(weight|bias)$", new):
            if at[1] == "q":
                every = [bare[re.sub(r"q_proj", f"{letter}_proj", name)] for letter in "qkv"]
                made[prefix + new.replace(at[0], f".in_proj_{at[2]}")] = torch.cat(every)
        else:
            made[prefix + new] = tensor
    return made


def swapped(weight: torch.Tensor) -> torch.Tensor:
    scale, shift = weight.chunk(2)
    return torch.cat([shift, scale])


def joined(state: State, names: tuple[str, ...], end: str) -> torch.Tensor:
    return torch.cat([state[f"{name}.{end}"] for name in names])


def sd3_to_original(state: State, prefix: str = "model.diffusion_model.") -> State:
    """Write SD3Transformer2DModel's weights under Stability's names."""
    made = {"pos_embed": state["pos_embed.pos_embed"]}
    plain = {
        "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder", "final_layer.linear": "proj_out",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }  # fmt: skip
    blocks = 1 + max(int(at[1]) for name in state if (at := re.match(r"transformer_blocks\.(\d+)", name)))
    for end in ("weight", "bias"):
        made |= {f"{theirs}.{end}": state[f"{ours}.{end}"] for theirs, ours in plain.items()}
        made[f"final_layer.adaLN_modulation.1.{end}"] = swapped(state[f"norm_out.linear.{end}"])
        for i in range(blocks):
            ours, theirs = f"transformer_blocks.{i}", f"joint_blocks.{i}"
            own = tuple(f"{ours}.attn.to_{letter}" for letter in "qkv")
            other = tuple(f"{ours}.attn.add_{letter}_proj" for letter in "qkv")
            made[f"{theirs}.x_block.attn.qkv.{end}"] = joined(state, own, end)
            made[f"{theirs}.context_block.attn.qkv.{end}"] = joined(state, other, end)
            norm = state[f"{ours}.norm1_context.linear.{end}"]
            made[f"{theirs}.context_block.adaLN_modulation.1.{end}"] = swapped(norm) if i == blocks - 1 else norm
            table = {"x_block.attn.proj": "attn.to_out.0", "x_block.adaLN_modulation.1": "norm1.linear"}
            table |= {"x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2"}
            table |= {"context_block.attn.proj": "attn.to_add_out", "context_block.mlp.fc1": "ff_context.net.0.proj"}
            table |= {"context_block.mlp.fc2": "ff_context.net.2"}
            for new, old in table.items():
                if f"{ours}.{old}.{end}" in state:
                    made[f"{theirs}.{new}.{end}"] = state[f"{ours}.{old}.{end}"]
    return {prefix + name: tensor for name, tensor in made.items()}


def approximator(name: str) -> str:
    """Return a name of Chroma's guidance network as it was published."""
    name = re.sub(r"\.norms\.(\d+)\.weight$", r".norms.\1.scale", name)
    return name.replace(".linear_1.", ".in_layer.").replace(".linear_2.", ".out_layer.")


def flux_to_original(state: State, prefix: str = "") -> State:
    """Write FluxTransformer2DModel's or ChromaTransformer2DModel's weights under Black Forest Labs' names."""
    made: State = {}
    plain = {
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1", "txt_in": "context_embedder", "img_in": "x_embedder",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2", "final_layer.linear": "proj_out",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    }  # fmt: skip
    double = {
        "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2", "img_attn.proj": "attn.to_out.0",
        "txt_attn.proj": "attn.to_add_out",
    }  # fmt: skip
    for name, tensor in state.items():
        at = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)\.(weight|bias)", name)
        if not at:
            stem, _, end = name.rpartition(".")
            if stem.startswith("distilled_guidance_layer."):
                made[approximator(name)] = tensor
            elif stem == "norm_out.linear":
                made[f"final_layer.adaLN_modulation.1.{end}"] = swapped(tensor)
            else:
                made[f"{next(new for new, old in plain.items() if old == stem)}.{end}"] = tensor
            continue
        single, block, stem, end = at.groups()
        ours = name.removesuffix(f"{stem}.{end}")
        theirs = f"{'single' if single else 'double'}_blocks.{block}."
        norms = {"attn.norm_q": "query_norm", "attn.norm_k": "key_norm"}
        added = {"attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm"}
        if single and stem in ("norm.linear", "proj_out"):
            made[f"{theirs}{'linear2' if stem == 'proj_out' else 'modulation.lin'}.{end}"] = tensor
        elif stem in norms:
            made[f"{theirs}{'' if single else 'img_attn.'}norm.{norms[stem]}.scale"] = tensor
        elif stem in added:
            made[f"{theirs}{added[stem]}.scale"] = tensor
        elif not single and (new := next((new for new, old in double.items() if old == stem), None)):
            made[f"{theirs}{new}.{end}"] = tensor
        elif stem == "attn.to_q":
            own = tuple(f"{ours}attn.to_{letter}" for letter in "qkv") + ((f"{ours}proj_mlp",) if single else ())
            made[f"{theirs}{'linear1' if single else 'img_attn.qkv'}.{end}"] = joined(state, own, end)
        elif stem == "attn.add_q_proj":
            own = tuple(f"{ours}attn.add_{letter}_proj" for letter in "qkv")
            made[f"{theirs}txt_attn.qkv.{end}"] = joined(state, own, end)
    return {prefix + name: tensor for name, tensor in made.items()}


FLUX2 = (
    (r"^x_embedder\.", "img_in."), (r"^context_embedder\.", "txt_in."), (r"^proj_out\.", "final_layer.linear."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"^(double_stream_modulation_\w+|single_stream_modulation)\.linear\.", r"\1.lin."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^single_transformer_blocks\.", "single_blocks."), (r"^transformer_blocks\.", "double_blocks."),
    (r"\.attn\.to_qkv_mlp_proj\.", ".linear1."), (r"\.attn\.to_out\.weight", ".linear2.weight"),
    (r"^(single_blocks\.\d+)\.attn\.norm_(q|k)\.weight", r"\1.norm.\2_norm.scale"),
    (r"\.attn\.norm_added_(q|k)\.weight", r".txt_attn.norm.\1_norm.scale"), (r"\.attn\.norm_(q|k)\.weight", r".img_attn.norm.\1_norm.scale"),
    (r"\.q_norm\.scale", ".query_norm.scale"), (r"\.k_norm\.scale", ".key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."), (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff_context\.linear_in\.", ".txt_mlp.0."), (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
    (r"\.ff\.linear_in\.", ".img_mlp.0."), (r"\.ff\.linear_out\.", ".img_mlp.2."),
)  # fmt: skip
Z_IMAGE = (
    (r"^all_final_layer\.2-1\.", "final_layer."), (r"^all_x_embedder\.2-1\.", "x_embedder."), (r"\.to_out\.0\.", ".out."),
    (r"\.attention\.norm_(q|k)\.", r".attention.\1_norm."),
)  # fmt: skip


def fused(state: State, first: str, others: tuple[str, str], new: str) -> State:
    """Join three matrices into one wherever the first of them is found."""
    made: State = {}
    for name, tensor in state.items():
        if first in name:
            parts = [tensor, *(state[name.replace(first, other)] for other in others)]
            made[name.replace(first, new)] = torch.cat(parts)
        elif not any(other in name for other in others):
            made[name] = tensor
    return made


def by_rules(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    made: State = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        made[new] = tensor
    return made


def flux2_to_original(state: State) -> State:
    """Write Flux2Transformer2DModel's weights under Black Forest Labs' names."""
    joint = fused(state, ".attn.to_q.", (".attn.to_k.", ".attn.to_v."), ".img_attn.qkv.")
    added = (".attn.add_k_proj.", ".attn.add_v_proj.")
    made = by_rules(fused(joint, ".attn.add_q_proj.", added, ".txt_attn.qkv."), FLUX2)
    name = "final_layer.adaLN_modulation.1.weight"
    return made | {name: swapped(made[name])}


def z_image_to_original(state: State) -> State:
    """Write ZImageTransformer2DModel's weights under Tongyi's names."""
    others = (".attention.to_k.", ".attention.to_v.")
    return by_rules(fused(state, ".attention.to_q.", others, ".attention.qkv."), Z_IMAGE)


LONE: dict[str, Callable[[State], State]] = {
    "sd3": lambda state: sd3_to_original(state, ""),
    "flux": flux_to_original,
    "chroma": flux_to_original,
    "flux2-klein": flux2_to_original,
    "z-image": z_image_to_original,
    "qwen-image": lambda state: state,
}


def sd1_file(pipe: Any) -> State:
    text = clip_to(pipe.text_encoder.state_dict(), "cond_stage_model.transformer.")
    return unet_to_ldm(pipe.unet.state_dict(), 1) | vae_to_ldm(pipe.vae.state_dict()) | text


def sd2_file(pipe: Any) -> State:
    text = clip_to_open(pipe.text_encoder.state_dict(), "cond_stage_model.model.")
    return unet_to_ldm(pipe.unet.state_dict(), 1) | vae_to_ldm(pipe.vae.state_dict()) | text


def sdxl_file(pipe: Any) -> State:
    made = unet_to_ldm(pipe.unet.state_dict(), 1) | vae_to_ldm(pipe.vae.state_dict())
    if pipe.text_encoder is None:
        return made | clip_to_open(pipe.text_encoder_2.state_dict(), "conditioner.embedders.0.model.")
    made |= clip_to(pipe.text_encoder.state_dict(), "conditioner.embedders.0.transformer.")
    return made | clip_to_open(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")


def sd3_file(pipe: Any, *, text: bool = True) -> State:
    made = sd3_to_original(pipe.transformer.state_dict()) | vae_to_ldm(pipe.vae.state_dict())
    if text:
        made |= clip_to(pipe.text_encoder.state_dict(), "text_encoders.clip_l.transformer.")
        made |= clip_to(pipe.text_encoder_2.state_dict(), "text_encoders.clip_g.transformer.")
        made |= t5_to(pipe.text_encoder_3.state_dict())
    return made


def flux_file(pipe: Any, *, text: bool = True) -> State:
    if not text:
        return flux_to_original(pipe.transformer.state_dict())
    made = flux_to_original(pipe.transformer.state_dict(), "model.diffusion_model.")
    made |= vae_to_ldm(pipe.vae.state_dict(), "vae.") | t5_to(pipe.text_encoder_2.state_dict())
    return made | clip_to(pipe.text_encoder.state_dict(), "text_encoders.clip_l.transformer.")


def t5_to(state: State) -> State:
    names = [name for name in state if name != "encoder.embed_tokens.weight"]
    return {f"text_encoders.t5xxl.transformer.{name}": state[name] for name in names}


FILES: dict[str, Callable[..., State]] = {
    "sd1": sd1_file,
    "sd2": sd2_file,
    "sdxl": sdxl_file,
    "sd3": sd3_file,
    "flux": flux_file,
}


def save(state: State, path: Path, **metadata: str) -> Path:
    """Write a checkpoint; every tensor gets memory of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path, metadata or None)
    return path


def save_gguf(state: State, path: Path, kind: str = "Q8_0", architecture: str = "flux") -> Path:
    """Write a denoiser with the package gguf, as converters do: matrices in blocks where they divide, small tensors in full."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer, wanted = gguf.GGUFWriter(path, architecture), gguf.GGMLQuantizationType[kind]
    for name, tensor in state.items():
        numbers = tensor.float().contiguous().numpy()
        blocks = tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        one = wanted if blocks else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(numbers, one), raw_dtype=one)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
