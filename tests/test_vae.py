"""VAEs in place of a model's own: what they do shows in the picture, and the model's own is back afterwards."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from studio.__main__ import main
from studio.engine.parts import PartManager
from studio.errors import InvalidRequest, ModelError
from studio.layouts import vae_config, vae_names
from studio.parts import shape_problem
from studio.spec import parse_request
from studio.store.blobs import encode
from studio.store.library import Library
from studio.store.metadata import from_texts, picture_texts, read_picture
from studio.tools import VaeCheckCall
from studio.ui.generate_tab import GenerateTab
from studio.ui.vae_panel import vae_choices
from tests.conftest import MODELS, drawer, pixels
from tests.tiny import vae as tiny_vae
from trainers.scorers.reading import judge

PROMPT = "a red circle on a white background"
SMALL: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3}
Draw = Callable[..., Any]


def swapped(vae: Any) -> Any:
    """Let a decoder's red and blue change places."""
    order = torch.tensor([2, 1, 0])
    with torch.no_grad():
        for weight in vae.decoder.conv_out.parameters():
            weight.copy_(weight[order].clone())
    return vae


def to_ldm(state: dict[str, torch.Tensor], levels: int = 4) -> dict[str, torch.Tensor]:
    """Write an autoencoder under latent-diffusion's names, its attention as convolutions."""
    made = {}
    for name, tensor in state.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda at: f"up.{levels - 1 - int(at[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda at: f"up.{levels - 1 - int(at[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)\.", lambda at: f"mid.block_{int(at[1]) + 1}.", new)
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            new = new.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        made[new] = tensor[:, :, None, None].clone() if "attn_1" in new and tensor.ndim == 2 else tensor.clone()
    return made


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put VAEs beside the embedded model: `copy` and `swapped` in all layouts, and some that cannot be used."""
    root = tmp_path_factory.mktemp("root")
    folder = root / "vae"
    own = MODELS / "shapes" / "vae"
    shutil.copytree(own, folder / "copy")
    red_is_blue = swapped(AutoencoderKL.from_pretrained(own))
    red_is_blue.save_pretrained(folder / "swapped")
    state = red_is_blue.state_dict()
    save_file(state, folder / "plain.safetensors")
    save_file({name: tensor.half() for name, tensor in to_ldm(state).items()}, folder / "half.safetensors")
    save_file(
        {f"first_stage_model.{name}": tensor for name, tensor in to_ldm(state).items()}
        | {"loss.logvar": torch.zeros(1)},
        folder / "ldm.safetensors",
    )
    copied = AutoencoderKL.from_pretrained(own).state_dict()
    other = root / "VAE"  # A1111's name of the folder
    other.mkdir(exist_ok=True)
    save_file(to_ldm(copied), other / "theirs.safetensors")
    tiny_vae(16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False).save_pretrained(folder / "sixteen")
    tiny_vae(4, scaling_factor=0.13025).save_pretrained(folder / "xl")
    save_file(to_ldm(tiny_vae(16).state_dict()), folder / "deep.safetensors")
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
        folder / "taesd"
    )
    save_file({"1.weight": torch.zeros(4, 4, 3, 3)}, folder / "taesd_decoder.safetensors")
    save_file(
        {"model.diffusion_model.x": torch.zeros(1), "first_stage_model.x": torch.zeros(1)}, folder / "whole.safetensors"
    )
    save_file({"lora_up.weight": torch.zeros(1)}, folder / "lora.safetensors")
    save_file(to_ldm(state) | {"encoder.down.3.attn.0.q.weight": torch.zeros(1)}, folder / "vq.safetensors")
    save_file(copied, folder / "own.safetensors")
    (folder / "old.vae.pt").write_bytes(b"\x80\x02}q\x00.")
    (folder / "cut.safetensors").write_bytes((folder / "plain.safetensors").read_bytes()[:-9])
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    return root


@pytest.fixture(scope="module")
def here(vaes: Path) -> Library:
    return Library((MODELS,), part_roots=(vaes,))


@pytest.fixture(scope="module")
def draw_here(engine: Any, here: Library, blobs: Any) -> Draw:
    return drawer(engine, here, blobs)


@pytest.fixture
def untouched(draw_here: Draw, engine: Any) -> Iterator[None]:
    """Check that a model's own autoencoder, and what it makes, are the same after a test."""
    before = draw_here(**SMALL).pictures
    own = own_vae(engine)
    weights = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    yield
    (loaded,) = [one for one in engine.pipelines._loaded.values() if one.base.vae is own]
    assert all(pipe.vae is own for pipe in loaded.pipes.values())
    assert not own.use_tiling
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.state_dict().items())
    assert draw_here(**SMALL).pictures == before


def own_vae(engine: Any) -> Any:
    return next(reversed(engine.pipelines._loaded.values())).base.vae


def refused(library: Library, name: str, model: str = "shapes") -> str:
    with pytest.raises(InvalidRequest) as caught:
        library.vae_of(model, name)
    assert caught.value.field == "vae"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("untouched")
def test_a_copy_of_the_own_vae_makes_the_same_bytes(draw_here: Draw) -> None:
    plain = draw_here(**SMALL)
    for name in ("copy", "theirs"):
        made = draw_here(**SMALL, vae=name)
        assert made.pictures == plain.pictures
        assert [(part.kind, part.id) for part in made.records[0].parts] == [("vae", name)]
    assert draw_here(**SMALL, vae="own").pictures == plain.pictures
    assert draw_here(**SMALL, vae="").records[0].request.vae is None


@pytest.mark.usefixtures("untouched")
def test_another_decoder_shows_in_the_picture_whatever_its_layout(draw_here: Draw) -> None:
    values = SMALL | {"num_inference_steps": 20}
    plain, made = (pixels(draw_here(**values, **more).pictures[0]) for more in ({}, {"vae": "swapped"}))
    assert [thing.colour for thing in judge(plain).things] == ["red"]
    assert [thing.colour for thing in judge(made).things] == ["blue"]
    assert np.array_equal(made, plain[..., ::-1])
    for name in ("plain", "ldm"):
        assert np.array_equal(pixels(draw_here(**values, vae=name).pictures[0]), made)
    half = pixels(draw_here(**values, vae="half").pictures[0]).astype(int)
    assert np.abs(half - made).max() <= 8


@pytest.mark.usefixtures("untouched")
def test_it_works_in_every_task_pass_and_tile(draw_here: Draw) -> None:
    source = encode(Image.fromarray(pixels(draw_here(**SMALL | {"num_inference_steps": 20}).pictures[0])))
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[40:90, 40:90] = 255
    for more in (
        {"hires_scale": 1.5, "hires_strength": 0.5},
        {"hires_scale": 1.5, "hires_strength": 0.5, "hires_upscaler": "lanczos"},
        {"width": 256, "height": 256, "vae_tiling": True, "num_inference_steps": 1},
        {"num_images_per_prompt": 2, "batch_size": 2},
    ):
        plain, copy, other = (draw_here(**SMALL | more, vae=name).pictures for name in ("own", "copy", "swapped"))
        assert copy == plain
        assert other != plain
    for more in (
        {"image": source, "strength": 0.5},
        {"image": source, "mask_image": encode(Image.fromarray(mask)), "mask_blur": 0},
    ):
        plain, copy, other = (draw_here(**SMALL | more, vae=name).pictures for name in ("own", "copy", "swapped"))
        assert copy == plain
        assert other != plain
        if "mask_image" in more:
            first, second = pixels(other[0]), pixels(plain[0])
            assert np.array_equal(first[:40], second[:40]), "what is not masked stays"


@pytest.mark.usefixtures("untouched")
def test_the_own_vae_is_back_after_a_failure(draw_here: Draw, vaes: Path, engine: Any) -> None:
    broken = vaes / "vae" / "broken"
    shutil.copytree(vaes / "vae" / "copy", broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"layers_per_block": 3}))
    with pytest.raises(ModelError, match="VAE broken could not be loaded"):
        draw_here(**SMALL, vae="broken")
    with pytest.raises(RuntimeError, match="stop here"):
        draw_here(**SMALL, vae="swapped", vae_tiling=True, stop=lambda made: stopped())
    shutil.rmtree(broken)


def stopped() -> str:
    raise RuntimeError("stop here")


def test_nothing_is_loaded_twice(draw_here: Draw, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_here(**SMALL, vae="copy")
    monkeypatch.setattr(engine.pipelines, "_load", lambda model: pytest.fail("the model is loaded again"))
    monkeypatch.setattr(engine.parts, "_load", lambda part, told: pytest.fail("the VAE is loaded again"))
    assert draw_here(**SMALL, vae="copy").pictures == draw_here(**SMALL).pictures


def test_what_does_not_fit_or_is_not_safe_is_refused_by_name(here: Library, tiny_library: Library, vaes: Path) -> None:
    for name in ("sixteen", "deep"):
        assert f"vae='{name}' does not fit model='shapes'" in refused(here, name)
        assert "made for another family: latent_channels is 16 there and 4 in this model" in refused(here, name)
    assert "scaling_factor is 0.13025 there and 1.0 in this model" in refused(here, "xl")
    assert "is no VAE in" in refused(here, "nothing") and "there is: own, copy, " in refused(here, "nothing")
    for name in ("old.vae.pt", "old.vae"):
        assert "is a pickle" in refused(here, name) and "python -m studio convert" in refused(here, name)
    for name, reason in {
        "taesd": "TAESD (AutoencoderTiny), which does not say for which family",
        "taesd_decoder": "TAESD",
        "whole": "it is a whole checkpoint and not a VAE",
        "lora": "it holds no whole autoencoder",
        "vq": "an autoencoder of another build (encoder.down.3.attn.0.q.weight)",
        "cut": "is cut off",
        "unet": "'UNet2DConditionModel'; only AutoencoderKL",
    }.items():
        assert f"vae='{name}' cannot be used: " in refused(here, name)
        assert reason in refused(here, name)
    (reserved,) = [part for part in here.parts.parts("vae") if part.id == "own"]
    assert "another name" in reserved.problem
    models = {name: tiny_library.get(name) for name in ("sdxl", "sd3", "flux")}
    fitting = {
        part.id: [n for n, m in models.items() if not shape_problem(part, m.shape)] for part in here.parts.parts("vae")
    }
    assert fitting["xl"] == ["sdxl"]
    assert fitting["sixteen"] == ["sd3"]
    assert fitting["deep"] == ["sd3", "flux"], "a single file does not say its scale"
    assert "small" not in fitting
    small = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    save_file(to_ldm(small.state_dict(), 2), vaes / "vae" / "small.safetensors")
    assert "downscale_factor is 2 there and 8 in this model" in refused(here, "small")
    (vaes / "vae" / "small.safetensors").unlink()


@pytest.mark.parametrize("model", ["sdxl", "sd3", "flux"])
def test_a_file_takes_from_the_models_own_what_it_does_not_say(
    engine: Any, tiny_library: Library, tmp_path: Path, blobs: Any, model: str
) -> None:
    own = tiny_library.get(model).path / "vae"
    state = load_file(own / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae").mkdir()
    save_file(to_ldm(state), tmp_path / "vae" / "file.safetensors")
    library = Library(tiny_library.folders, part_roots=(tmp_path,))
    draw = drawer(engine, library, blobs)
    values: dict[str, Any] = {
        "model": model,
        "prompt": "x",
        "width": 64,
        "height": 64,
        "num_inference_steps": 1,
        "seed": 1,
    }
    assert draw(**values, vae="file").pictures == draw(**values).pictures
    part, config = library.vae_of(model, "file"), json.loads((own / "config.json").read_text())
    assert part
    loaded = PartManager(engine.device).get(part, config)
    whole = AutoencoderKL.from_pretrained(own)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in whole.config.items() if k[0] != "_"
    }


def test_names_are_those_of_diffusers(vaes: Path) -> None:
    state = to_ldm(tiny_vae(4).state_dict())
    ours = {new: state[old] for old, new in vae_names(state).items()}
    config = vae_config({name: tensor.shape for name, tensor in ours.items()})
    theirs = convert_ldm_vae_checkpoint(dict(state), config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].reshape(theirs[name].shape), theirs[name]) for name in ours)
    assert {
        name: list(value) if isinstance(value, tuple) else value for name, value in tiny_vae(4).config.items()
    }.items() >= config.items()
    old = {name.replace("to_q", "query").replace("to_out.0", "proj_attn"): name for name in theirs}
    assert vae_names(old) == old


def test_a_model_can_have_a_vae_by_default(engine: Any, vaes: Path, tmp_path: Path, blobs: Any) -> None:
    shutil.copytree(MODELS / "shapes", tmp_path / "mine")
    facts = (tmp_path / "mine" / "studio.yaml").read_text()
    assert "defaults: {" in facts
    (tmp_path / "mine" / "studio.yaml").write_text(facts.replace("defaults: {", "defaults: {vae: swapped, "))
    draw = drawer(engine, Library((tmp_path,), part_roots=(vaes,)), blobs)
    usual, chosen, own = (draw(**SMALL, model="mine", **more) for more in ({}, {"vae": "swapped"}, {"vae": "own"}))
    assert usual.pictures == chosen.pictures != own.pictures
    assert usual.records[0].request.vae == "swapped"
    assert (own.records[0].request.vae, own.records[0].parts) == ("own", ())


def test_pictures_say_their_vae_and_the_form_reads_it(draw_here: Draw, here: Library, settings: Any) -> None:
    record = draw_here(**SMALL, vae="ldm").records[0]
    texts = picture_texts(record)
    assert ", VAE: ldm.safetensors, " in texts["parameters"]
    assert "VAE" not in picture_texts(draw_here(**SMALL).records[0])["parameters"]
    assert from_texts(texts).values["vae"] == "ldm"
    theirs = from_texts({"parameters": f"{PROMPT}\nSteps: 3, Sampler: Euler, VAE hash: 1a, VAE: ldm.safetensors"})
    assert theirs.values["vae"] == "ldm"
    assert [label for label, _ in vae_choices(here, "shapes")][:3] == ["Automatic", "The model's own", "copy"]
    assert {name for _, name in vae_choices(here, "shapes")} == {
        "",
        "own",
        "copy",
        "swapped",
        "plain",
        "half",
        "ldm",
        "theirs",
    }
    services: Any = SimpleNamespace(library=here, settings=settings, gallery=SimpleNamespace(blobs=None), public=True)
    tab = GenerateTab(services)
    tab.controls = {"vae": None}
    assert tab.form_values({"vae": "ldm"})[0][0] == "ldm"
    assert tab.form_values({"vae": None})[0][0] == ""
    shown, notes = tab.form_values({"vae": "gone"})
    assert (shown[0], "The VAE gone" in notes[0]) == ("", True)


def test_the_check_takes_any_vae(engine: Any, here: Library, draw_here: Draw, blobs: Any) -> None:
    picture = Image.fromarray(pixels(draw_here(**SMALL | {"num_inference_steps": 20}).pictures[0]))
    model = here.reference(here.get("shapes"))

    def checked(name: str | None) -> dict[str, Any]:
        call = VaeCheckCall(image="x", model=model, vae=here.vae_of("shapes", name))
        return engine.use_tool(call, lambda reference, field: picture)[0]

    assert checked("copy") == checked(None) == checked("own")
    assert checked("swapped")["psnr"] < checked(None)["psnr"] - 5
    assert checked("swapped")["means"] == checked(None)["means"], "the encoder is the same"


def test_the_command_line_draws_replays_and_plots(
    vaes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIO_DATA_DIR", str(tmp_path / "data"))
    shutil.copytree(vaes / "vae" / "swapped", tmp_path / "data" / "models" / "vae" / "1234")
    request = tmp_path / "r.json"
    request.write_text(json.dumps(SMALL | {"num_inference_steps": 2}))
    given = ["generate", "--request", str(request), "--out", str(tmp_path / "out")]
    assert main([*given, "--set", "vae=1234"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    record = read_picture(Path(path)).record
    assert record and record.request.vae == record.parts[0].id == "1234"
    assert main(["replay", path, "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == "identical\n"
    assert main([*given, "--set", "vae=4321"]) == 2
    assert "vae='4321' is no VAE in" in capsys.readouterr().err
    assert main(["xyz", "--request", str(request), "--x", "vae=own, 1234", "--out", str(tmp_path / "plot")]) == 0
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:2]
    one, other = (pixels(Path(cell["path"]).read_bytes()) for cell in cells)
    assert np.array_equal(one, other[..., ::-1])
    shutil.rmtree(tmp_path / "data" / "models" / "vae" / "1234")
    shutil.copytree(vaes / "vae" / "copy", tmp_path / "data" / "models" / "vae" / "1234")
    assert main(["replay", path, "--out", str(tmp_path / "other")]) == 3
    assert "vae 1234: " in capsys.readouterr().out


def test_a_request_names_it_as_text() -> None:
    with pytest.raises(InvalidRequest, match="vae"):
        parse_request({"vae": 5})
