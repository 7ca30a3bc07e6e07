"""Downloads, with the Hub's real client against a real server on this computer: whole, checked, resumed after a kill, or one sentence."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.errors import InvalidRequest, StudioError
from studio.settings import ROOT
from studio.sources import Source, parse_source, wanted_files
from studio.store.downloads import Downloads
from studio.store.library import Library
from studio.store.tokens import Tokens
from tests.conftest import MODELS, wait_for
from tests.hub import COMMIT, Hub

UNWANTED = {
    "README.md": b"# Shapes", "run.py": b"print(1)", "vae/diffusion_pytorch_model.bin": b"pickle", "shapes.ckpt": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "safety_checker/model.safetensors": b"checker",
    "shapes.safetensors": b"once more", ".gitattributes": b"x",
}  # fmt: skip


def shapes() -> dict[str, bytes]:
    folder = MODELS / "shapes"
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("studio.yaml", "README.md")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    server.repos["anna/shapes-v1.5"] = shapes() | UNWANTED
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("CIVITAI_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


@pytest.fixture
def downloads(tmp_path: Path) -> Iterator[Downloads]:
    made = Downloads(tmp_path / "data", Tokens(tmp_path / "data" / "tokens.json"))
    yield made
    made.close()


def fetch(downloads: Downloads, source: Source) -> dict[str, Any]:
    return downloads.run(source, lambda event: None)


def ended(downloads: Downloads, name: str) -> dict[str, Any]:
    found = {state["id"]: state for state in downloads.state()}[name]
    return found if found["state"] != "running" else {}


def test_a_folder_arrives_whole_and_is_a_model(hub: Hub, downloads: Downloads, tmp_path: Path) -> None:
    source = parse_source("anna/shapes-v1.5")
    plan = downloads.plan(source)
    content = shapes()
    assert plan["bytes"] == sum(map(len, content.values()))
    assert plan["free"] > 0
    assert (plan["licence"], plan["gated"], plan["there"]) == ("openrail", False, False)
    answer = fetch(downloads, source)
    folder = Path(answer["path"])
    assert folder == tmp_path / "data" / "models" / "checkpoints" / "shapes-v1.5"
    arrived = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    facts = arrived.pop("studio.yaml").decode()
    assert arrived == content
    assert f"revision: {COMMIT}" in facts
    model = Library((folder.parent,)).get("shapes-v1.5")
    assert model.about == {"source": "anna/shapes-v1.5", "revision": COMMIT, "licence": "openrail"}
    assert model.licence == "openrail"
    assert [path.name for path in (tmp_path / "data" / "cache" / "downloads").iterdir()] == ["log.txt"]
    with pytest.raises(StudioError, match="is there already"):
        fetch(downloads, source)


def test_a_killed_download_goes_on_where_it_was(hub: Hub, downloads: Downloads) -> None:
    name, size = "alone.safetensors", 12 * 2**20
    hub.repos["anna/one"] = {name: os.urandom(size)}
    hub.slow = 0.01
    started = downloads.start(parse_source("anna/one"))
    wait_for(lambda: downloads.state()[0]["bytes"] > 2**20)
    assert downloads.state()[0]["total"] == size
    downloads.cancel(started)
    wait_for(lambda: ended(downloads, started))
    assert ended(downloads, started)["state"] == "stopped"
    hub.slow = 0
    again = Downloads(downloads._models.parent, downloads._tokens)  # after a restart of the app
    assert [(state["id"], state["state"]) for state in again.state()] == [(started, "stopped")]
    again.resume(started)
    state = wait_for(lambda: ended(again, started))
    assert (state["state"], state["error"]) == ("done", "")
    target = downloads._models / "checkpoints" / name
    assert target.read_bytes() == hub.repos["anna/one"][name]
    assert max(start for path, start in hub.served if path.endswith(name)) > 0
    assert "revision: " + COMMIT in target.with_name("alone.studio.yaml").read_text()


def test_a_file_of_another_content_is_refused(hub: Hub, downloads: Downloads, tmp_path: Path) -> None:
    hub.repos["anna/one"] = {"alone.safetensors": b"12345678"}
    hub.broken = {"alone.safetensors"}
    with pytest.raises(StudioError, match="arrived damaged"):
        fetch(downloads, parse_source("anna/one"))
    assert not (tmp_path / "data" / "models" / "checkpoints" / "alone.safetensors").exists()


def test_a_gated_model_wants_a_token_and_takes_a_pasted_one(hub: Hub, downloads: Downloads, tmp_path: Path) -> None:
    hub.repos["anna/one"] = {"alone.safetensors": b"12345678"}
    hub.gated = {"anna/one"}
    source, page = parse_source("anna/one"), f"{hub.url}/anna/one"
    with pytest.raises(StudioError) as caught:
        downloads.plan(source)
    assert str(caught.value).startswith(f"anna/one is gated: accept the licence at {page}, then paste a token")
    tokens = Tokens(tmp_path / "data" / "tokens.json")
    tokens.save("hub", "hf_wrong")
    with pytest.raises(StudioError, match="accept the licence at"):
        downloads.plan(source)
    tokens.save("hub", " hf_right\n")
    assert downloads.plan(source)["gated"]
    file = tmp_path / "data" / "tokens.json"
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tokens.known() == {"hub": "pasted", "civitai": ""}
    assert "hf_right" not in json.dumps(downloads.state())
    tokens.save("hub", "")
    assert "hf_right" not in file.read_text()
    with pytest.raises(InvalidRequest, match="token must be"):
        tokens.save("hub", "two words")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Source(site="hub", name="anna/none"), "there is no model anna/none at "),
        (Source(site="hub", name="anna/shapes-v1.5", revision="v9"), "anna/shapes-v1.5 has no such revision"),
        (
            Source(site="hub", name="anna/shapes-v1.5", file="x.safetensors"),
            "is no .safetensors or .gguf file there; there is: shapes",
        ),
        (Source(site="hub", name="anna/pickles"), "holds only pickles, which can run code"),
        (
            Source(site="hub", name="anna/several"),
            "there are several models in it; choose one of them as file: a.safetensors, b",
        ),
        (Source(site="civitai", name="404", version=True), "there is no such model at "),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub: Hub, downloads: Downloads, source: Source, sentence: str) -> None:
    hub.repos["anna/pickles"] = {"model.ckpt": b"x"}
    hub.repos["anna/several"] = {"a.safetensors": b"x", "b.safetensors": b"y"}
    with pytest.raises(StudioError) as caught:
        downloads.plan(source)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_and_offline_mode_are_sentences(
    hub: Hub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StudioError, match="cannot be reached; check the network"):
        downloads.plan(parse_source("anna/one"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StudioError, match="offline mode is on"):
        downloads.plan(parse_source("anna/one"))


def test_a_full_disk_is_told_before_a_byte_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio import download_main

    monkeypatch.setattr(download_main.shutil, "disk_usage", lambda _: Usage)
    plan = download_main.Plan(
        tmp_path / "x.safetensors", {"x.safetensors": 10}, {}, {}, lambda *_: pytest.fail("fetched")
    )
    with pytest.raises(StudioError, match="the disk is too full: x needs"):
        download_main.run(plan, tmp_path / "cache", plan.told(tmp_path))


class Usage:
    free = 5


def test_what_the_hubs_cache_has_is_not_fetched_again(hub: Hub, downloads: Downloads, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    hub.repos["anna/one"] = {"alone.safetensors": data}
    code = "from huggingface_hub import hf_hub_download; hf_hub_download('anna/one', 'alone.safetensors')"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ) | {"HF_HUB_DISABLE_XET": "1"})
    hub.served.clear()
    answer = fetch(downloads, parse_source("anna/one"))
    assert Path(answer["path"]).read_bytes() == data
    assert not hub.served


def test_a_civitai_version_is_checked_and_says_its_words(hub: Hub, downloads: Downloads, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    sha256 = hashlib.sha256(data).hexdigest()
    hub.files["/api/download/models/456"] = data
    file = {
        "name": "../Anna's style.safetensors",
        "sizeKB": len(data) / 1024,
        "primary": True,
        "hashes": {"SHA256": sha256.upper()},
    }
    file |= {"downloadUrl": f"{hub.url}/api/download/models/456"}
    version = {"id": 456, "modelId": 123, "trainedWords": ["sks style"], "model": {"type": "LORA"}}
    hub.versions["model-versions/456"] = version | {"files": [{"name": "a.ckpt"}, file]}
    hub.versions["models/123"] = {"modelVersions": [{"id": 456}, {"id": 1}]}
    part = tmp_path / "data" / "cache"
    for text in ("https://civitai.com/models/123/anna?modelVersionId=456", "https://civitai.com/models/123"):
        assert downloads.plan(parse_source(text))["bytes"] == len(data)
    answer = fetch(downloads, parse_source("https://civitai.com/api/download/models/456"))
    target = tmp_path / "data" / "models" / "loras" / "Anna-s style.safetensors"
    assert (Path(answer["path"]), target.read_bytes()) == (target, data)
    facts = target.with_name("Anna-s style.studio.yaml").read_text()
    assert "- sks style" in facts
    assert "modelVersionId=456" in facts
    assert not list(part.rglob("*.incomplete"))
    hub.files["/api/download/models/456"] = data[::-1]
    target.unlink()
    with pytest.raises(StudioError, match="arrived damaged"):
        fetch(downloads, parse_source("https://civitai.com/models/123?modelVersionId=456"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stabilityai/sdxl-turbo", ("hub", "stabilityai/sdxl-turbo", "main", "")),
        ("https://huggingface.co/a/b", ("hub", "a/b", "main", "")),
        ("huggingface.co/a/b/tree/v2", ("hub", "a/b", "v2", "")),
        ("https://huggingface.co/a/b/blob/main/x/y.safetensors", ("hub", "a/b", "main", "x/y.safetensors")),
        ("https://civitai.com/models/12?modelVersionId=34", ("civitai", "34", "main", "")),
        ("civitai.com/models/12/some-name", ("civitai", "12", "main", "")),
    ],
)
def test_what_people_paste_is_understood(text: str, expected: tuple) -> None:
    source = parse_source(text)
    assert (source.site, source.name, source.revision, source.file) == expected


@pytest.mark.parametrize(
    "text", ["", "shapes", "../x", "a/..", "https://example.com/a/b", "a/b/c", "file:///etc/passwd", "a b/c"]
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no model's name on the Hub"):
        parse_source(text)


def test_only_weights_and_their_descriptions_are_wanted() -> None:
    sizes = (
        dict.fromkeys(shapes(), 1)
        | dict.fromkeys(UNWANTED, 1)
        | {"../evil.json": 1, "vae/x/y.json": 1, "unet/code.py": 1}
    )
    assert set(wanted_files(sizes)) == set(shapes())
    assert set(wanted_files({"model_index.json": 1, "unet/a.fp16.safetensors": 1})) == {
        "model_index.json",
        "unet/a.fp16.safetensors",
    }


def test_a_denoiser_in_gguf_is_one_file(hub: Hub, downloads: Downloads) -> None:
    hub.repos["anna/blocks"] = {"a-Q4_0.gguf": b"GGUF", "a-Q8_0.gguf": b"GGUF", "README.md": b"x"}
    with pytest.raises(InvalidRequest, match=r"choose one of them as file: a-Q4_0\.gguf, a-Q8_0"):
        downloads.plan(parse_source("anna/blocks"))
    answer = fetch(downloads, parse_source("anna/blocks", file="a-Q8_0.gguf"))
    target = downloads._models / "checkpoints" / "a-Q8_0.gguf"
    assert (answer["path"], answer["name"]) == (str(target), "a-Q8_0")
    assert target.read_bytes() == b"GGUF"
    assert "source: anna/blocks" in target.with_name("a-Q8_0.studio.yaml").read_text()
    assert list(wanted_files({"a.gguf": 1, "a.safetensors": 1})) == ["a.safetensors"]


def test_the_command_downloads_and_lists(hub: Hub, tmp_path: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    common = [sys.executable, "-m", "studio", "--data-dir", str(tmp_path / "data")]
    run = lambda *flags: subprocess.run([*common, *flags], env=environment, capture_output=True, text=True, check=False)  # noqa: E731
    plan = run("download", "anna/shapes-v1.5", "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "free disk" in plan.stdout
    made = run("download", "anna/shapes-v1.5", "--json")
    assert json.loads(made.stdout)["name"] == "shapes-v1.5"
    rows = {row["id"]: row for row in json.loads(run("models", "--json").stdout)}
    row = rows["shapes-v1.5"]
    assert (row["family"], row["source"], row["revision"], row["licence"], row["dtype"]) == (
        "sd1", "anna/shapes-v1.5", COMMIT, "openrail", rows["shapes"]["dtype"],
    )  # fmt: skip
    assert len(row["sha256"]) == 64
    wrong = run("download", "nothing")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
