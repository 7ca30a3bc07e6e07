"""Sixteen visitors of one public page, each with a cookie, a prompt and a LoRA of their own."""

import hashlib
import io
import secrets
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from benchmarks.trust.target import Target
from studio.settings import ROOT

VISITORS = 16
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")


def loras(one: Path, number: int = VISITORS) -> list[str]:
    """Make LoRA files that differ: the embedded one, its weights turned by chance and scaled. Returns their names."""
    source = next((ROOT / "presets" / "loras").rglob("red-to-blue.safetensors"))
    tensors = load_file(source)
    folder = one / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        chance = np.random.default_rng(place)
        turned = {
            name: (tensor + chance.normal(0, 0.05, tensor.shape)).astype(tensor.dtype)
            for name, tensor in tensors.items()
        }
        save_file(turned, folder / f"visitor-{place}.safetensors", metadata_of(source))
    return [f"visitor-{place}" for place in range(number)]


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a safetensors file says about itself."""
    from safetensors import safe_open

    with safe_open(str(path), "np") as file:
        return file.metadata() or {}


def meet(one: Target, number: int = VISITORS) -> list[str]:
    """Give cookies to visitors `visitor-0` …; return their names."""
    names = [f"visitor-{place}" for place in range(number)]
    for name in names:
        one.visitors[name] = f"studio_client={secrets.token_hex(16)}"
    return names


def prompt_of(place: int) -> str:
    return f"a {COLOURS[place % 8]} {SHAPES[place // 8 * 3 % 8]} on a {COLOURS[(place + 3) % 8]} background"


def pixels_hash(png: bytes) -> str:
    """Return the sha256 of a picture's pixels, without what the file says."""
    with Image.open(io.BytesIO(png)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
