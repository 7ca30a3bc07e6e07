"""When the device's memory is not enough: what a job held is let go, and the message says what would need less."""

import traceback

from studio.spec import GenerationRequest


def let_go(error: BaseException) -> None:
    """Forget what the frames of an error hold: the tensors of the step that did not fit live in them."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def too_little(device: str, request: GenerationRequest, number: int, *, quantised: bool = False) -> str:
    """Say that a group of pictures did not fit, and what would need less, the least loss first.

    Args:
        device: its title.
        request: resolved.
        number: of pictures at once.
        quantised: whether the model's weights are kept in less already.
    """
    width, height = request.hires_size if request.hires_scale > 1 and not request.only_enlarges else request.canvas
    ways = [
        f"batch size 1 instead of {number}" if number > 1 else "",
        "VAE slicing" if number > 1 and not request.vae_slicing else "",
        "VAE tiling" if not request.vae_tiling else "",
        f"Upscale by less than {request.hires_scale:g}" if request.hires_scale > 1 else "",
        f"{_half(width)} x {_half(height)}, a quarter of the pixels" if min(width, height) >= 128 else "",
        "fewer control units" if request.controls or request.t2i_adapters or request.ip_adapters else "",
        "the denoiser's weights in float8" if request.weights == "full" and not quantised else "",
    ]
    needed = f"{width} x {height}" + (f", {number} at once" if number > 1 else "")
    return f"{device} has too little memory for {needed}; less is needed with {', or '.join(filter(None, ways)) or 'another model'}"


def _half(side: int) -> int:
    return max(64, side // 2 // 64 * 64)
