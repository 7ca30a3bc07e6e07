"""ControlNets in single files, as A1111's users have them: what they draw is what the diffusers folder draws."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from PIL import Image
from safetensors.torch import save_file

from studio.errors import InvalidRequest
from studio.layouts import controlnet_config, controlnet_names
from studio.parts import shape_problem
from studio.spec import parse_request
from studio.store.blobs import encode
from studio.store.library import Library
from tests.conftest import MODELS, drawer, pixels

SMALL: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 5, "num_inference_steps": 2}
Draw = Callable[..., Any]
SD15: dict[str, Any] = {"cross_attention_dim": 768}
SD21: dict[str, Any] = {
    "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time",
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def to_ldm(state: dict[str, Any], layers: int, prefix: str = "control_model.") -> dict[str, Any]:
    """Write a ControlNet under latent-diffusion's names."""
    hints = max(int(at[1]) for name in state if (at := re.search(r"cond_embedding\.blocks\.(\d+)", name)))
    rules = (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("controlnet_mid_block", "middle_block_out.0"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
        ("controlnet_cond_embedding.conv_in", "input_hint_block.0"),
        ("controlnet_cond_embedding.conv_out", f"input_hint_block.{2 * hints + 4}"),
    )
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
    inner |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

    def block(at: re.Match[str]) -> str:
        place = int(at[1]) * (layers + 1) + int(at[3]) + 1
        return f"input_blocks.{place}.{int(at[2] == 'attentions')}."

    made = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in rules:
            new = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", new)
        if new.startswith("conv_in."):
            new = f"input_blocks.0.0.{new.removeprefix('conv_in.')}"
        new = re.sub(r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0.", new)
        new = re.sub(
            r"^controlnet_cond_embedding\.blocks\.(\d+)", lambda at: f"input_hint_block.{2 * int(at[1]) + 2}", new
        )
        new = re.sub(r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", block, new)
        new = re.sub(
            r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.",
            lambda at: f"input_blocks.{(int(at[1]) + 1) * (layers + 1)}.0.op.",
            new,
        )
        if "resnets" in name:
            new = re.sub(r"\.(\w+)\.(weight|bias)$", lambda at: f".{inner[at[1]]}.{at[2]}", new)
        made[prefix + new] = tensor
    return made


def controlnet(unet: Any, seed: int, size: float = 0.1) -> Any:
    """Build a ControlNet for a UNet whose outputs are not zero."""
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32, 64))
    for part in (
        network.controlnet_down_blocks,
        network.controlnet_mid_block,
        network.controlnet_cond_embedding.conv_out,
    ):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=size)
    return network.eval()


def unit(name: str) -> dict[str, Any]:
    values = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return {"model": name, "image": encode(Image.fromarray(values))}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """One ControlNet in all layouts, `another`, and files that are something else."""
    root = tmp_path_factory.mktemp("root")
    folder, theirs = root / "controlnets", root / "ControlNet"
    theirs.mkdir()
    unet = UNet2DConditionModel.from_pretrained(MODELS / "shapes" / "unet")
    network, layers = controlnet(unet, 0), unet.config["layers_per_block"]
    network.save_pretrained(folder / "folder")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / "plain.safetensors")
    save_file(to_ldm(state, layers), folder / "control_v11p_sd15_canny.safetensors")
    save_file(to_ldm(state, layers, ""), theirs / "bare.safetensors")
    save_file({k: v.half() for k, v in to_ldm(state, layers).items()}, theirs / "control_half_fp16.safetensors")
    save_file(to_ldm(state, layers), folder / "control_shuffle.safetensors")
    save_file(to_ldm(controlnet(unet, 1).state_dict(), layers), folder / "another.safetensors")
    one = torch.zeros(1)
    adapter = T2IAdapter(in_channels=3, channels=[8, 8, 8, 8], num_res_blocks=1).state_dict()
    for name, content in {
        "control-lora-canny": {"lora_controlnet": one, "input_blocks.0.0.up": one},
        "lora-parts": {"input_blocks.1.1.proj_in.down": one},
        "lllite": {"lllite_unet_input_blocks_4_1.depth": one},
        "t2iadapter_canny": {"body.0.block1.weight": one, "conv_in.weight": one},
        "t2i": adapter,
        "flux": {"controlnet_blocks.0.weight": one, "transformer_blocks.0.norm": one},
        "ip-adapter": {"image_proj.proj.weight": one},
        "extracted": {"difference": one, "control_model.time_embed.0.weight": one},
        "union": state | {"task_embedding": one},
        "lora": {"lora_unet_down.weight": one},
    }.items():
        save_file({key: tensor.clone() for key, tensor in content.items()}, folder / f"{name}.safetensors")
    (folder / "control_sd15_depth.pth").write_bytes(b"\x80\x02}q\x00.")
    (folder / "cut.safetensors").write_bytes((folder / "plain.safetensors").read_bytes()[:-9])
    return Library((MODELS,), part_roots=(root,))


def test_a_file_draws_what_the_folder_draws(engine: Any, here: Library, blobs: Any) -> None:
    draw = drawer(engine, here, blobs)
    plain, expected = draw(**SMALL).pictures, draw(**SMALL, controls=[unit("folder")]).pictures
    assert plain != expected
    for name in ("plain", "control_v11p_sd15_canny", "bare"):
        made = draw(**SMALL, controls=[unit(name)])
        assert made.pictures == expected
        assert [(part.kind, part.id) for part in made.records[0].parts] == [("controlnet", name)]
    half = pixels(draw(**SMALL, controls=[unit("control_half_fp16")]).pictures[0]).astype(int)
    assert np.abs(half - pixels(expected[0])).max() <= 8
    assert draw(**SMALL, controls=[unit("another")]).pictures not in (plain, expected)
    assert draw(**SMALL, controls=[unit("control_shuffle")]).pictures != expected, "its conditions are pooled"
    assert draw(**SMALL).pictures == plain


def test_an_xl_file_takes_heads_and_sizes_from_the_model(
    engine: Any, tiny_library: Library, tmp_path: Path, blobs: Any
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_library.get("sdxl").path / "unet")
    network = controlnet(unet, 0)
    network.save_pretrained(tmp_path / "controlnets" / "folder")
    save_file(to_ldm(network.state_dict(), 1), tmp_path / "controlnets" / "file.safetensors")
    library = Library((*tiny_library.folders, MODELS), part_roots=(tmp_path,))
    draw = drawer(engine, library, blobs)
    values = SMALL | {"model": "sdxl", "width": 64, "height": 64}
    one, other = (draw(**values, controls=[unit(name)]).pictures for name in ("folder", "file"))
    assert one == other != draw(**values).pictures
    with pytest.raises(InvalidRequest) as caught:
        library.parts_of(parse_request({"controls": [{"model": "file", "image": "x"}]}))
    assert str(caught.value).startswith(
        "controls.0.model='file' does not fit model='shapes': it was made for another family"
    )


def test_what_is_no_controlnet_is_refused_with_the_reason(here: Library) -> None:
    parts = {part.id: part for part in here.parts.parts("controlnet")}
    shape = here.get("shapes").shape
    usable = {name for name, part in parts.items() if not part.problem}
    assert usable == {
        "folder",
        "plain",
        "control_v11p_sd15_canny",
        "bare",
        "control_half_fp16",
        "control_shuffle",
        "another",
    }
    assert not any(shape_problem(parts[name], shape) for name in usable)
    for name, reason in {
        "control-lora-canny": "it is a Control-LoRA",
        "lora-parts": "it is a Control-LoRA",
        "lllite": "it is a ControlNet-LLLite",
        "t2iadapter_canny": "it is a T2I-Adapter in one file; copy its diffusers folder",
        "t2i": "it is a T2I-Adapter in one file",
        "flux": "for a transformer (SD3, Flux)",
        "ip-adapter": "it is an IP-Adapter",
        "extracted": "only the difference",
        "union": "of another build (task_embedding)",
        "lora": "it holds no ControlNet",
        "control_sd15_depth.pth": "python -m studio convert",
        "cut": "is cut off",
    }.items():
        with pytest.raises(InvalidRequest) as caught:
            here.parts_of(parse_request({"controls": [{"model": name, "image": "x"}]}))
        assert str(caught.value).startswith(f"controls.0.model='{name}' cannot be used: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("facts", [SD15, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
def test_real_shapes_tell_the_real_configuration(facts: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = ControlNetModel(**facts)
    state = network.state_dict()
    for prefix in ("control_model.", ""):
        file = to_ldm(state, 2, prefix)
        assert "zero_convs.0.0.weight" in {name.removeprefix("control_model.") for name in file}
        names = controlnet_names(file)
        assert {new: tuple(file[old].shape) for old, new in names.items()} == {
            k: tuple(v.shape) for k, v in state.items()
        }
    told = controlnet_config({name: tensor.shape for name, tensor in state.items()})
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in network.config.items()}
    depths = config["transformer_layers_per_block"]
    config["transformer_layers_per_block"] = [depths] * 4 if isinstance(depths, int) else depths
    assert told.items() <= config.items()
    if facts is not SDXL:  # diffusers' own converter loses an XL file's `label_emb`
        theirs = convert_controlnet_checkpoint(to_ldm(state, 2), network.config)
        ours = to_ldm(state, 2)
        assert all(theirs[new] is ours[old] for old, new in controlnet_names(ours).items())
