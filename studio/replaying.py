"""How a picture is made again from what it says of itself, and compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from studio.engine.engine import Watch
from studio.errors import InvalidRequest
from studio.parts import KINDS
from studio.records import ImageRecord, Job, PartRef
from studio.settings import Settings
from studio.store.blobs import BlobStore
from studio.store.gallery import save_picture
from studio.store.jobs import new_job_id


def blob_finder(image: Path, settings: Settings, out: Path) -> Callable[[str, str], Image.Image]:
    """Return what opens the pictures that a PNG was made from, and keeps them beside its replay.

    They are looked for in `blobs` beside the file and up to three folders above it, then in the data root.
    """
    folders = [*(folder / "blobs" for folder in image.resolve().parents[:4]), settings.data_dir / "blobs"]
    stores, kept = [BlobStore(folder) for folder in folders if folder.is_dir()], BlobStore(out / "blobs")

    def load(reference: str, field: str) -> Image.Image:
        for store in stores:
            if store.has(reference):
                kept.add(store.path(reference, field), field)
                return store.open(reference, field)
        raise InvalidRequest(field, f"{field}={reference[:17]}… is in none of: {', '.join(map(str, folders))}")

    return load


def remake(engine: Any, record: ImageRecord, load_image: Callable[[str, str], Image.Image], out: Path) -> Path:
    """Make a record's picture again, with its model and parts, in the group that it was made in; return its path."""
    request, made = record.request, []
    first = record.index // request.batch_size * request.batch_size
    number = min(request.batch_size, request.num_images_per_prompt - first)
    seed = "variation_seed" if request.variation_strength else "seed"  # what tells a job's pictures apart
    group = request.model_copy(update={seed: getattr(request, seed) + first, "num_images_per_prompt": number})

    def commit(png: bytes, new: ImageRecord) -> str:
        if new.index == record.index - first:
            new = new.model_copy(update={"request": request, "index": record.index})
            made.append(save_picture(out, new.id, png, new))
        return ""

    job = Job(id=new_job_id(), request=group, model=record.model, parts=record.parts)
    engine.generate(job, load_image, commit, Watch(lambda event: None, lambda: ""))
    return made[0]


def parts_then(record: ImageRecord, now: tuple[PartRef, ...]) -> tuple[PartRef, ...]:
    """Leave out embeddings that a picture did not have: a file that came later must not change what its words mean."""
    known = {_key(part) for part in record.parts}
    return tuple(part for part in now if part.kind != "embedding" or _key(part) in known)


def part_differences(then: tuple[PartRef, ...], now: tuple[PartRef, ...]) -> list[str]:
    """Say which parts of a picture are others by now, one line each."""
    here = {_key(part): part.sha256[:12] for part in now}
    found = [(part, here.get(_key(part), "missing")) for part in then]
    return [
        f"{part.kind} {part.id}: {part.sha256[:12]} then, {hash_now} now"
        for part, hash_now in found
        if hash_now != part.sha256[:12]
    ]


def _key(part: PartRef) -> tuple[str, str]:
    """What tells a part from others even if its file was moved into another folder."""
    return part.kind, part.id.rpartition("/")[2] if KINDS[part.kind].deep else part.id


def pixel_difference(first: Path, second: Path) -> str:
    """Compare two pictures; return "" if every pixel is the same, else one line."""
    with Image.open(first) as one, Image.open(second) as other:
        if one.size != other.size:
            return f"pixels: {one.size} then, {other.size} now"
        difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
        if difference.getbbox() is None:
            return ""
        worst = max(difference.tobytes())
        return f"pixels: differ by at most {worst} of 255 levels"
