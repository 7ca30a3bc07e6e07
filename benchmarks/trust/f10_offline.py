"""What a person does without a network: nothing goes out, from the start to the end, of the app and of the process that draws."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.trust.attacks_web import form
from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.target import Target, as_text, picture, target

GOAL = "0 sockets, 0 names resolved"


def smoke(one: Target) -> dict[str, Any]:
    """Return name -> what a person does."""
    image = as_text(picture(96, 96))
    small: dict[str, Any] = {"prompt": "a red circle", "settings": {"num_inference_steps": 2}}
    headers, body = form("a.png", picture())
    made: list[str] = []

    def draw() -> None:
        made.append(one.draw(loras=[{"name": "red-to-blue"}])["images"][0]["id"])

    def good(reply: Any) -> None:
        assert reply.status == 200, f"{reply.status}: {reply.body[:200]!r}"

    return {
        "the page": lambda: good(one.raw("GET", "/")),
        "a picture with a LoRA": draw,
        "a picture by its address": lambda: good(one.raw("GET", f"/studio/image/{made[0]}")),
        "the gallery": lambda: good(one.raw("GET", "/studio/gallery")),
        "from a picture": lambda: good(one.call("img2img", image=image, **small)),
        "enlarge": lambda: good(one.call("upscale", image=image)),
        "a preprocessor": lambda: good(one.call("preprocess", image=image)),
        "the check of an autoencoder": lambda: good(one.call("vae_check", image=image)),
        "lists": lambda: [
            good(one.call(name)) for name in ("models", "adapters", "schedulers", "styles", "preprocessors")
        ],
        "a report of a prompt": lambda: good(one.call("prompt_report", prompt="a red circle")),
        "an upload": lambda: good(one.raw("POST", "/gradio_api/upload", headers=headers, body=body)),
    }


def work(one: Target, tally: Tally, times: int = 1) -> list[str]:
    """Do all of it; return who was to be reached since the first line of the program."""
    for _ in range(times):
        for what, act in smoke(one).items():
            with tally.case(what):
                act()
    own = f"('127.0.0.1', {one.port})"  # gradio looks once whether its own server answers
    before, one.watched_from = one.watched_from, 0
    out = [line for line in one.outbound() if own not in line]
    one.watched_from = before
    with tally.case("no socket went out"):
        assert not out, out[:5]
    return out


def run(full: bool, mutant: bool = False) -> Figure:
    """Do all of it at home; the mutant tells somebody of every job."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as name:
        with target("local", Path(name), mutant="phones-home" if mutant else "none") as one:
            out = work(one, tally, 5 if full else 1)
    return tally.figure("F10", __doc__ or "", GOAL, outbound=len(out))
