"""The launched app: public endpoints, pictures as routes, wrong input, restart, ports."""

import base64
import io
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image, ImageDraw

from studio.errors import StudioError
from studio.settings import ROOT
from studio.spec import GenerationRequest
from studio.store.metadata import read_picture
from studio.ui.api import Api
from studio.ui.forms import build_control, facts_of, fields_of, from_page, to_page
from studio.units import IMAGE_FIELDS, UNIT_FIELDS
from tests.conftest import App, launch
from trainers.scorers.reading import judge

PROMPT = "a red circle on a blue background"
PUBLIC = {
    "/merge",
    "/datasets",
    "/lab",
    *("/train", "/estimate", "/runs", "/run", "/stop"),
    *("/txt2img", "/img2img", "/inpaint", "/upscale", "/models", "/schedulers", "/gallery", "/job", "/cancel"),
    *(
        "/preprocess",
        "/preprocessors",
        "/vae_check",
        "/adapters",
        "/styles",
        "/prompt_report",
        "/download",
        "/downloads",
    ),
}


TEXT_FIELDS = {
    name: field
    for name, field in GenerationRequest.model_fields.items()
    if facts_of(field)["group"] not in ("image", "inpaint", "outpaint", "control", "refiner", "memory")
    and name
    not in (
        "pag_scale",
        "true_cfg_scale",
        "prior_guidance_scale",
        "vae",
        "loras",
        "styles",
    )  # what few need is said in `settings`
}


def as_text(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def client(app: App) -> Client:
    return Client(app.url, verbose=False)


def test_the_public_endpoints_are_these_and_are_documented(client: Client) -> None:
    info = client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == PUBLIC
    assert not info["unnamed_endpoints"]
    parameters = {p["parameter_name"]: p for p in info["named_endpoints"]["/txt2img"]["parameters"]}
    assert set(parameters) == set(TEXT_FIELDS) | {"loras", "styles", "settings", "wait"}
    assert parameters["width"]["parameter_has_default"]


def test_txt2img_has_the_fields_and_defaults_of_the_request() -> None:
    import inspect

    signature = inspect.signature(Api.txt2img).parameters
    for name, field in TEXT_FIELDS.items():
        if name == "prompt":
            assert signature[name].default is inspect.Parameter.empty
        else:
            assert signature[name].default == field.default, name


def test_txt2img_makes_pictures_that_are_saved(client: Client, app: App) -> None:
    made = client.predict(prompt=PROMPT, seed=5, num_images_per_prompt=2, num_inference_steps=3, api_name="/txt2img")
    assert (made["state"], made["seed"], len(made["images"])) == ("done", 5, 2)
    for image in made["images"]:
        answer = app.get(image["url"])
        (path,) = (app.data / "images").rglob(f"{image['id']}.png")
        assert answer.content == path.read_bytes()
        assert read_picture(path).values["prompt"] == PROMPT
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert app.get(image["url"], headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    rows = client.predict(words="circle", api_name="/gallery")["images"]
    assert client.predict(words="circle", model="shapes", api_name="/gallery")["images"] == rows
    for other in ({"model": "another"}, {"day": "1999-01-01"}, {"starred": True}):
        assert rows[0] not in client.predict(**other, api_name="/gallery")["images"]
    assert [row["id"] for row in rows[:2]] == [image["id"] for image in reversed(made["images"])]


def test_a_lora_by_name_and_in_the_prompt(client: Client, app: App) -> None:
    (found,) = (row for row in client.predict(api_name="/adapters") if row["id"] == "red-to-blue")
    assert (found["rank"], found["trigger_words"], found["recommended_weight"]) == (16, ["red"], 1.0)
    values: dict[str, Any] = {"seed": 5, "num_inference_steps": 12, "api_name": "/txt2img"}
    stack = [{"name": "red-to-blue", "weight": 1.0}]
    made = [
        client.predict(prompt="a red circle on a yellow background", loras=stack, **values),
        client.predict(prompt="a red circle on a yellow background <lora:red-to-blue:1>", **values),
    ]
    files = [app.get(one["images"][0]["url"]).content for one in made]
    shown = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    assert np.array_equal(*shown)
    seen = judge(shown[0])
    assert (seen.things[0].colour, seen.background) == ("blue", "yellow")
    with pytest.raises(AppError, match=r"prompt='zebra' is no LoRA .*there is: .*red-to-blue"):
        client.predict(prompt="a red circle <lora:zebra:1>", **values)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_page_process_has_no_torch_even_after_drawing(client: Client, app: App) -> None:
    client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")
    assert "libtorch" not in Path(f"/proc/{app.process.pid}/maps").read_text()
    workers = psutil.Process(app.process.pid).children(recursive=True)
    assert any("libtorch" in Path(f"/proc/{worker.pid}/maps").read_text() for worker in workers)


def test_a_job_can_be_watched_and_cancelled(client: Client) -> None:
    made = client.predict(prompt=PROMPT, num_images_per_prompt=60, wait=False, api_name="/txt2img")
    assert made["state"] in ("queued", "running")
    client.predict(job=made["job"], api_name="/cancel")
    for _ in range(200):
        state = client.predict(job=made["job"], api_name="/job")["state"]
        if state == "cancelled":
            return
        time.sleep(0.1)
    raise AssertionError(state)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"width": 500}, "width=500 must be a multiple of 8; use 496 or 504"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"scheduler": "foo"}, "scheduler='foo' is not known"),
        ({"model": "../x"}, "is not in the library"),
        ({"prompt": "x" * 1_000_000}, "at most 20,000 are allowed"),
        ({"clip_skip": 9}, "clip_skip=9 must be less than"),
    ],
)
def test_wrong_input_is_told_in_one_sentence_and_the_next_job_works(
    client: Client, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError) as caught:
        client.predict(**({"prompt": PROMPT} | values), api_name="/txt2img")
    assert sentence in str(caught.value)
    assert client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")["state"] == "done"


def test_pictures_can_be_sent_to_img2img_and_inpaint(client: Client, app: App) -> None:
    blue, mask = Image.new("RGB", (128, 128), (40, 70, 215)), Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 32, 96, 96))
    few = {"num_inference_steps": 4, "seed": 3}
    made = client.predict(image=as_text(blue), prompt=PROMPT, settings=few, api_name="/img2img")
    record = app.get(f"/studio/metadata/{made['images'][0]['id']}").json()["record"]
    reference = record["request"]["image"]
    assert (app.data / "blobs" / reference[5:7] / f"{reference[5:]}.png").is_file()
    made = client.predict(
        image=reference, mask_image=as_text(mask), prompt=PROMPT, settings=few | {"mask_blur": 0}, api_name="/inpaint"
    )
    picture = Image.open(io.BytesIO(app.get(made["images"][0]["url"]).content))
    assert picture.crop((0, 0, 128, 32)).getcolors() == [(128 * 32, (40, 70, 215))]
    for values, sentence in (
        ({"image": "/etc/passwd"}, "image must be a picture file as base64"),
        ({"image": "blob:" + "0" * 64}, "choose the picture again"),
        ({"image": as_text(blue), "settings": {"mask_image": "../x"}}, "mask_image must be a picture file as base64"),
        ({"image": as_text(blue), "settings": {"zebra": 1}}, "zebra is not a field"),
    ):
        with pytest.raises(AppError) as caught:
            client.predict(**({"prompt": PROMPT} | values), api_name="/img2img")
        assert sentence in str(caught.value)


def test_wrong_pictures_are_one_sentence_and_harm_nothing(client: Client, app: App) -> None:
    whole = base64.b64decode(as_text(Image.effect_noise((128, 128), 80)))
    wrong = {
        "cut off": whole[: len(whole) // 2],
        "no picture": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "empty": b"\x00",
        "one pixel": base64.b64decode(as_text(Image.new("RGB", (1, 1)))),
        "a line": base64.b64decode(as_text(Image.new("1", (30_000, 1)))),
        "a bomb": base64.b64decode(as_text(Image.new("1", (20_000, 20_000)))),
    }
    good = as_text(Image.new("RGB", (128, 128), "blue"))
    small_mask, no_mask = (as_text(Image.new("L", size, 0)) for size in ((64, 32), (128, 128)))
    unit = {"model": "shapes-canny", "preprocessor": "canny"}
    values = [{"image": base64.b64encode(data).decode()} for data in wrong.values()]
    values += [{"image": good, "settings": {"mask_image": one}} for one in (small_mask, no_mask)]
    values += [{"image": good, "settings": {"controls": [unit] * 4}}]
    client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")
    drawing = psutil.Process(app.process.pid).children()
    before = sum(process.memory_info().rss for process in (psutil.Process(app.process.pid), *drawing))
    for one in values:
        with pytest.raises(AppError) as caught:
            client.predict(prompt=PROMPT, api_name="/img2img", **one)
        assert 10 < len(str(caught.value)) < 400
        assert "fault in Studio" not in str(caught.value)
    assert psutil.Process(app.process.pid).children() == drawing, "the same process draws"
    after = sum(process.memory_info().rss for process in (psutil.Process(app.process.pid), *drawing))
    assert after - before < 300 * 2**20
    assert client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")["state"] == "done"


def test_units_preprocessors_and_the_vae_check(client: Client, app: App) -> None:
    shape = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(shape).rectangle((20, 50, 90, 120), fill="black")
    made = client.predict(image=as_text(shape), preprocessor="canny", api_name="/preprocess")
    edges = np.asarray(Image.open(io.BytesIO(app.get(made["url"]).content)).convert("L"))
    assert edges.shape == (128, 128)
    assert set(np.flatnonzero(edges.any(axis=1))) <= set(range(47, 124))
    unit = {"model": "shapes-canny", "image": as_text(shape), "preprocessor": "canny"}
    drawn = client.predict(prompt=PROMPT, seed=5, settings={"controls": [unit]}, api_name="/txt2img")
    (path,) = (app.data / "images").rglob(f"{drawn['images'][0]['id']}.png")
    record = read_picture(path).record
    assert record
    assert [part.id for part in record.parts] == ["shapes-canny"]
    assert "ControlNet 0: " in read_picture(path).text
    assert (app.data / "blobs").is_dir()
    for wrong, sentence in (
        ({"controls": [unit | {"model": "other"}]}, "controls.0.model='other' is no ControlNet"),
        ({"controls": [unit | {"image": "no picture"}]}, "must be a picture file as base64"),
        ({"controls": [unit] * 4}, "at most 3 work at once"),
        ({"controls": "all"}, "controls="),
    ):
        with pytest.raises(AppError) as caught:
            client.predict(prompt=PROMPT, settings=wrong, api_name="/txt2img")
        assert sentence in str(caught.value)
    with pytest.raises(AppError, match="low_threshold"):
        client.predict(image=as_text(shape), options={"low_threshold": -1}, api_name="/preprocess")
    listed = {one["name"]: (one["ready"], one["needs"]) for one in client.predict(api_name="/preprocessors")}
    assert listed["canny"] == (True, "")
    assert not listed["depth_midas"][0] and "copy it from" in listed["depth_midas"][1]
    checked = client.predict(image=as_text(shape), api_name="/vae_check")
    assert checked["psnr"] > 22
    assert (checked["width"], checked["height"], len(checked["means"])) == (128, 128, 4)
    for url in checked["urls"].values():
        assert Image.open(io.BytesIO(app.get(url).content)).size == (128, 128)
    assert app.get("/studio/tool/../../studio.db").status_code == 404
    assert app.get("/studio/tool/" + "0" * 32).status_code == 404


def test_a_picture_is_enlarged(client: Client, app: App) -> None:
    made = client.predict(image=as_text(Image.new("RGB", (75, 40), "blue")), scale=2.2, api_name="/upscale")
    assert Image.open(io.BytesIO(app.get(made["images"][0]["url"]).content)).size == (165, 88)
    for values, words in (
        ({"scale": 1}, "scale=1 leaves"),
        ({"upscaler": "latent"}, "only while"),
        ({"scale": 9}, "4"),
    ):
        with pytest.raises(Exception, match=words):
            client.predict(image=as_text(Image.new("RGB", (75, 40))), **values, api_name="/upscale")


def test_lists(client: Client) -> None:
    assert "shapes" in [model["id"] for model in client.predict(api_name="/models")]
    assert "DPM++ 2M" in [scheduler["name"] for scheduler in client.predict(api_name="/schedulers")]


def test_routes_refuse_what_they_do_not_know(app: App) -> None:
    assert app.get("/healthz").json()["status"] == "ok"
    for path in (
        "/studio/image/nonsense",
        "/studio/image/..%2f..%2fstudio.db",
        "/studio/thumbnail/x",
        "/studio/metadata/x",
        "/studio/preview/x",
    ):
        assert app.get(path).status_code == 404, path
    assert app.get("/studio/gallery?before=x&words=%00").status_code == 200
    for path, body in (
        ("images", {"action": "burn"}),
        ("images", {"action": "star", "ids": "x"}),
        ("job/fly", {}),
        ("job/cancel", {"job": "x"}),
    ):
        answer = httpx.post(f"{app.url}/studio/{path}", json=body)
        assert (answer.status_code, "error" in answer.json()) == (400, True)
    assert httpx.post(f"{app.url}/studio/images", content=b"[" * 100_000).status_code == 400
    assert httpx.get(f"{app.url}/studio/state", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(f"{app.url}/gradio_api/file={app.data}/studio.db").status_code in (403, 404)


def test_the_gallery_can_be_changed_and_packed(client: Client, app: App) -> None:
    made = client.predict(prompt="a green star", num_images_per_prompt=2, num_inference_steps=1, api_name="/txt2img")
    ids = [image["id"] for image in made["images"]]

    def change(action: str, *which: str) -> int:
        return httpx.post(f"{app.url}/studio/images", json={"action": action, "ids": list(which)}).json()["number"]

    change("star", ids[0])
    assert change("trash", *ids) == 1
    starred = app.get("/studio/gallery?starred=1").json()["images"]
    assert [row["id"] for row in starred] == [ids[0]]
    assert app.get("/studio/gallery?trashed=1").json()["images"][0]["id"] == ids[1]
    assert change("restore", ids[1]) == 1
    archive = httpx.post(f"{app.url}/studio/zip", json={"ids": ids})
    assert archive.content[:2] == b"PK"
    change("unstar", ids[0])
    change("trash", *ids)
    assert change("empty") == 2
    assert app.get(f"/studio/image/{ids[0]}").status_code == 404


def test_a_restart_keeps_the_queue(tmp_path: Path) -> None:
    first = launch(tmp_path)
    client = Client(first.url, verbose=False)
    running = client.predict(
        prompt=PROMPT, seed=1, num_inference_steps=150, num_images_per_prompt=8, wait=False, api_name="/txt2img"
    )["job"]
    waiting = client.predict(prompt=PROMPT, seed=2, num_inference_steps=1, wait=False, api_name="/txt2img")["job"]
    for _ in range(600):
        if any(job.get("progress") for job in first.get("/studio/state?since=-1").json()["jobs"]):
            break
        time.sleep(0.1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = launch(tmp_path)
    try:
        client = Client(second.url, verbose=False)
        assert client.predict(job=running, api_name="/job")["state"] in ("queued", "running")
        assert client.predict(job=waiting, api_name="/job")["state"] == "queued"
        client.predict(job=running, api_name="/cancel")
        for _ in range(600):
            answer = client.predict(job=waiting, api_name="/job")
            if answer["state"] == "done":
                break
            time.sleep(0.1)
        assert len(answer["images"]) == 1
        third = subprocess.run(
            [sys.executable, "app.py", "--data-dir", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert third.returncode == 2
        assert "another Studio runs on" in third.stderr
    finally:
        second.stop()


def test_a_port_that_was_asked_for_by_name_is_not_replaced(app: App, tmp_path: Path) -> None:
    port = app.url.rsplit(":", 1)[1]
    command = [sys.executable, "app.py", "--data-dir", str(tmp_path), "--port", port]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert (
        answer.stderr.strip().splitlines()[-1]
        == f"app.py: port {port} is in use; choose another one with --port, or leave --port out to take the next free one"
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--host", "0.0.0.0"], "--auth"),
        (["--port", "70000"], "port=70000 must be at most 65535"),
        (["--device", "tpu"], "device='tpu'"),
        (["--model", "typo"], "model='typo' is not in the library"),
        (["--host", "203.0.113.9", "--auth", "a:bcdefgh"], "cannot listen on 203.0.113.9"),
        (["--auth", "anna"], "USER:PASSWORD"),
    ],
)
def test_wrong_flags_exit_2_with_one_line(tmp_path: Path, flags: list[str], sentence: str) -> None:
    command = [sys.executable, "app.py", "--data-dir", str(tmp_path), *flags]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_login_covers_our_own_routes(tmp_path: Path) -> None:
    running = launch(tmp_path, "--auth", "anna:correct horse")
    try:
        for path in ("/studio/state", "/studio/gallery", "/studio/image/x"):
            assert running.get(path).status_code == 401
        with httpx.Client(base_url=running.url) as browser:
            assert browser.post("/login", data={"username": "anna", "password": "wrong"}).status_code == 400
            assert browser.post("/login", data={"username": "anna", "password": "correct horse"}).status_code == 200
            assert browser.get("/studio/state?since=-1").status_code == 200
        client = Client(running.url, auth=("anna", "correct horse"), verbose=False)
        assert client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")["state"] == "done"
    finally:
        running.stop()


def test_on_a_space_visitors_see_only_their_own(tmp_path: Path) -> None:
    environment = {"SPACE_ID": "me/studio", "SPACE_HOST": "me-studio.hf.space"}
    running = launch(tmp_path, "--port", "7957", "--host", "127.0.0.1", environment=environment)
    try:
        headers = {"Host": "me-studio.hf.space"}
        visitors = [httpx.Client(base_url=running.url, headers=headers) for _ in range(2)]
        for visitor in visitors:
            visitor.get("/")
            name, value = visitor.cookies.jar.__iter__().__next__().name, next(iter(visitor.cookies.jar)).value
            visitor.headers["Cookie"] = f"{name}={value}"  # the cookie is for https only
        owner = visitors[0].headers["Cookie"].split("=")[1]
        client = Client(running.url, verbose=False, headers={"Cookie": f"studio_client={owner}"})
        made = client.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")
        url = made["images"][0]["url"]
        assert [visitor.get(url).status_code for visitor in visitors] == [200, 404]
        assert [len(visitor.get("/studio/gallery").json()["images"]) for visitor in visitors] == [1, 0]
        assert len(client.predict(api_name="/gallery")["images"]) == 1
        assert Client(running.url, verbose=False).predict(api_name="/gallery")["images"] == []
        assert (
            visitors[0].post("/studio/images", json={"action": "trash", "ids": [made["images"][0]["id"]]}).status_code
            == 400
        )
        assert visitors[0].get("/studio/datasets/x?resolution=512&step=64").status_code == 404
        assert "sd-chosen" not in visitors[0].get("/config").text
        assert "path" not in visitors[0].get(f"/studio/metadata/{made['images'][0]['id']}").json()["record"]["model"]
    finally:
        running.stop()


def test_share_without_a_login_makes_one(tmp_path: Path) -> None:
    running = launch(tmp_path, "--share", "--executor", "inline")
    try:
        printed = running.output.read_text()
        assert "Login for the public link: user studio, password " in printed
        assert len(printed.split("password ")[1].split()[0]) >= 20
        assert running.get("/studio/state").status_code == 401
    finally:
        running.stop()


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    running = launch(tmp_path, "--device", "cuda:7")
    try:
        with pytest.raises(Exception, match="device='cuda:7' is not there"):
            Client(running.url, verbose=False).predict(prompt=PROMPT, api_name="/txt2img")
    finally:
        running.stop()


def test_the_forms_controls_are_the_requests_fields() -> None:
    groups = {facts_of(field).get("group") for field in GenerationRequest.model_fields.values()}
    listed = [name for group in sorted(map(str, groups)) for name in fields_of(GenerationRequest, group)]
    assert sorted([*listed, "loras", "styles", *IMAGE_FIELDS, *UNIT_FIELDS]) == sorted(GenerationRequest.model_fields)
    control = build_control(GenerationRequest, "num_inference_steps", 20)
    assert (control.minimum, control.maximum, control.value) == (1, 150, 20)  # type: ignore[attr-defined]
    clip = build_control(GenerationRequest, "clip_skip", 0)
    assert (clip.minimum, clip.value) == (1, 1)  # type: ignore[attr-defined]
    assert from_page(GenerationRequest, to_page(GenerationRequest, {"clip_skip": 3, "prompt": "x"})) == {
        "clip_skip": 3,
        "prompt": "x",
    }


def test_the_prompt_report_and_styles_of_the_api(client: Client, app: App) -> None:
    told = client.predict(prompt="a (red:1.2) zorp", negative_prompt="x", guidance_scale=1, api_name="/prompt_report")
    assert told["unknown_words"] == ["zorp"]
    assert told["notes"] == ["The negative prompt is ignored because CFG Scale is 1."]
    names = [style["name"] for style in client.predict(api_name="/styles")]
    assert "Photograph" in names
    made = client.predict(
        prompt="a {red} star", styles=["Shapes: striped"], seed=1, num_inference_steps=2, api_name="/txt2img"
    )
    record = app.get(f"/studio/metadata/{made['images'][0]['id']}").json()["record"]
    assert record["request"]["prompt"] == "a red star, striped style"
    assert record["template"]["prompt"] == "a {red} star"
    answer = httpx.post(f"{app.url}/studio/prompt-report", json={"prompt": "a " * 76, "width": 3}, timeout=30)
    assert (answer.json()["prompt"]["tokens"], answer.json()["prompt"]["limit"]) == (76, 150)
    assert httpx.post(f"{app.url}/studio/prompt-report", json={"prompt": 3}, timeout=30).status_code == 400


def test_a_port_that_another_program_takes_at_the_last_moment_is_left_to_it() -> None:
    import gradio as gr

    from app import serve

    others: list[socket.socket] = []
    with gr.Blocks() as page:
        gr.Markdown("here")

    def start(port: int) -> None:
        if not others:
            others.append(socket.create_server(("127.0.0.1", port)))
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            _frontend=False,
        )

    try:
        port = serve("127.0.0.1", None, start)
        assert port != others[0].getsockname()[1]
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        with pytest.raises(StudioError, match="is in use; choose another one with --port"):
            serve("127.0.0.1", port, start)
    finally:
        page.close()
        others[0].close()
