"""Models in single files: what they draw is what their diffusers folder draws, with the same weights to the bit; what they are is told by their content."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from studio.checkpoints import BUILDS, LAYOUTS, understand
from studio.engine.checkpoints import look_at
from studio.errors import InvalidRequest, ModelError
from studio.families import FAMILIES
from studio.settings import CLIP_VOCABULARY
from studio.store.blobs import encode
from studio.store.library import Library
from tests import original, tiny
from tests.conftest import MODELS, drawer, pixels

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "seed": 3}
SMALL |= {"num_inference_steps": 2}
UNET: dict[str, Any] = {
    "block_out_channels": (64, 128), "layers_per_block": 1, "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
XL = {"attention_head_dim": (1, 2), "use_linear_projection": True, "addition_embed_type": "text_time"}
XL |= {"addition_time_embed_dim": 256, "transformer_layers_per_block": (1, 2)}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def clip(tokenizer: Any, width: int, act: str, *, projected: bool = False, pad: int | None = None) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, projection_dim=width, num_hidden_layers=2,
        num_attention_heads=width // 64, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=pad, hidden_act=act,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(channels: int, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=channels, **more,
    ).eval()  # fmt: skip


def t5() -> tuple[Any, Any]:
    tokenizer, _ = tiny.t5()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=64, d_ff=32, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config).eval()


def sd1(tokenizer: Any = None, channels: int = 4, name: str = "StableDiffusionPipeline") -> Any:
    tokenizer = tokenizer or tiny.clip_tokenizer()
    return getattr(diffusers, name)(
        vae=vae(4), text_encoder=clip(tokenizer, 64, "quick_gelu"), tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET, cross_attention_dim=64, attention_head_dim=8, in_channels=channels).eval(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd1_inpaint() -> Any:
    return sd1(None, 9, "StableDiffusionInpaintPipeline")


def sd2() -> Any:
    tokenizer = tiny.clip_tokenizer(pad_token="!")
    unet = diffusers.UNet2DConditionModel(
        **UNET, cross_attention_dim=1024, attention_head_dim=(1, 2), use_linear_projection=True
    )
    scheduler = diffusers.DDIMScheduler(
        **SCHEDULE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(4), text_encoder=clip(tokenizer, 1024, "gelu"), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(channels: int = 4, name: str = "StableDiffusionXLPipeline") -> Any:
    first, second = tiny.clip_tokenizer(), tiny.clip_tokenizer(pad_token="!")
    micro = {
        "projection_class_embeddings_input_dim": 128 + 6 * 256,
        "cross_attention_dim": 192,
        "in_channels": channels,
    }
    return getattr(diffusers, name)(
        vae=vae(4, scaling_factor=0.13025), text_encoder=clip(first, 64, "quick_gelu"), tokenizer=first,
        text_encoder_2=clip(second, 128, "gelu", projected=True), tokenizer_2=second,
        unet=diffusers.UNet2DConditionModel(**UNET, **XL, **micro).eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
    )  # fmt: skip


def sdxl_inpaint() -> Any:
    return sdxl(9, "StableDiffusionXLInpaintPipeline")


def sdxl_refiner() -> Any:
    second = tiny.clip_tokenizer(pad_token="!")
    micro = {"projection_class_embeddings_input_dim": 128 + 5 * 256, "cross_attention_dim": 128}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(4, scaling_factor=0.13025), text_encoder=None, tokenizer=None,
        text_encoder_2=clip(second, 128, "gelu", projected=True), tokenizer_2=second,
        unet=diffusers.UNet2DConditionModel(**UNET, **XL, **micro).eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        requires_aesthetics_score=True, force_zeros_for_empty_prompt=False,
    )  # fmt: skip


def sd3() -> Any:
    first, second = tiny.clip_tokenizer(), tiny.clip_tokenizer(pad_token="!")
    tokenizer, encoder = t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128, num_layers=2, attention_head_dim=64, num_attention_heads=1, caption_projection_dim=64,
        joint_attention_dim=256, pooled_projection_dim=192, pos_embed_max_size=16, in_channels=16, out_channels=16,
    )  # fmt: skip
    one = clip(first, 64, "quick_gelu", projected=True)
    one.text_projection.weight.data = torch.eye(64)  # Stable Diffusion 3 reads its first encoder unprojected
    encoder = T5EncoderModel(T5Config(**encoder.config.to_dict() | {"d_model": 256})).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=one, tokenizer=first, text_encoder_2=clip(second, 128, "gelu", projected=True), tokenizer_2=second,
        text_encoder_3=encoder, tokenizer_3=tokenizer,
    )  # fmt: skip


def flux(guidance: bool = True) -> Any:
    first = tiny.clip_tokenizer()
    tokenizer, encoder = t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=64, num_attention_heads=1,
        joint_attention_dim=32, pooled_projection_dim=64, axes_dims_rope=(8, 28, 28), guidance_embeds=guidance,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(first, 64, "quick_gelu"), tokenizer=first, text_encoder_2=encoder, tokenizer_2=tokenizer,
    )  # fmt: skip


MADE: dict[str, Callable[[], Any]] = {
    "sd1": sd1, "sd1-inpaint": sd1_inpaint, "sd2": sd2, "sdxl": sdxl, "sdxl-inpaint": sdxl_inpaint, "sdxl-refiner": sdxl_refiner,
    "sd3": sd3, "flux": flux,
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library with each model as a folder, and as a file below `files`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number, (name, build) in enumerate(MADE.items()):
        torch.manual_seed(number)
        pipe = build()
        pipe.save_pretrained(folder / name)
        original.save(original.FILES[name.partition("-")[0]](pipe), folder / "files" / f"{name}.safetensors")
    return Library((folder,), part_roots=(folder,))


@pytest.fixture(scope="module")
def draw(engine: Any, here: Library, blobs: Any) -> Callable[..., Any]:
    return drawer(engine, here, blobs)


def state_of(here: Library, name: str) -> State:
    from safetensors.torch import load_file

    return load_file(here.folders[0] / "files" / f"{name}.safetensors")


@pytest.mark.parametrize("name", list(MADE))
def test_a_file_draws_what_its_folder_draws(here: Library, draw: Callable, engine: Any, name: str) -> None:
    one, file = here.get(name), here.get(f"files/{name}")
    assert (one.family, one.kind, one.noise, file.problem) == (file.family, file.kind, file.noise, "")
    assert {key: value for key, value in file.shape.items() if key in one.shape} == one.shape
    given: dict[str, Any] = {}
    if one.kind:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
        given = {"image": encode(picture), "strength": 0.9}
        if one.kind == "inpaint":
            mask = np.zeros((64, 64), np.uint8)
            mask[16:48] = 255
            given |= {"mask_image": encode(Image.fromarray(mask))}
    expected = draw(**SMALL, model=name, scheduler=one.defaults["scheduler"], **given)
    made = draw(**SMALL, model=f"files/{name}", scheduler=one.defaults["scheduler"], **given)
    # Weights lie in the files' own memory, and where they lie decides how kernels sum: the last bit may differ.
    difference = pixels(made.pictures[0]).astype(int) - pixels(expected.pictures[0])
    assert abs(difference).max() <= 1
    first, second = (engine.pipelines._weights(here.reference(model)).base.components for model in (one, file))
    assert {name for name, part in first.items() if part is not None} == (
        {name for name, part in second.items() if part is not None}
    )
    for name, network in first.items():
        if isinstance(network, torch.nn.Module):
            state, other = network.state_dict(), second[name].state_dict()
            assert state.keys() == other.keys()
            assert all(torch.equal(state[key], other[key]) for key in state), name
    assert made.records[0].model.sha256 == here.sha256(file)


def test_a_transformer_alone_takes_the_rest_from_a_folder(here: Library, draw: Callable) -> None:
    pipe = diffusers.FluxPipeline.from_pretrained(here.get("flux").path)
    path = here.folders[0] / "files" / "bare.safetensors"
    original.save(original.flux_file(pipe, text=False), path)
    try:
        model = here.get("files/bare")
        assert set(model.lacks) == {"vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
        reference = here.reference(model)
        assert reference.donor
        assert reference.donor.id == "flux"
        values = SMALL | {"scheduler": "Flow Euler"}
        made, whole = (pixels(draw(**values, model=name).pictures[0]).astype(int) for name in ("files/bare", "flux"))
        assert abs(made - whole).max() <= 1
        alone = Library((path.parent,))
        with pytest.raises(InvalidRequest) as caught:
            alone.get("bare")
        assert "the file lacks vae and text_encoder" in str(caught.value)
        assert "Flux.1 model in diffusers' folder format" in str(caught.value)
    finally:
        path.unlink()


def test_clips_own_vocabulary_needs_no_other_model(tmp_path: Path, engine: Any, blobs: Any) -> None:
    torch.manual_seed(0)
    pipe = sd1(CLIPTokenizer.from_pretrained(CLIP_VOCABULARY))
    pipe.save_pretrained(tmp_path / "other" / "folder")
    original.save(original.sd1_file(pipe), tmp_path / "models" / "alone.safetensors")
    draw = drawer(engine, Library((tmp_path / "models",)), blobs)
    expected = drawer(engine, Library((tmp_path / "other",)), blobs)(**SMALL, model="folder", scheduler="DDIM")
    made = draw(**SMALL, model="alone", scheduler="DDIM")
    assert abs(pixels(made.pictures[0]).astype(int) - pixels(expected.pictures[0])).max() <= 1
    assert made.records[0].model.donor is None


def test_words_of_another_size_need_a_model_that_has_them(here: Library, tmp_path: Path) -> None:
    original.save(state_of(here, "sd1"), tmp_path / "a.safetensors")
    with pytest.raises(InvalidRequest, match="lacks a vocabulary of"):
        Library((tmp_path,)).get("a")
    assert Library((tmp_path, MODELS)).reference(Library((tmp_path, MODELS)).get("a")).donor.id == "shapes"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "keys", "metadata", "beside", "expected"),
    [
        ("sd1", {}, {}, "", ("epsilon", "family", False)),
        ("sdxl", {}, {}, "", ("epsilon", "family", False)),
        ("sd2", {}, {}, "", ("v_prediction", "family", False)),
        ("sd2", {"global_step": torch.tensor(875000)}, {}, "", ("epsilon", "keys", False)),
        ("sdxl", {"v_pred": torch.zeros(0)}, {}, "", ("v_prediction", "keys", False)),
        ("sdxl", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "", ("v_prediction", "keys", True)),
        ("sdxl", {}, {"modelspec.prediction_type": "v"}, "", ("v_prediction", "metadata", False)),
        ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, "", ("epsilon", "metadata", False)),
        ("sdxl", {"v_pred": torch.zeros(0)}, {}, "prediction: epsilon", ("epsilon", "studio.yaml", False)),
        ("sd3", {}, {}, "", ("flow", "family", False)),
        ("flux", {"v_pred": torch.zeros(0)}, {}, "", ("flow", "family", False)),
        ("sdxl", {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, {}, "", ("edm", "keys", False)),
    ],
)
def test_what_a_model_predicts_is_told_by_its_content(
    here: Library, tmp_path: Path, name: str, keys: State, metadata: dict, beside: str, expected: tuple
) -> None:
    path = original.save(state_of(here, name) | keys, tmp_path / "eps-v-turbo.safetensors", **metadata)
    (tmp_path / "eps-v-turbo.studio.yaml").write_text(beside or "{}")
    model = Library((tmp_path, *here.folders)).get("eps-v-turbo")
    prediction, told_by, zero = expected
    assert (model.prediction, model.told_by) == (prediction, told_by)
    assert model.noise == {"flow": "flow", "edm": "edm"}.get(prediction, "diffusion")
    scheduler = look_at(path, model.override).configs["scheduler"]
    assert scheduler.get("rescale_betas_zero_snr", False) == zero
    assert scheduler.get("prediction_type", prediction) == prediction


def test_v_prediction_changes_the_picture(here: Library, draw: Callable, engine: Any) -> None:
    path = here.folders[0] / "files" / "v.safetensors"
    original.save(state_of(here, "sdxl") | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    try:
        values = SMALL | {"scheduler": "Euler"}
        first = draw(**values, model="files/v").pictures
        assert first != draw(**values, model="files/sdxl").pictures
        pipe = engine.pipelines._weights(here.reference(here.get("files/v"))).base
        config = pipe.scheduler.config
        assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
        beside = path.with_name("v.studio.yaml")
        beside.write_text("prediction: epsilon")
        assert draw(**values, model="files/v").pictures != first
        beside.unlink()
    finally:
        path.unlink()


def test_the_metadata_gives_a_size_a_licence_and_words(here: Library, tmp_path: Path) -> None:
    told = {"modelspec.resolution": "768x640", "modelspec.license": "openrail++", "modelspec.trigger_phrase": "sks cat"}
    original.save(state_of(here, "sd1"), tmp_path / "a.safetensors", **told)
    model = Library((tmp_path, *here.folders)).get("a")
    assert (model.defaults["width"], model.defaults["height"]) == (768, 640)
    assert (model.licence, model.trigger_words, model.dtype) == ("openrail++", ("sks cat",), "fp32")
    assert look_at(tmp_path / "a.safetensors").configs["unet"]["in_channels"] == 4


def test_a_half_precision_file_is_read_in_the_devices_precision(here: Library, draw: Callable) -> None:
    path = here.folders[0] / "files" / "half.safetensors"
    original.save({name: tensor.half() for name, tensor in state_of(here, "sd1").items()}, path)
    try:
        assert here.get("files/half").dtype == "fp16"
        made = draw(**SMALL, model="files/half", scheduler="Euler").pictures[0]
        whole = draw(**SMALL, model="files/sd1", scheduler="Euler").pictures[0]
        assert abs(pixels(made).astype(int) - pixels(whole)).max() <= 8
    finally:
        path.unlink()


def only(*starts: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name.startswith(starts)}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def with_keys(**keys: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in keys.items()}


def five_channels(state: State) -> State:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return state | {name: torch.zeros(64, 5, 3, 3)}


ONE = torch.zeros(1)
WRONG: dict[str, tuple[str, Callable[[State], State], str]] = {
    "a VAE": ("sd1", only("first_stage_model."), "it is a VAE; put it into `models/vae`"),
    "a text encoder": ("sd1", lambda s: renamed("cond_stage_model.transformer.", "")(only("cond_")(s)), "it is a text encoder"),
    "a denoiser alone": ("sd1", only("model.diffusion_model."), "it holds only a part of a model"),
    "a LoRA": ("sd1", lambda s: {"lora_unet_x.lora_up.weight": ONE}, "it is a LoRA; put it into `models/loras`"),
    "a ControlNet": ("sd1", lambda s: {"control_model.time_embed.0.weight": ONE}, "it is a ControlNet"),
    "an embedding": ("sd1", lambda s: {"emb_params": ONE}, "it is a textual inversion"),
    "a folder's part": ("sd1", lambda s: {"down_blocks.0.resnets.0.conv1.weight": ONE}, "one part of a diffusers folder"),
    "Z-Image": ("sd1", lambda s: {"layers.0.adaLN_modulation.0.weight": ONE}, "it is Z-Image, but its layout is not read"),
    "Chroma": ("sd1", lambda s: {"distilled_guidance_layer.in_proj.bias": ONE, "double_blocks.0.x": ONE}, "it is Chroma"),
    "something else": ("sd1", lambda s: {"conv.weight": ONE}, "it is no model that Studio knows; single files can be "),
    "scaled fp8": ("flux", with_keys(model__diffusion_model__img_in__scale_weight=ONE), "its weights are scaled fp8"),
    "bitsandbytes": ("flux", with_keys(model__diffusion_model__img_in__weight__absmax=ONE), "its weights are bitsandbytes"),
    "depth": ("sd2", five_channels, "its denoiser has 5 input channels (reads depth)"),
    "CosXL": ("sdxl", with_keys(edm_vpred__sigma_max=ONE), "it is a CosXL model"),
    "half a VAE": ("sd1", lambda s: {n: t for n, t in s.items() if not n.startswith("first_stage_model.enc")}, "no whole autoenc"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_no_model_is_refused_with_the_reason(here: Library, tmp_path: Path, name: str) -> None:
    base, change, sentence = WRONG[name]
    original.save(change(state_of(here, base)), tmp_path / "sdxl-model.safetensors")
    with pytest.raises(InvalidRequest) as caught:
        Library((tmp_path, *here.folders)).get("sdxl-model")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_and_a_cut_file_name_their_cure(here: Library, tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x04cos\nsystem\n")
    whole = original.save(state_of(here, "sd1"), tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
    problems = {model.id: model.problem for model in Library((tmp_path,)).models()}
    assert "python -m studio convert" in problems["old"]
    assert "is cut off" in problems["cut"]


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias"]
)
def test_a_missing_tensor_is_an_error_and_never_a_random_one(here: Library, draw: Callable, name: str) -> None:
    path = here.folders[0] / "files" / "hole.safetensors"
    state = state_of(here, "sd1")
    del state[name]
    original.save(state, path)
    try:
        with pytest.raises(ModelError, match=r"model='files/hole' could not be loaded: .*; copy the model file again"):
            draw(**SMALL, model="files/hole")
    finally:
        path.unlink()


def test_files_of_other_kinds_and_parts_of_folders_are_not_models(here: Library, tmp_path: Path) -> None:
    for place in ("Lora/a", "VAE/b", "ESRGAN/c", "Stable-diffusion/anime/d", "text_encoders/e"):
        original.save(state_of(here, "sd1"), tmp_path / f"{place}.safetensors")
    sd1().save_pretrained(tmp_path / "folder")
    assert {model.id for model in Library((tmp_path,)).models()} == {"Stable-diffusion/anime/d", "folder"}


def test_real_shapes_tell_the_real_configuration() -> None:
    """The published architectures, on the meta device."""
    xl = {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**xl)
        flux = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    bare = {name: list(tensor.shape) for name, tensor in original.unet_to_ldm(unet.state_dict(), 2, "").items()}
    original_flux = {name: list(tensor.shape) for name, tensor in original.flux_to_original(flux.state_dict()).items()}
    for network, told in ((unet, BUILDS["sdxl"](bare)[1]), (flux, BUILDS["flux"](original_flux)[1])):
        assert type(network).__name__ == told.pop("_class_name")
        rebuilt = plain(network.config) | plain(told)
        with torch.device("meta"):
            again = type(network)(**told)
        assert {n: t.shape for n, t in again.state_dict().items()} == {
            n: t.shape for n, t in network.state_dict().items()
        }
        same = {key: value for key, value in rebuilt.items() if key not in ("out_channels", "mid_block_type")}
        assert same == {key: value for key, value in plain(network.config).items() if key in same}


def plain(config: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def test_every_layout_is_of_a_family() -> None:
    assert {family for family, _ in LAYOUTS} <= set(FAMILIES)
    with pytest.raises(ValueError, match="it is no model that Studio knows"):
        understand({}, {})
