"""The pictures that a request names: paths become blobs, so that what was given is kept beside what was made."""

from pathlib import Path

from PIL import ImageChops

from studio.errors import InvalidRequest
from studio.fields import SIZE_STEP
from studio.spec import SIZE_MAX, GenerationRequest
from studio.store.blobs import BlobStore, is_reference
from studio.transparency import over
from studio.units import pictures_of, with_pictures
from studio.upscalers import check_enlarging

SIDE_MIN = 64


def take_inputs(request: GenerationRequest, blobs: BlobStore, base: Path) -> GenerationRequest:
    """Store every picture that a request names; return the request with references in place of paths.

    Args:
        request: as a person wrote it.
        blobs: keeps the pictures.
        base: folder that relative paths start from.

    Raises:
        InvalidRequest: if a file is no picture that can be used, or a reference is unknown.
    """
    taken = {}
    for name, given in pictures_of(request).items():
        if is_reference(given):
            blobs.path(given, name)
        else:
            taken[name] = blobs.add(base / given, name)
    return with_pictures(request, taken)


def canvas_size(request: GenerationRequest, blobs: BlobStore) -> tuple[int, int] | None:
    """Return the size that a request's picture asks for by itself; None without one, or if it is only enlarged as it is.

    Raises:
        InvalidRequest: if the mask has another size, or leaves nothing to draw, or an enlarged picture would be too large.
    """
    if request.image is None:
        return None
    with blobs.open(request.image, "image") as image:
        width, height = image.size
    if request.only_enlarges and request.width is None and request.height is None:
        check_enlarging(request, (width, height))
        return None
    if request.mask_image is not None:
        with blobs.open(request.mask_image, "mask_image") as mask:
            if mask.size != (width, height):
                raise InvalidRequest(
                    "mask_image",
                    f"mask_image is {mask.width} x {mask.height} and the image is {width} x {height}; make them the same size",
                )
            grey = over(mask, "black").convert("L")
            painted = (ImageChops.invert(grey) if request.mask_invert else grey).point([0] * 128 + [255] * 128)
            if painted.getbbox() is None and not any(request.extensions):
                raise InvalidRequest(
                    "mask_image", "mask_image is empty: nothing would be repainted; paint over what should change"
                )
    return fitting_size(width, height)


def fitting_size(width: int, height: int) -> tuple[int, int]:
    """Return the size at which a picture is drawn: its own, rounded to a multiple of 8, smaller as a whole if a side is too long."""
    scale = min(1.0, SIZE_MAX / max(width, height))
    sides = (round(side * scale / SIZE_STEP) * SIZE_STEP for side in (width, height))
    across, down = (min(SIZE_MAX, max(SIDE_MIN, side)) for side in sides)
    return across, down
