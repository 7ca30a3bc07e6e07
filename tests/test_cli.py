"""The command line: contracts of output and exit codes, exact replay, the doctor."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from studio.__main__ import main
from studio.doctor import examine, judge_device, without_secrets, write_bundle
from studio.settings import ROOT, Settings, read_settings
from studio.store.library import Library
from studio.store.metadata import read_picture
from tests.conftest import MODELS

PROMPT = "a red circle on a blue background"


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DATA_DIR", str(tmp_path / "data"))


def write_request(folder: Path, *requests: dict[str, Any]) -> str:
    path = folder / "request.json"
    path.write_text(json.dumps(requests[0] if len(requests) == 1 else list(requests)))
    return str(path)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generate_prints_one_line_a_picture_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = write_request(
        tmp_path,
        {"prompt": PROMPT, "seed": 4, "num_images_per_prompt": 2},
        {"prompt": "a green star", "seed": 9, "num_inference_steps": 50},
    )
    assert (
        main(["generate", "--request", requests, "--out", str(tmp_path / "out"), "--set", "num_inference_steps=2"]) == 0
    )
    made = lines(capsys)
    assert [(line["seed"], line["request"]) for line in made] == [(4, 0), (5, 0), (9, 1)]
    found = [read_picture(Path(line["path"])) for line in made]
    assert [f.values["prompt"] for f in found] == [PROMPT, PROMPT, "a green star"]
    assert all(f.values["num_inference_steps"] == 2 for f in found)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("width=500", "width=500 must be a multiple of 8; use 496 or 504"),
        ("num_inference_steps=0", "num_inference_steps=0 must be at least 1"),
        ("guidance_scale=.nan", "guidance_scale=nan must be a finite number"),
        ("scheduler=foo", "scheduler='foo' is not known; use one of: DPM++ 2M"),
        ("model=missing", "model='missing' is not in the library; there is: shapes"),
        ("nonsense", "--set nonsense must be FIELD=VALUE"),
        ("nonsense=1", "nonsense is not a field of this request"),
    ],
)
def test_wrong_values_exit_2_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    assert (
        main(["generate", "--request", write_request(tmp_path, {}), "--out", str(tmp_path / "out"), "--set", override])
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["", "[1]", '"text"', "{", "[" * 100_000, '{"prompt": "' + "x" * 1_000_000 + '"}', "\x00"]
)
def test_a_wrong_file_exits_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    assert main(["generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["generate", "--request", str(tmp_path / "missing.json"), "--out", str(tmp_path / "out")]) == 2


def test_a_model_with_a_pickle_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(MODELS / "shapes", tmp_path / "models" / "evil")
    weights = next((tmp_path / "models" / "evil" / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    flags = [
        "--extra-models",
        str(tmp_path / "models"),
        "generate",
        "--request",
        write_request(tmp_path, {"model": "evil"}),
    ]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 2
    assert "is a pickle, which can run code" in capsys.readouterr().err


def test_replay_is_identical_for_every_place_in_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = {
        "prompt": PROMPT,
        "seed": 4,
        "num_images_per_prompt": 3,
        "batch_size": 2,
        "num_inference_steps": 3,
        "scheduler": "Euler a",
    }
    assert main(["generate", "--request", write_request(tmp_path, request), "--out", str(tmp_path / "out")]) == 0
    for number, line in enumerate(lines(capsys)):
        assert main(["replay", line["path"], "--out", str(tmp_path / f"again{number}")]) == 0
        assert capsys.readouterr().out == "identical\n"
        (again,) = (tmp_path / f"again{number}").iterdir()
        assert read_picture(again).values == read_picture(Path(line["path"])).values


def test_replay_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(MODELS / "shapes", tmp_path / "models" / "mine")
    flags = ["--extra-models", str(tmp_path / "models")]
    request = write_request(tmp_path, {"prompt": PROMPT, "seed": 4, "num_inference_steps": 3, "model": "mine"})
    assert main([*flags, "generate", "--request", request, "--out", str(tmp_path / "out")]) == 0
    path = lines(capsys)[0]["path"]
    config = tmp_path / "models" / "mine" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"beta_end": 0.02', '"beta_end": 0.012'))
    assert main([*flags, "replay", path, "--out", str(tmp_path / "again")]) == 3
    printed = capsys.readouterr().out
    assert "pixels: differ by at most" in printed
    assert "model: " in printed


def test_replay_needs_one_of_our_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["replay", str(tmp_path / "plain.png"), "--out", str(tmp_path)]) == 2
    assert "was not made by Studio" in capsys.readouterr().err


def test_interrupt_exits_130_and_keeps_what_is_finished(tmp_path: Path) -> None:
    request = write_request(tmp_path, {"prompt": PROMPT, "num_images_per_prompt": 60, "num_inference_steps": 20})
    command = [sys.executable, "-m", "studio", "generate", "--request", request, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert read_picture(Path(first["path"])).record
    assert len(list((tmp_path / "out").iterdir())) < 60


@pytest.mark.parametrize("command", ["models", "schedulers", "families", "reindex"])
def test_lists_speak_json_and_text(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main([command]) == 0
    assert capsys.readouterr().out.strip()


def test_help_needs_no_torch() -> None:
    code = "import sys\nfrom studio.__main__ import main\ntry:\n main(['generate', '--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("False")
    assert "guidance_scale" in answer.stdout


def test_the_doctor_names_faults_and_cures(settings: Settings) -> None:
    assert {finding.name for finding in examine(settings)} == {
        "python",
        "packages",
        "device",
        "disk",
        "folders",
        "index",
        "models",
    }
    built = {"version": "2.14", "cuda_build": "13.0", "cuda": True, "mps": False, "devices": ["H200"]}
    assert judge_device("auto", ["H200, 580"], built).ok
    without = judge_device("auto", ["H200, 580"], built | {"cuda_build": None, "cuda": False})
    assert (without.ok, "built without CUDA" in without.text, "--index-url" in without.cure) == (False, True, True)
    assert judge_device("auto", ["H200, 470"], built | {"cuda": False}).cure == "update the NVIDIA driver"
    assert not judge_device("cuda", None, built | {"cuda": False, "devices": []}).ok
    assert judge_device("auto", None, built | {"cuda": False, "devices": []}).ok


def test_the_bundle_has_no_secrets(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, auth="anna:hunter2hunter2")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_text(
        "token=abcdef123\nhf_AbCdEfGhIjKlMn\nhttps://anna:hunter2hunter2@x.example/\nfine line\n"
    )
    write_bundle(tmp_path / "b.zip", [], settings)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        text = "".join(bundle.read(name).decode() for name in bundle.namelist())
    assert "fine line" in text
    for secret in ("hunter2", "abcdef123", "hf_AbCd"):
        assert secret not in text
    for text in (
        "password: hunter2",
        "Authorization: Bearer hunter2",
        '"token": "x hunter2"',
        "AUTH=hunter2",
        "api_key = 'a hunter2'",
    ):
        assert "hunter2" not in without_secrets(text)


REPLAYED: dict[str, dict[str, Any]] = {
    "img2img": {"image": "p.png", "strength": 0.6},
    "strength 0": {"image": "p.png", "strength": 0},
    "inpaint in a batch": {"image": "p.png", "mask_image": "m.png", "num_images_per_prompt": 2, "batch_size": 2},
    "only masked": {"image": "p.png", "mask_image": "m.png", "only_masked": True, "masked_content": "latent noise"},
    "outpaint": {"image": "p.png", "extend_left": 32},
    "control": {"controls": [{"model": "shapes-canny", "image": "p.png", "preprocessor": "canny"}]},
    "control in inpaint": {
        "image": "p.png",
        "mask_image": "m.png",
        "controls": [{"model": "shapes-canny", "weight": 0.5}],
    },
    "hires fix": {"hires_scale": 1.5},
    "variation": {"hires_scale": 1.5, "hires_upscaler": "lanczos", "variation_strength": 0.3, "variation_seed": 8},
    "enlarged": {"image": "p.png", "strength": 0, "hires_scale": 2, "hires_upscaler": "lanczos"},
    "own noise in a batch": {"scheduler": "DPM++ SDE", "num_images_per_prompt": 2, "batch_size": 2},
    "words that change": {"prompt": "a [red:blue:0.5] (circle:1.2)"},
    "T2I-Adapter": {"t2i_adapters": [{"model": "shapes-canny-t2i", "image": "p.png", "preprocessor": "canny"}]},
    "IP-Adapter": {"ip_adapters": [{"model": "shapes-ip", "images": ["p.png", "q.png"]}]},
    "LoRA": {"loras": [{"name": "red-to-blue", "weight": 0.5}]},
    "everything": {
        "loras": [{"name": "red-to-blue"}],
        "controls": [{"model": "shapes-canny", "image": "p.png", "preprocessor": "canny", "end": 0.8}],
        "t2i_adapters": [{"model": "shapes-canny-t2i", "image": "p.png", "preprocessor": "canny", "weight": 0.5}],
        "ip_adapters": [{"model": "shapes-ip", "images": ["q.png"], "scale": 0.3}],
        "hires_scale": 1.25,
    },
    "PAG": {"pag_scale": 3.0},
    "guidance interval": {"guidance_start": 0.2, "guidance_end": 0.8, "guidance_rescale": 0.5},
    "depth": {"model": "depth", "image": "p.png", "width": 64, "height": 64},
    "refiner": {"model": "sdxl", "refiner": "sdxl-refiner", "width": 64, "height": 64},
}


def test_pictures_of_every_task_are_made_again(
    tmp_path: Path, tiny_library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image, ImageDraw

    picture, mask = Image.new("RGB", (128, 128), "blue"), Image.new("L", (128, 128), 0)
    ImageDraw.Draw(picture).ellipse((40, 40, 90, 90), "red")
    ImageDraw.Draw(mask).rectangle((32, 32, 96, 96), 255)
    picture.save(tmp_path / "p.png")
    Image.new("RGB", (96, 64), "yellow").save(tmp_path / "q.png")
    flags = ["--extra-models", str(tiny_library.folders[0])]
    mask.save(tmp_path / "m.png")
    requests = write_request(
        tmp_path, *({"prompt": PROMPT, "seed": 4, "num_inference_steps": 3} | values for values in REPLAYED.values())
    )
    assert main([*flags, "generate", "--request", requests, "--out", str(tmp_path / "out")]) == 0
    made = lines(capsys)
    assert {line["request"] for line in made} == set(range(len(REPLAYED)))
    for line in made:
        assert main([*flags, "replay", line["path"], "--out", str(tmp_path / "again")]) == 0, list(REPLAYED)[
            line["request"]
        ]
        assert capsys.readouterr().out == "identical\n"


def test_a_damaged_index_is_named_and_built_anew(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "data" / "studio.db"
    database.parent.mkdir(exist_ok=True)
    database.write_bytes(b"this is no database " * 1000)
    found = {finding.name: finding for finding in examine(settings.model_copy(update={"data_dir": database.parent}))}
    assert not found["index"].ok
    assert "reindex" in found["index"].cure
    assert main(["reindex"]) == 0
    assert "0 pictures" in capsys.readouterr().out
    assert len(list(database.parent.glob("studio.db.damaged-*"))) == 1
    found = {finding.name: finding for finding in examine(settings.model_copy(update={"data_dir": database.parent}))}
    assert found["index"].ok


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "no.png"), "--out", str(tmp_path)]) == 2
    assert "no.png' is not there" in capsys.readouterr().err
    assert main(["doctor", "--bundle", str(tmp_path / "no" / "such.zip")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_picture_of_too_many_pixels_is_one_line(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    request = write_request(tmp_path, {"prompt": PROMPT, "image": "bomb.png"})
    command = [sys.executable, "-m", "studio", "generate", "--request", request, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pixels; make the picture smaller" in done.stderr


def test_settings_come_from_flags_and_variables(tmp_path: Path) -> None:
    from studio.errors import StudioError

    usual: dict[str, object] = {"host": "0.0.0.0", "port": 7860}
    on_a_space = read_settings({"host": None, "auth": "me:a-long-password"}, {"STUDIO_PORT": "7002"}, usual)
    assert (on_a_space.host, on_a_space.port) == ("0.0.0.0", 7002)

    settings = read_settings({"port": 7001}, {"STUDIO_PORT": "7002", "STUDIO_DEVICE": "cpu", "STUDIO_PREVIEW": "false"})
    assert (settings.port, settings.device, settings.preview) == (7001, "cpu", False)
    with pytest.raises(StudioError, match="port='x'"):
        read_settings({}, {"STUDIO_PORT": "x"})
    with pytest.raises(StudioError, match="USER:PASSWORD"):
        _ = read_settings({"auth": "anna"}, {}).credentials
