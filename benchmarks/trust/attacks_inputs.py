"""Attacks by what is written into fields: commands, names that are paths, models that run code, secrets, prices (B1 to B16)."""

import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from PIL import Image

from benchmarks.trust.attacks_web import Case, assert_error, refused
from benchmarks.trust.target import Target, as_text, picture

HOME_ONLY = ("lab", "download", "downloads", "merge", "datasets", "train", "estimate", "runs", "run", "stop")
HOME_ROUTES = (
    "/studio/dataset",
    "/studio/datasets/x",
    "/studio/upload/0",
    "/studio/runs",
    "/studio/run/x",
    "/studio/run/x/stop",
)


def cases(one: Target) -> Iterator[Case]:
    """Return all attacks of this file for a target."""
    yield from command_cases(one)
    yield from name_cases(one)
    yield from code_cases(one)
    yield from markup_cases(one)
    yield from picture_cases(one)
    yield from price_cases(one)
    yield from training_cases(one)
    yield "B14 secrets", secret_case


# B2: commands


def command_cases(one: Target) -> Iterator[Case]:
    touch = f"touch {one.marker}"
    texts = (
        f"$({touch})", f"`{touch}`", f"; {touch}", f"| {touch}", f"&& {touch}", f"\n{touch}\n", f"' ; {touch} ; '", f'" ; {touch} ; "',
        f"--request={one.marker}", f"%0a{touch}", f"^& {touch}", f"\u2019; {touch}", f"{{{{{touch}}}}}", f"${{IFS}}{touch}",
        f"__import__('os').system('{touch}')", f"!!python/object/apply:os.system ['{touch}']", "%COMSPEC%", f"\0{touch}",
        "{0.__class__.__mro__}", "%(canary)s %n %s", f"<lora:$({touch}):1>", f"__$({touch})__", f"{{$({touch})|b}}", f"\r\n{touch}",
    )  # fmt: skip
    fields = ("prompt", "negative_prompt", "model", "scheduler", "hires_upscaler", "vae", "refiner")
    for number, text in enumerate(texts):

        def inject(one: Target, text: str = text, number: int = number) -> None:
            for field in fields if one.full else (fields[number % len(fields)], fields[(number + 3) % len(fields)]):
                given: dict[str, Any] = (
                    {field: text} if field in one.defaults["txt2img"] else {"settings": {field: text}}
                )
                one.call("txt2img", **({"prompt": "x", "num_inference_steps": 1, "wait": False} | given))
            one.call("txt2img", prompt="x", loras=[{"name": text}], styles=[text], wait=False)
            one.post("/studio/prompt-report", {"prompt": text, "styles": [text]})
            if not one.public:
                for name, values in (
                    ("download", {"source": text, "revision": text, "file": text}),
                    ("merge", {"models": ["shapes", text], "name": text}),
                    ("estimate", {"method": text, "config": {"dataset": text, "instance_prompt": text}}),
                ):
                    assert_error(one.call(name, **values))
            assert not one.marker.exists(), "a command was run"

        yield f"B2 {text[:24]!r}", inject


# B3: names that are paths


def name_cases(one: Target) -> Iterator[Case]:
    away = str(one.data / "canary.txt")
    names = (
        "../canary", "..\\canary", "/etc/passwd", away, f"file://{away}", "a/../../canary.txt",
        "....//canary", "%2e%2e/canary", "~/x",
        "C:\\Windows\\win.ini", "\\\\host\\share", "CON", "nul.txt", "a:b", "name.", "name ",
        "\0", "a\0b", "x" * 5000, "e\u0301", "\u202ex",
        "shapes/../shapes", "./shapes", "shapes\n", "", " ", "..", ".", "-rf", "http://127.0.0.1/x",
    )  # fmt: skip
    for name in names:

        def traverse(one: Target, name: str = name) -> None:
            tries: tuple[dict[str, Any], ...] = (
                {"model": name}, {"loras": [{"name": name}]}, {"styles": [name]},
                {"settings": {"vae": name or "/"}}, {"settings": {"controls": [{"model": name, "image": as_text(picture())}]}},
                {"settings": {"image": name or "/"}}, {"settings": {"image": f"blob:{name}"}},
            )  # fmt: skip
            for values in tries if one.full else tries[:3]:
                assert_error(one.call("txt2img", **({"prompt": "x", "wait": False} | values)))
            assert_error(one.call("img2img", image=away if len(name) > 99 else name or "/", prompt="x"))
            assert_error(one.call("job", job=name))
            one.post("/studio/zip", {"ids": [name]})
            if not one.public:
                assert_error(one.call("run", id=name))
                assert_error(one.call("estimate", method="lora", config={"dataset": name, "model": name}))
                assert_error(one.call("merge", models=["shapes", "shapes"], name=name))

        yield f"B3 name {name[:24]!r}", traverse


# B6: models that bring code


def code_cases(one: Target) -> Iterator[Case]:
    code = f"import pathlib\npathlib.Path({str(one.marker)!r}).touch()\nclass Evil: pass\n"
    indexes: dict[str, dict[str, Any]] = {
        "pipeline": {"_class_name": ["pipeline", "Evil"], "_diffusers_version": "0.42.0"},
        "component": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["evil", "Evil"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "module": {"_class_name": "StableDiffusionPipeline", "scheduler": ["os", "system"]},
        "auto-map": {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "AutoModel"]},
        "community": {"_class_name": "lpw_stable_diffusion", "custom_pipeline": "lpw_stable_diffusion"},
    }
    for name, index in indexes.items():

        def load(one: Target, name: str = name, index: dict[str, Any] = index) -> None:
            folder = one.data / "models" / "checkpoints" / f"evil-{name}"
            for place in ("", "unet", "text_encoder", "scheduler"):
                (folder / place).mkdir(parents=True, exist_ok=True)
                for file in ("pipeline.py", "evil.py", "modeling.py"):
                    (folder / place / file).write_text(code)
                config = {"auto_map": {"AutoModel": "modeling.Evil"}, "_class_name": "Evil", "architectures": ["Evil"]}
                (folder / place / "config.json").write_text(json.dumps(config))
            (folder / "model_index.json").write_text(json.dumps(index))
            one.call("models")
            assert_error(one.call("txt2img", prompt="x", model=f"evil-{name}"))
            assert not one.marker.exists(), "the model's code was run"

        yield f"B6 a model with its own {name}", load


# B8, B13: text that a page or a sheet would run


def markup_cases(one: Target) -> Iterator[Case]:
    texts = (
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</textarea><svg onload=alert(1)>", "\"><b onmouseover=alert(1)>",
        "javascript:alert(1)", "<iframe srcdoc='<script>alert(1)</script>'>", "=cmd|' /C calc'!A0", "@SUM(1+1)", "{{7*7}}",
        "<a href='data:text/html,<script>alert(1)</script>'>x</a>", "<math><mtext></p><script>alert(1)</script>", "\u2028alert(1)",
    )  # fmt: skip
    for text in texts:

        def write(one: Target, text: str = text) -> None:
            for path, value in (
                ("/studio/prompt-report", {"prompt": text, "negative_prompt": text, "styles": [text], "model": text}),
                ("/studio/job/cancel", {"job": text}),
                ("/studio/images", {"action": text, "ids": [text]}),
                ("/studio/plot/cancel", {"plot": text}),
            ):
                reply = one.post(path, value)
                kind = reply.header("content-type")
                assert kind.startswith(("application/json", "text/plain")), f"{path} answers with {kind}"
                assert reply.header("x-content-type-options") == "nosniff", path
            page = one.raw("GET", f"/?words={text.encode().hex()}&view=<script>alert(1)</script>")
            assert b"view=<script>alert(1)" not in page.body

        yield f"B8 {text[:30]!r}", write


# B10, B11: pictures


def bombs() -> dict[str, bytes]:
    """Return files that are small and want much."""
    huge = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(huge, "PNG")
    frames, line = io.BytesIO(), io.BytesIO()
    Image.new("L", (64, 64)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("L", (64, 64), n) for n in range(100)]
    )
    Image.new("L", (30_000, 1)).save(line, "PNG")
    text = zlib.compress(b"A" * 50_000_000, 9)
    chunk = b"zTXt" + b"k\0\0" + text
    bomb = picture()
    bomb = bomb[:33] + len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + bomb[33:]
    return {
        "12,000 x 12,000": huge.getvalue(), "100 frames": frames.getvalue(), "30,000 x 1": line.getvalue(), "a text bomb": bomb,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cut off": picture(500, 500)[:200], "nothing": b"",
        "a page": b"<html><script>alert(1)</script>", "a Photoshop file": b"8BPS\0\1" + b"\0" * 64,
        "a lying size": picture()[:16] + b"\x7f\xff\xff\xff" * 2,
    }  # fmt: skip


def picture_cases(one: Target) -> Iterator[Case]:
    for name, content in bombs().items():

        def decode(one: Target, name: str = name, content: bytes = content) -> None:
            before = memory(one)
            answer = one.call("img2img", image=as_text(content), prompt="x", wait=False)
            assert answer.status != 200 or name == "a text bomb", f"{name} is taken"
            assert memory(one) - before < 400e6, f"{(memory(one) - before) / 1e6:.0f} MB for {name}"

        yield f"B10 {name}", decode

    def private(one: Target) -> None:
        photo = io.BytesIO()
        exif = Image.Exif()
        exif[0x010E], exif[0x8825] = "taken-at-home", {1: "N", 2: (52.0, 31.0, 12.0)}
        Image.new("RGB", (96, 96), "green").save(photo, "JPEG", exif=exif)
        answer = one.call(
            "img2img", image=as_text(photo.getvalue()), prompt="a red circle", settings={"num_inference_steps": 2}
        )
        made = answer.json()["data"][0]
        back = one.raw("GET", made["images"][0]["url"]).body
        assert back[:4] == b"\x89PNG" and b"taken-at-home" not in back and b"eXIf" not in back

    yield "B11 where a photo was taken", private


def memory(one: Target) -> int:
    """Return the bytes of the app's process."""
    return psutil.Process(one.process.pid).memory_info().rss


# B15: what it would cost


def price_cases(one: Target) -> Iterator[Case]:
    over: dict[str, tuple[int | str, int | str]] = {
        "width": (1024, 1032), "height": (1024, 1032), "num_inference_steps": (50, 51), "num_images_per_prompt": (4, 5),
        "batch_size": (4, 5), "hires_steps": (50, 51), "prompt": ("x" * 2000, "x" * 2001), "negative_prompt": ("x" * 2000, "x" * 2001),
    }  # fmt: skip
    everywhere: dict[str, Any] = {
        "width": 1 << 40, "height": -8, "num_inference_steps": 0, "num_images_per_prompt": 65, "guidance_scale": 1e308, "seed": 2**64,
        "hires_scale": 99, "variation_strength": -1, "eta": "nan", "clip_skip": 99, "prompt": "x" * 1_000_000, "batch_size": 1.5,
    }  # fmt: skip
    for field, (_, more) in over.items() if one.public else ():
        yield f"B15 {field} one too many", lambda one, field=field, more=more: asked(one, {field: more})
    for field, value in everywhere.items():
        yield f"B15 {field} out of range", lambda one, field=field, value=value: asked(one, {field: value})
    tree = "{a|b|c|d|e|f|g|h}" * 200
    for text in (
        tree,
        "{" * 1500,
        "(" * 1900,
        "[a:b:0.5]" * 200,
        "{2$$a|b}" * 150,
        "<lora:red-to-blue:1>" * 90,
        "__a__" * 300,
    ):

        def expand(one: Target, text: str = text) -> None:
            answer = one.call("txt2img", prompt=text, num_inference_steps=1, width=64, height=64, wait=False)
            assert answer.status in (200, 500), answer.status
            if answer.status == 200:
                one.call("cancel", job=answer.json()["data"][0]["job"])
            assert one.raw("GET", "/healthz", timeout=10).status == 200

        yield f"B15 {text[:20]!r} repeated", expand


def asked(one: Target, values: dict[str, Any]) -> None:
    """Ask for too much; it must be refused in words, before anything is drawn."""
    answer = one.call("txt2img", **({"prompt": "x", "wait": False} | values))
    assert_error(answer)
    field = next(iter(values))
    assert field.encode() in answer.body, f"the answer does not name {field}: {answer.body[:200]!r}"


# B1, B16: what strangers must not find at all


def training_cases(one: Target) -> Iterator[Case]:
    if not one.public:
        return
    for name in HOME_ONLY:

        def absent(one: Target, name: str = name) -> None:
            assert name not in one.defaults
            for route in ("run", "api", "call", "call/v2"):
                reply = one.post(f"/gradio_api/{route}/{name}", {"data": ["lora", {}]})
                assert_error(reply)

        yield f"B16 endpoint {name}", absent
    for path in HOME_ROUTES:
        yield (
            f"B16 {path}",
            lambda one, path=path: (refused(one.raw("GET", path)), refused(one.post(path, {})), None)[2],
        )
    known = {each["id"] for each in one.config()["dependencies"]}
    strange = [-1, max(known) + 1, max(known) + 1000, 10**9, *sorted(set(range(max(known))) - known)][:12]
    for number in strange:

        def unknown(one: Target, number: int = number) -> None:
            said = one.run(number, [], wait=5)
            assert b" 200 " not in said[:20] or b'"success": false' in said or b'"success":false' in said, said[:200]

        yield f"B16 function {number}", unknown
    words = (
        "train-start",
        "st-merge-run",
        "st-model-sure",
        "st-download-start",
        "st-token-save",
        "sd-chosen",
        "st-lora-edit",
    )

    def built(one: Target) -> None:
        shown = {part["props"].get("elem_id") for part in one.config()["components"]}
        assert not shown & set(words), shown & set(words)

    yield "B1 the page has no such controls", built


# B14: secrets


def secret_case(one: Target) -> None:
    """Raise if the token is in a log, a command line, or the environment of a process that only computes."""
    assert one.canary not in one.log(), "the log has the token"
    for process in psutil.Process(one.process.pid).children(recursive=True):
        assert one.canary not in " ".join(process.cmdline()), "a command line has the token"
        assert one.canary not in " ".join(process.environ().values()), "a child's environment has the token"


Attack = Callable[[Target], None]
