"""ControlNets and IP-Adapters for Stable Diffusion 3: the numbers of diffusers' own pipelines, or a clear refusal, and nothing stays behind."""

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from studio.engine.steering import spread
from studio.errors import InvalidRequest, ModelError, StudioError
from studio.fitting import unit_problem
from studio.spec import parse_request
from studio.store.blobs import BlobStore, encode
from studio.store.library import Library
from tests.conftest import Made, drawer, pixels

Draw = Callable[..., Made]
PROMPT, STEPS, LAYERS = "a red circle on a blue background", 3, 4
SIZES = {
    "sample_size": 32,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 32,
}
NETWORKS: dict[str, tuple[float, dict[str, Any]]] = {  # how loud, and in what it differs
    "zero": (0.0, {}),
    "loud": (0.5, {}),
    "louder": (0.7, {"force_zeros_for_pooled_projection": False, "qk_norm": "rms_norm"}),
    "deep": (0.5, {"num_layers": 3}),
    "shut": (0.0, {"num_layers": 3}),
    "large": (  # as Stable Diffusion 3.5's own ones for the 8b model
        0.5,
        {"joint_attention_dim": None, "use_pos_embed": False, "force_zeros_for_pooled_projection": False},
    ),
    "paint": (0.5, {"extra_conditioning_channels": 1}),
    "narrow": (0.5, {"attention_head_dim": 4, "num_attention_heads": 8}),
    "short": (0.5, {"pos_embed_max_size": 8}),
}


def noise_picture(seed: int, side: int = 64) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(values, np.ones((8, 8, 1), np.uint8)))


FIRST, SECOND = noise_picture(1), noise_picture(2)


def control(model: str, image: Image.Image | None = FIRST, **more: Any) -> dict[str, Any]:
    return {"model": model, **({"image": encode(image)} if image else {}), **more}


def seen(model: str = "seen", *pictures: Image.Image, **more: Any) -> dict[str, Any]:
    return {"model": model, "images": [encode(picture) for picture in pictures or (FIRST,)], **more}


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A model like Stable Diffusion 3.5 medium, with two attentions in its first block, and parts for it."""
    from tests.tiny import flux, sd3, unet

    models, parts = tmp_path_factory.mktemp("joint"), tmp_path_factory.mktemp("joint-parts")
    torch.manual_seed(0)
    sd3(LAYERS, dual_attention_layers=(0,), qk_norm="rms_norm").save_pretrained(models / "sd3")
    sd3().save_pretrained(models / "small")
    flux().save_pretrained(models / "flux")
    folder = parts / "controlnets"
    for name, (loud, more) in NETWORKS.items():
        network = SD3ControlNetModel(**(SIZES | more))
        for part in (network.controlnet_blocks, network.pos_embed_input):
            for weight in part.parameters():
                torch.nn.init.normal_(weight, std=loud)
        network.save_pretrained(folder / name)
    save_ip_adapter(folder / "seen", LAYERS + 1)
    save_ip_adapter(folder / "shallow", 2)
    diffusers.ControlNetModel.from_unet(unet(32), conditioning_embedding_out_channels=(8, 8)).save_pretrained(
        folder / "other"
    )
    diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8).save_pretrained(folder / "sketch")
    return Library((models,), part_roots=(parts,))


def save_ip_adapter(folder: Path, layers: int) -> None:
    """Write a random IP-Adapter for a transformer that is 32 wide, with a small image encoder."""
    encoder = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    SiglipVisionModel(encoder).save_pretrained(folder / "image_encoder")
    look = IPAdapterTimeImageProjection(
        embed_dim=16, output_dim=32, hidden_dim=64, heads=1, num_queries=3, timestep_in_dim=16
    )
    state = {f"image_proj.{name}": weight.contiguous() for name, weight in look.state_dict().items()}
    for number in range(layers):
        layer = SD3IPAdapterJointAttnProcessor2_0(32, 32, 8, timesteps_emb_dim=64)
        torch.nn.init.normal_(layer.to_v_ip.weight, std=0.7)
        state |= {f"ip_adapter.{number}.{name}": weight for name, weight in layer.state_dict().items()}
    save_file(state, folder / "ip-adapter.safetensors")


@pytest.fixture(scope="module")
def run(engine: Any, joint: Library, blobs: BlobStore) -> Draw:
    draw = drawer(engine, joint, blobs)
    usual = {"model": "sd3", "prompt": PROMPT, "width": 64, "height": 64, "seed": 5, "guidance_scale": 3.0}
    return lambda **values: draw(**usual | {"num_inference_steps": STEPS} | values)


@pytest.fixture(scope="module")
def base(joint: Library) -> Any:
    """Load the model as diffusers does, with an autoencoder that says the same whenever it is asked: diffusers takes samples."""
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(joint.get("sd3").path)
    last = pipe.vae.encoder.conv_out
    with torch.no_grad():
        last.weight[16:], last.bias[16:] = 0, -100
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bare(pipe: Any, **more: Any) -> np.ndarray:
    """Draw with a diffusers pipeline what `run` is asked for; (H, W, 3) uint8."""
    values = {"prompt": PROMPT, "guidance_scale": 3.0, "num_inference_steps": STEPS} | more
    size = {} if "image" in more else {"width": 64, "height": 64}
    with torch.inference_mode():
        image = pipe(**size, generator=torch.Generator().manual_seed(5), output_type="np", **values).images[0]
    return np.rint(image * 255).astype(np.uint8)


def controlled(base: Any, library: Library, *names: str) -> Any:
    networks = [SD3ControlNetModel.from_pretrained(library.parts.roots[-1] / "controlnets" / name) for name in names]
    parts = {name: part for name, part in base.components.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = StableDiffusion3ControlNetPipeline(**parts, controlnet=networks if len(names) > 1 else networks[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shown(made: Made) -> np.ndarray:
    return pixels(made.pictures[0])


def near(one: np.ndarray, other: np.ndarray, levels: int = 1) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= levels


def transformer(engine: Any, library: Library) -> Any:
    reference = library.reference(library.get("sd3"))
    return engine.pipelines._weights(reference).base.transformer


@pytest.fixture
def untouched(engine: Any, joint: Library) -> Iterator[None]:
    """Compare the transformer before and after: its weights, its processors, its parts."""

    def facts() -> Any:
        network = transformer(engine, joint)
        digest = hashlib.sha256()
        for name, weight in network.state_dict().items():
            digest.update(name.encode() + weight.numpy().tobytes())
        return digest.hexdigest(), {name: id(one) for name, one in network.attn_processors.items()}, dir(network)

    before = facts()
    yield
    assert facts() == before


def test_an_untrained_controlnet_and_weight_0_change_nothing(run: Draw, untouched: None) -> None:
    plain = run().pictures
    for unit in (control("zero"), control("loud", weight=0)):
        assert run(controls=[unit]).pictures == plain
    assert run(controls=[control("loud")]).pictures != plain
    assert run().pictures == plain


@pytest.mark.parametrize("name", ["loud", "louder", "large"])
def test_a_controlnet_is_that_of_diffusers(run: Draw, base: Any, joint: Library, name: str) -> None:
    pipe = controlled(base, joint, name)
    made = shown(run(controls=[control(name, weight=0.8)]))
    assert near(made, bare(pipe, control_image=FIRST, controlnet_conditioning_scale=0.8))
    assert not near(made, shown(run()), 3)
    assert not near(made, shown(run(controls=[control(name, SECOND, weight=0.8)])), 3)


def test_an_interval_is_that_of_diffusers(run: Draw, base: Any, joint: Library) -> None:
    pipe = controlled(base, joint, "loud")
    made = [shown(run(controls=[control("loud", start=start, end=end)])) for start, end in ((0.3, 1), (0, 0.5))]
    for picture, (start, end) in zip(made, ((0.3, 1.0), (0.0, 0.5)), strict=True):
        told = {"control_guidance_start": start, "control_guidance_end": end}
        assert near(picture, bare(pipe, control_image=FIRST, controlnet_conditioning_scale=1.0, **told))
    assert not near(*made)


def test_two_controlnets_are_those_of_diffusers(run: Draw, base: Any, joint: Library) -> None:
    pipe = controlled(base, joint, "loud", "loud")
    both = [control("loud", weight=0.7, end=0.5), control("loud", SECOND, start=0.3)]
    expected = bare(
        pipe,
        control_image=[FIRST, SECOND],
        controlnet_conditioning_scale=[0.7, 1.0],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.5, 1.0],
    )
    assert near(shown(run(controls=both)), expected)


def test_controlnets_of_any_depth_work_together(run: Draw) -> None:
    """Each keeps its own rule of what is added where; diffusers would drop the end of the deeper one."""
    deep, loud = control("deep"), control("loud", SECOND)
    assert near(shown(run(controls=[loud, control("shut")])), shown(run(controls=[loud])))
    assert near(shown(run(controls=[control("zero"), deep])), shown(run(controls=[deep])))
    assert near(shown(run(controls=[deep, loud])), shown(run(controls=[loud, deep])))
    assert not near(shown(run(controls=[deep, loud, control("louder")])), shown(run(controls=[deep, loud])))
    blocks = [torch.full((1,), float(i)) for i in range(18)]
    assert [int(block) for block in spread(blocks, 24)] == [int(i / (24 / 18)) for i in range(24)]


def test_controls_own_mode_leaves_the_unconditional_half_alone(run: Draw) -> None:
    balanced, other = (shown(run(controls=[control("loud", mode=mode)])) for mode in ("balanced", "control"))
    assert not near(balanced, other)
    off = [shown(run(controls=[control("loud", mode=mode)], guidance_scale=1.0)) for mode in ("balanced", "control")]
    assert np.array_equal(*off), "there is no such half without guidance"


def test_a_picture_with_units_does_not_depend_on_what_was_drawn_before(run: Draw) -> None:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(run(controls=[control("loud")]).pictures)
    assert made[0] == made[1], "diffusers would have drawn the control picture's latents from this generator"


def test_img2img_inpainting_outpainting_and_a_second_pass_are_steered(run: Draw, untouched: None) -> None:
    source = encode(noise_picture(3))
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, :32] = 255
    painted = {"image": source, "mask_image": encode(Image.fromarray(mask)), "mask_blur": 0, "strength": 0.9}
    units = {"controls": [control("loud")], "ip_adapters": [seen(scale=1.0)]}
    tasks: list[dict[str, Any]] = [
        {"image": source, "strength": 0.7},
        painted,
        {"image": source, "extend_right": 32, "strength": 1.0},
        {"hires_scale": 1.5, "hires_strength": 0.5, "hires_upscaler": "lanczos"},
        {"scheduler": "Flow Heun", "num_inference_steps": 2},
        {"guidance_end": 0.5},
    ]
    for task in tasks:
        made = [shown(run(**task, **{name: units[name] for name in names})) for names in ((), ("controls",), units)]
        assert len({one.shape for one in made}) == 1
        for one, other in itertools.combinations(made, 2):
            assert not near(one, other), task
    kept = shown(run(**painted, controls=[control("loud", None)], ip_adapters=[seen()]))
    assert np.array_equal(kept[:, 32:], np.asarray(noise_picture(3))[:, 32:])


def test_img2img_with_a_controlnet_begins_and_ends_as_diffusers_would(run: Draw, base: Any, joint: Library) -> None:
    """With strength 1 it is text to image: the same noise, steps and residuals."""
    drawn = bare(controlled(base, joint, "loud"), control_image=FIRST, controlnet_conditioning_scale=1.0)
    assert near(shown(run(image=encode(SECOND), strength=1.0, controls=[control("loud")])), drawn)


def test_units_work_in_batches(run: Draw) -> None:
    units = {"controls": [control("loud", mode="control")], "ip_adapters": [seen("seen", FIRST, SECOND)]}
    two = run(**units, num_images_per_prompt=2, batch_size=2).pictures
    assert near(pixels(two[1]), shown(run(**units, seed=6)), 2)


def test_an_ip_adapter_is_that_of_diffusers(run: Draw, joint: Library, untouched: None) -> None:
    before = run().pictures
    folder = joint.parts.roots[-1] / "controlnets" / "seen"
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        joint.get("sd3").path,
        image_encoder=SiglipVisionModel.from_pretrained(folder / "image_encoder"),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(folder), weight_name="ip-adapter.safetensors")
    pipe.set_ip_adapter_scale(0.7)
    made = run(ip_adapters=[seen(scale=0.7)])
    assert near(shown(made), bare(pipe, ip_adapter_image=FIRST))
    assert not near(shown(made), pixels(before[0]), 3)
    image = {"image": encode(SECOND), "strength": 0.7}
    second = diffusers.StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    with torch.inference_mode():
        values = torch.from_numpy(np.asarray(SECOND).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        latents = (pipe.vae.encode(values).latent_dist.mode() - pipe.vae.config.shift_factor) * 1.5305
    expected = bare(second, image=latents, strength=0.7, width=64, height=64, ip_adapter_image=FIRST)
    assert near(shown(run(**image, ip_adapters=[seen(scale=0.7)])), expected)
    assert run(ip_adapters=[seen(scale=0)]).pictures == before
    assert run().pictures == before


def test_several_pictures_stand_beside_each_other(run: Draw) -> None:
    """Which comes first does not matter."""
    one = shown(run(ip_adapters=[seen(scale=1.0)]))
    both = shown(run(ip_adapters=[seen("seen", FIRST, SECOND, scale=1.0)]))
    assert near(both, shown(run(ip_adapters=[seen("seen", SECOND, FIRST, scale=1.0)])))
    assert not near(both, one)


def test_a_controlnet_and_an_ip_adapter_work_together(run: Draw, untouched: None) -> None:
    units = {"controls": [control("large")], "ip_adapters": [seen(scale=1.0)]}
    both = shown(run(**units))
    assert not any(near(both, shown(run(**{name: unit}))) for name, unit in units.items())


def test_what_is_interrupted_or_fails_leaves_nothing_behind(
    run: Draw, engine: Any, joint: Library, untouched: None
) -> None:
    before, units = run().pictures, {"controls": [control("loud")], "ip_adapters": [seen(scale=1.0)]}
    assert run(**units, stop=lambda made: "interrupt" if len(made.events) > 1 else "").finished.interrupted
    assert run().pictures == before
    folder = joint.parts.roots[-1] / "controlnets"
    for name, change in (("holes", None), ("wide", torch.zeros(7))):
        shutil.copytree(folder / "seen", folder / name)
        state = load_file(folder / name / "ip-adapter.safetensors")
        key = "image_proj.layers.3.ln0.weight"
        state = {other: weight for other, weight in state.items() if other != key} | (
            {} if change is None else {key: change}
        )
        save_file(state, folder / name / "ip-adapter.safetensors")
        with pytest.raises(ModelError, match=r"lacks 1 weights|does not fit"):
            run(ip_adapters=[seen(name)])
        shutil.rmtree(folder / name)
        assert run().pictures == before


def test_what_cannot_steer_is_refused_in_one_sentence(joint: Library) -> None:
    picture = "blob:" + "0" * 64

    def refused(model: str = "sd3", **values: Any) -> str:
        with pytest.raises(InvalidRequest) as caught:
            joint.parts_of(joint.resolve(parse_request({"model": model} | values), 1)[0])
        assert "\n" not in str(caught.value)
        return f"{caught.value.field}: {caught.value}"

    unit, look = {"model": "loud", "image": picture}, {"model": "seen", "images": [picture]}
    assert refused(t2i_adapters=[unit | {"model": "sketch"}]) == (
        "t2i_adapters: t2i_adapters do not work with Stable Diffusion 3, which takes controls and ip_adapters only; "
        "switch the control units off"
    )
    for name in ("controls", "ip_adapters"):
        units = {name: [unit if name == "controls" else look]}
        assert f"{name} do not work with Flux.1 yet" in refused("flux", **units)
    assert refused(controls=[unit, unit | {"mode": "prompt"}]) == (
        "controls.1.mode: controls.1.mode='prompt' does not work with Stable Diffusion 3; use balanced or control"
    )
    assert "ip_adapters has 2 units; with Stable Diffusion 3 at most 1" in refused(ip_adapters=[look, look])
    assert "trained to inpaint" in refused(controls=[unit | {"model": "paint"}])
    assert "num_attention_heads is 8 there and 4 in this model" in refused(controls=[unit | {"model": "narrow"}])
    assert "cross_attention_dim is 32 there and none in this model" in refused(controls=[unit | {"model": "other"}])
    assert "attention_layers is 2 there and 5 in this model" in refused(ip_adapters=[look | {"model": "shallow"}])
    assert joint.parts_of(
        joint.resolve(parse_request({"model": "small", "ip_adapters": [look | {"model": "shallow"}]}), 1)[0]
    )
    assert unit_problem("sd3", "", "controls") == unit_problem("sdxl", "", "t2i_adapters") == ""


def test_a_size_that_a_controlnet_has_no_places_for_is_told(run: Draw) -> None:
    assert run(controls=[control("short")], width=128).pictures
    with pytest.raises(InvalidRequest, match=r"144 x 64 pixels are more than the ControlNet short .* at most 128"):
        run(controls=[control("short")], width=144)
    with pytest.raises(InvalidRequest, match="192 x 192 pixels are more") as problem:
        run(controls=[control("short")], hires_scale=3)
    assert problem.value.field == "hires_scale"


def test_sizes_tell_a_flux_controlnet_from_one_for_stable_diffusion_3(joint: Library) -> None:
    """With the same heads and the same prompt: real Flux and Stable Diffusion 3 medium have 24 heads and 4096 numbers both."""
    folder = joint.parts.roots[-1] / "controlnets" / "of flux"
    same = {name: SIZES[name] for name in ("attention_head_dim", "num_attention_heads", "joint_attention_dim")}
    network = diffusers.FluxControlNetModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, pooled_projection_dim=32,
        axes_dims_rope=(2, 2, 4), **same,
    )  # fmt: skip
    network.save_pretrained(folder)
    request = parse_request({"model": "sd3", "controls": [{"model": "of flux", "image": "blob:" + "0" * 64}]})
    with pytest.raises(InvalidRequest, match="in_channels is 64 there and 16 in this model"):
        joint.parts_of(request)
    shutil.rmtree(folder)


def test_an_ip_adapters_encoder_and_weights_must_belong_together(joint: Library, tmp_path: Path) -> None:
    folder = tmp_path / "controlnets"
    source = joint.parts.roots[-1] / "controlnets" / "seen"
    for name in ("clip", "whole", "wrong", "unet", "bare"):
        shutil.copytree(source, folder / name)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    shutil.rmtree(folder / "clip" / "image_encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip" / "image_encoder")
    wide = SiglipVisionConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    SiglipVisionModel(wide).save_pretrained(folder / "wrong" / "image_encoder")
    save_file({"ip_adapter.1.to_k_ip.weight": torch.zeros(8, 32)}, folder / "unet" / "ip-adapter.safetensors")
    state = load_file(source / "ip-adapter.safetensors")
    holes = {key: weight for key, weight in state.items() if not key.startswith("ip_adapter.2.norm")}
    save_file(holes, folder / "bare" / "ip-adapter.safetensors")
    parts = Library((), part_roots=(tmp_path,)).parts
    found = {part.id: part for part in parts.parts("ip_adapter")}
    assert found["whole"].shape == {"num_attention_heads": 4, "attention_head_dim": 8, "attention_layers": 5}
    assert (
        found["clip"].problem
        == "its image encoder is of the kind clip_vision_model; its weights were made with siglip_vision_model"
    )
    assert found["unet"].problem.endswith("siglip_vision_model; its weights were made with clip_vision_model")
    assert found["wrong"].problem == "its image encoder is 24 wide and its weights were made with one of 16"
    assert found["bare"].problem == "it lacks 5 weights (ip_adapter.2.norm_ip.linear.weight); copy its file again"
    with pytest.raises(StudioError, match="cannot be used: its image encoder"):
        parts.get("ip_adapter", "clip", "ip_adapters.0.model")


def test_the_page_offers_what_works_with_a_model(joint: Library) -> None:
    from types import SimpleNamespace

    from studio.ui.control_panel import ControlPanel

    panel = ControlPanel(SimpleNamespace(library=joint, public=False), None)  # type: ignore[arg-type]
    offered, note = panel.choices("sd3")
    kinds = {value for _, value in offered}
    assert {"controlnet:loud", "controlnet:large", "ip_adapter:seen"} <= kinds
    assert not kinds & {
        "t2i_adapter:sketch",
        "controlnet:paint",
        "controlnet:narrow",
        "controlnet:other",
        "ip_adapter:shallow",
    }
    assert "sketch: t2i_adapters do not work with Stable Diffusion 3" in note
    _, notes = panel.shown({"controls": [{"model": "loud"}] * 3, "ip_adapters": [{"model": "seen", "images": []}]})
    assert notes == ["It was made with 4 control units; the form has 3, so that the others are left out"]
    assert "“My prompt is more important” does not work with Stable Diffusion 3." in note
    offered, note = panel.choices("flux")
    assert offered == []
    assert "loud: controls do not work with Flux.1 yet" in note
