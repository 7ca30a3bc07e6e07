"""ControlNets and adapters: what they do to the picture is what diffusers' own pipelines do, and nothing of it stays behind."""

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.shapes.follow import followed, scores
from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, Thing
from studio.engine.prompts import chunk_tokens, encode_chunks
from studio.engine.tasks import Start
from studio.errors import InvalidRequest, StudioError
from studio.spec import parse_request
from studio.store.blobs import encode
from studio.store.library import Library
from studio.store.metadata import add_text, picture_texts, read_picture
from tests.conftest import pixels
from trainers.scorers.reading import judge

PROMPT = "a red circle on a blue background"
STEPS = 3
Draw = Callable[..., Any]


def noise_picture(seed: int, side: int = 128) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


FIRST, SECOND = noise_picture(1), noise_picture(2)


@pytest.fixture(scope="module")
def base(library: Library) -> Any:
    """Load the embedded model as diffusers does."""
    pipe = StableDiffusionPipeline.from_pretrained(library.folders[0] / "shapes", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def networks(library: Library, base: Any) -> dict[str, Any]:
    """Put random units into the library: `zero` (untrained), `loud`, `louder`, `sketch`, `tint`, and an IP-Adapter `seen`."""
    folder = library.parts.roots[-1] / "controlnets"
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    for name, size in (("zero", 0.0), ("loud", 0.3), ("louder", 0.6)):
        network = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 16, 32, 64))
        for part in (
            network.controlnet_down_blocks,
            network.controlnet_mid_block,
            network.controlnet_cond_embedding.conv_out,
        ):
            for weight in part.parameters():
                torch.nn.init.normal_(weight, std=size / 4)
        made[name] = network.eval()
    for name, channels in (("sketch", 1), ("tint", 3)):
        made[name] = T2IAdapter(
            in_channels=channels,
            channels=[64, 96, 160, 160],  # the embedded UNet is built as SDXL's: its first level has no attention
            num_res_blocks=1,
            downscale_factor=16,
            adapter_type="full_adapter_xl",
        ).eval()
    for name, network in made.items():
        network.save_pretrained(folder / name)
    save_ip_adapter(folder / "seen", base.unet)
    return made


def save_ip_adapter(folder: Path, unet: Any) -> None:
    """Write a random IP-Adapter that fits a UNet, with a small image encoder."""
    width = unet.config.cross_attention_dim
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    state = {
        "image_proj.proj.weight": torch.randn(4 * width, 16) * 0.5,
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for key in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{key}.weight"] = torch.randn(inner, width) * 0.2
    save_file(state, folder / "ip-adapter.safetensors")


def bare(pipe: Any, seed: int, *, steps: int = STEPS, **more: Any) -> np.ndarray:
    """Draw with a diffusers pipeline as our engine would be asked to; (H, W, 3) uint8."""
    with torch.inference_mode():
        positive, negative = (
            encode_chunks(pipe.text_encoder, chunk_tokens(pipe.tokenizer, [text])) for text in (PROMPT, "")
        )
        made = pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            guidance_scale=2.0,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **more,
        ).images
    picture = made[0] if isinstance(made, np.ndarray) else made[0].permute(1, 2, 0).numpy()
    return np.rint(picture * 255).astype(np.uint8)


def ours(draw: Draw, seed: int = 5, **values: Any) -> np.ndarray:
    made = draw(**({"prompt": PROMPT, "seed": seed, "guidance_scale": 2.0, "num_inference_steps": STEPS} | values))
    return pixels(made.pictures[0])


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


def control(model: str, image: Image.Image | None = FIRST, **more: Any) -> dict[str, Any]:
    return {"model": model, **({"image": encode(image)} if image else {}), **more}


def test_an_untrained_controlnet_and_weight_0_change_nothing(draw: Draw, networks: dict[str, Any]) -> None:
    plain = draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures
    for unit in (control("zero"), control("loud", weight=0)):
        assert draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS, controls=[unit]).pictures == plain
    assert draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS, controls=[control("loud")]).pictures != plain
    assert draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures == plain


def test_controlnets_are_those_of_diffusers(draw: Draw, base: Any, networks: dict[str, Any]) -> None:
    one = StableDiffusionControlNetPipeline.from_pipe(base, controlnet=networks["loud"], dtype=torch.float32)
    two = StableDiffusionControlNetPipeline.from_pipe(
        base, controlnet=[networks["loud"], networks["louder"]], dtype=torch.float32
    )
    assert near(ours(draw, controls=[control("loud")]), bare(one, 5, image=FIRST))
    both = [control("loud", weight=0.7, end=0.5), control("louder", SECOND, start=0.3)]
    expected = bare(
        two,
        5,
        image=[FIRST, SECOND],
        controlnet_conditioning_scale=[0.7, 1.0],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.5, 1.0],
    )
    assert near(ours(draw, controls=both), expected)
    assert not near(ours(draw, controls=both), ours(draw, controls=both[:1]))


def test_a_controlnet_steers_img2img_as_in_diffusers(draw: Draw, base: Any, networks: dict[str, Any]) -> None:
    pipe = StableDiffusionControlNetImg2ImgPipeline.from_pipe(base, controlnet=networks["loud"], dtype=torch.float32)
    start = Image.fromarray(pixels(draw(prompt="a green star on a white background", seed=3).pictures[0]))
    values = torch.from_numpy(np.array(start)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        latents = base.vae.encode(values).latent_dist.mode() * base.vae.config.scaling_factor
    given = {"image": latents, "control_image": FIRST, "strength": 0.5, "controlnet_conditioning_scale": 1.0}
    expected = bare(pipe, 5, steps=6, **given)
    made = ours(draw, image=encode(start), strength=0.5, num_inference_steps=6, controls=[control("loud")])
    assert near(made, expected)
    assert not near(made, ours(draw, image=encode(start), strength=0.5, num_inference_steps=6))


def test_t2i_adapters_are_those_of_diffusers_and_work_together(draw: Draw, base: Any, networks: dict[str, Any]) -> None:
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipe = StableDiffusionAdapterPipeline(**parts, adapter=networks["tint"], requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    made = ours(draw, t2i_adapters=[control("tint", weight=0.8)])
    assert near(made, bare(pipe, 5, image=FIRST, adapter_conditioning_scale=0.8))
    both = ours(draw, t2i_adapters=[control("tint", weight=0.8), control("sketch", SECOND)])
    assert not near(made, both)
    assert not near(both, ours(draw, t2i_adapters=[control("sketch", SECOND)]))


def test_an_ip_adapter_is_that_of_diffusers_and_leaves_nothing_behind(
    draw: Draw, library: Library, networks: dict[str, Any]
) -> None:
    before = draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures
    folder = library.parts.roots[-1] / "controlnets" / "seen"
    unit = {"model": "seen", "images": [encode(FIRST), encode(SECOND)], "scale": 0.7}
    made = ours(draw, ip_adapters=[unit])
    pipe = StableDiffusionPipeline.from_pretrained(library.folders[0] / "shapes", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name="ip-adapter.safetensors", local_files_only=True)
    pipe.set_ip_adapter_scale(0.7)
    assert near(made, bare(pipe, 5, ip_adapter_image=[[FIRST, SECOND]]))
    assert draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures == before


def test_all_kinds_at_once_in_inpainting_keep_what_is_not_masked(draw: Draw, networks: dict[str, Any]) -> None:
    source = pixels(draw(prompt="a green star on a white background", seed=3).pictures[0])
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[:, :60] = 255
    given = {"image": encode(Image.fromarray(source)), "mask_image": encode(Image.fromarray(mask)), "mask_blur": 0}
    units = {
        "controls": [control("loud", None, preprocessor="canny"), control("louder", SECOND, mode="control")],
        "t2i_adapters": [control("tint")],
        "ip_adapters": [{"model": "seen", "images": [encode(FIRST)]}],
    }
    made = ours(draw, **given, **units, masked_content="latent noise", strength=1.0)
    assert np.array_equal(made[:, 60:], source[:, 60:])
    assert not near(made, ours(draw, **given, masked_content="latent noise", strength=1.0))


class Weakened(ControlNetModel):
    """Weakens its blocks as A1111 does when the prompt is more important: by 0.825 for each step outwards from the middle."""

    def forward(self, *given: Any, **named: Any) -> Any:
        down, middle = super().forward(*given, **named)
        return [level * 0.825 ** (len(down) - place) for place, level in enumerate(down)], middle


def test_the_prompt_is_more_important_when_outer_blocks_are_weakened(
    draw: Draw, base: Any, library: Library, networks: dict[str, Any]
) -> None:
    network = Weakened.from_pretrained(library.parts.roots[-1] / "controlnets" / "loud")
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=network, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    made = ours(draw, controls=[control("loud", mode="prompt")])
    assert near(made, bare(pipe, 5, image=FIRST)) and not near(made, ours(draw, controls=[control("loud")]))


def test_control_is_more_important_when_the_half_without_the_prompt_is_left_alone(
    draw: Draw, networks: dict[str, Any]
) -> None:
    balanced, prompt, more = (
        [ours(draw, controls=[control("loud", mode=mode)], guidance_scale=scale) for scale in (1.0, 2.0)]
        for mode in ("balanced", "prompt", "control")
    )
    assert np.array_equal(more[0], prompt[0]), "without guidance there is no such half"
    assert not near(more[1], prompt[1]) and not near(more[1], balanced[1])


def test_guidance_may_begin_late_and_end_early_with_units(draw: Draw, networks: dict[str, Any]) -> None:
    units = {"controls": [control("loud")], "ip_adapters": [{"model": "seen", "images": [encode(FIRST)]}]}
    within = ours(draw, **units, guidance_start=0.3, guidance_end=0.7)
    assert not near(within, ours(draw, **units))
    assert not near(within, ours(draw, **units, guidance_scale=1))


def test_units_work_in_batches_and_in_both_passes_of_a_hires_fix(draw: Draw, networks: dict[str, Any]) -> None:
    one = ours(draw, seed=6, controls=[control("loud")])
    two = draw(
        prompt=PROMPT,
        seed=5,
        guidance_scale=2.0,
        num_inference_steps=STEPS,
        num_images_per_prompt=2,
        batch_size=2,
        controls=[control("loud")],
    ).pictures
    assert np.abs(pixels(two[1]).astype(int) - one.astype(int)).max() <= 2
    large = ours(draw, controls=[control("loud")], hires_scale=1.5, hires_strength=0.5, num_inference_steps=4)
    assert large.shape == (192, 192, 3)


def test_an_interrupted_job_leaves_nothing_behind(draw: Draw, networks: dict[str, Any]) -> None:
    before = draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures
    units = {"controls": [control("loud")], "ip_adapters": [{"model": "seen", "images": [encode(FIRST)]}]}
    stopped = draw(prompt=PROMPT, seed=5, stop=lambda made: "interrupt" if len(made.events) > 2 else "", **units)
    assert stopped.finished.interrupted
    assert draw(prompt=PROMPT, seed=5, num_inference_steps=STEPS).pictures == before


def test_what_cannot_steer_is_refused_in_one_sentence(
    library: Library, networks: dict[str, Any], tmp_path: Path
) -> None:
    folder = library.parts.roots[-1] / "controlnets"
    other = ControlNetModel.from_config(ControlNetModel.load_config(folder / "zero") | {"cross_attention_dim": 64})
    other.save_pretrained(folder / "foreign")
    (folder / "blind").mkdir(exist_ok=True)
    (folder / "blind" / "w.safetensors").write_bytes((folder / "seen" / "ip-adapter.safetensors").read_bytes())
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    picture = "blob:" + "0" * 64

    def refused(**values: Any) -> str:
        with pytest.raises(InvalidRequest) as caught:
            library.parts_of(parse_request(values))
        return str(caught.value)

    assert "made for another family: cross_attention_dim is 64" in refused(
        controls=[{"model": "foreign", "image": picture}]
    )
    assert "there is: " in refused(controls=[{"model": "nothing", "image": picture}])
    assert "no weights" in refused(controls=[{"model": "empty", "image": picture}])
    assert "is no ControlNet" in refused(controls=[{"model": "tint", "image": picture}])
    assert "is no T2I-Adapter" in refused(t2i_adapters=[{"model": "zero", "image": picture}])
    assert "is missing" in refused(controls=[{"model": "zero"}])
    assert "at most 3" in refused(controls=[{"model": "zero", "image": picture}] * 4)
    assert "controls.0" in refused(controls=[{"model": "zero", "image": picture, "preprocessor": "magic"}])
    assert "low_threshold" in refused(
        controls=[{"model": "zero", "image": picture, "preprocessor": "canny", "options": {"low_threshold": -4}}]
    )
    for name in ("foreign", "blind", "empty"):
        for file in (folder / name).glob("*"):
            file.unlink()
        (folder / name).rmdir()


def test_an_ip_adapter_without_its_encoder_is_refused(library: Library, networks: dict[str, Any]) -> None:
    folder = library.parts.roots[-1] / "controlnets" / "blind"
    folder.mkdir()
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "image_encoder").mkdir()
    (folder / "w.safetensors").write_bytes((folder.parent / "seen" / "ip-adapter.safetensors").read_bytes())
    with pytest.raises(StudioError, match="no image encoder"):
        library.parts.get("ip_adapter", "blind", "ip_adapters.0.model")


@pytest.mark.parametrize(("kind", "least"), [("controlnet", 0.8), ("t2i", 0.65)])
def test_the_shipped_units_follow_edges(tmp_path: Path, kind: str, least: float) -> None:
    results = scores(followed(8, kind, tmp_path), kind)
    plain = scores(followed(8, kind, tmp_path, on=False), kind)
    assert results["edge_f"] >= least
    assert plain["edge_f"] <= 0.5
    assert min(results["colour"], results["background"]) == 1


def test_the_shipped_ip_adapter_shows_what_its_picture_shows(tmp_path: Path) -> None:
    results = scores(followed(8, "ip", tmp_path), "ip")
    plain = scores(followed(8, "ip", tmp_path, on=False), "ip")
    assert min(results["colour"], results["background"]) >= 0.85
    assert results["shape"] >= 0.6
    assert max(plain["colour"], plain["background"], plain["shape"]) <= 0.4


def test_a_prompt_beside_an_ip_adapter_says_the_shape(draw: Draw) -> None:
    """Colours come from the picture, the shape from the words."""
    scene = Scene((Thing("red", "circle", 0.5, 0.5, 0.3),), "yellow")
    picture = encode(Image.fromarray(render(scene, random.Random(2))))
    unit = {"model": "shapes-ip", "images": [picture], "scale": 0.5}
    seen = [judge(pixels(draw(prompt="a star", seed=seed, ip_adapters=[unit]).pictures[0])) for seed in range(6)]
    shown = [(one.things[0].colour in ("red", "orange"), one.things[0].shape, one.background) for one in seen]
    assert shown.count((True, "star", "yellow")) >= 5


def test_a_picture_with_units_is_replayed(draw: Draw, library: Library, tmp_path: Path) -> None:
    made = draw(prompt=PROMPT, seed=5, controls=[control("shapes-canny", preprocessor="canny", weight=0.5)])
    record = made.records[0]
    (part,) = record.parts
    assert (part.kind, part.id, len(part.sha256)) == ("controlnet", "shapes-canny", 64)
    path = tmp_path / "one.png"
    path.write_bytes(add_text(made.pictures[0], picture_texts(record)))
    found = read_picture(path)
    assert found.record
    assert found.record.request == record.request
    assert found.record.parts[0].sha256 == part.sha256
    assert 'ControlNet 0: "Module: canny, Model: shapes-canny' in found.text


def test_each_ip_adapter_sees_with_its_own_encoder(
    draw: Draw, library: Library, base: Any, networks: dict[str, Any]
) -> None:
    torch.manual_seed(7)
    save_ip_adapter(library.parts.roots[-1] / "controlnets" / "seen too", base.unet)
    one = {"model": "seen", "images": [encode(FIRST)], "scale": 0.5}
    other = {"model": "seen too", "images": [encode(SECOND)], "scale": 0.5}
    assert near(ours(draw, ip_adapters=[one, other]), ours(draw, ip_adapters=[other, one]))
    assert not near(ours(draw, ip_adapters=[one, other]), ours(draw, ip_adapters=[one]))


def test_a_size_that_an_adapter_cannot_read_is_told_before_anything_is_drawn(
    draw: Draw, networks: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="136 x 128 pixels do not fit the T2I-Adapter tint; use multiples of 16"):
        draw(prompt=PROMPT, width=136, t2i_adapters=[control("tint")])
    with pytest.raises(InvalidRequest, match="136 x 136 pixels do not fit"):
        draw(prompt=PROMPT, hires_scale=1.06, t2i_adapters=[control("tint")])


def test_a_control_picture_lies_where_the_picture_lies() -> None:
    picture = np.random.default_rng(5).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    request = parse_request({"image": "given", "width": 128, "height": 128, "extend_right": 64})
    start = Start(request, lambda reference, field: Image.fromarray(picture))
    placed = start.placed(picture, 192, 128)
    assert placed.shape == (128, 192, 3)
    assert np.array_equal(placed[:, :128], picture)


def test_a_picture_does_not_say_where_models_lie(draw: Draw, networks: dict[str, Any]) -> None:
    record = draw(prompt=PROMPT, seed=5, num_inference_steps=1, controls=[control("zero")]).records[0]
    assert record.model.path
    assert record.parts[0].path
    assert not any(
        part.path in text for part in (record.model, *record.parts) for text in picture_texts(record).values()
    )


def test_no_weight_is_loaded_twice_over_all_tasks(draw: Draw) -> None:
    """Identity: no task brings parameters of its own. Memory: what all parameters take is the same after each."""

    def held() -> dict[int, int]:
        gc.collect()
        found = [one for one in gc.get_objects() if isinstance(one, torch.nn.Parameter)]
        return {one.data_ptr(): one.numel() * one.element_size() for one in found}

    picture, mask = encode(FIRST), encode(Image.new("L", FIRST.size, 255))
    quick = {"prompt": PROMPT, "num_inference_steps": 2, "seed": 1}
    draw(**quick, controls=[control("shapes-canny")])
    before = held()
    for values in (
        {},
        {"image": picture, "strength": 0.9},
        {"image": picture, "mask_image": mask, "strength": 0.9},
        {"hires_scale": 1.5},
        {"pag_scale": 1.0},
        {"image": picture, "mask_image": mask, "strength": 0.9, "controls": [control("shapes-canny")]},
        {"hires_scale": 1.5, "controls": [control("shapes-canny")]},
    ):
        draw(**quick, **values)
        assert held() == before, values
