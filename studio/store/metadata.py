"""What a picture says about itself: our `studio` chunk, A1111's `parameters` text, ComfyUI's graph."""

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from studio.errors import StudioError
from studio.fields import Frozen
from studio.loras import tag_of
from studio.parts import UNIT_KINDS
from studio.plots import GridRecord, describe_plot, grid_sentence
from studio.records import ImageRecord
from studio.schedulers import SIGMA_LABELS, canonical
from studio.settings import VERSION
from studio.spec import INPAINT, SEED_MAX, TEXT2IMAGE, GenerationRequest
from studio.units import MODE_LABELS
from studio.upscalers import upscaler_label, upscaler_name

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
PNG_START = 8 + 25  # signature and IHDR


GRID = "studio-grid"  # the chunk of a grid
FACTS_MAX = 4_000  # characters of the last line of a `parameters` text
FACT = re.compile(r'(?:^|,) ?([A-Za-z][^:,"]{0,40}): ("[^"]*"|[^,]*)')


class Found(Frozen):
    """What could be read from a picture.

    Attributes:
        source: `studio`, `grid` (of ours), `a1111`, `comfyui` or `none`.
        values: fields of a GenerationRequest.
        notes: what could not be carried over, one sentence each.
        record: the whole record, if the picture is ours.
        grid: what it shows, if it is the grid of an X/Y/Z plot; `values` are the plot's base then.
        text: the `parameters` text as it was, for reading.
    """

    source: str
    values: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    record: ImageRecord | None = None
    grid: GridRecord | None = None
    text: str = ""


def add_text(png: bytes, texts: dict[str, str]) -> bytes:
    """Put text chunks right after a PNG's header (iTXt, so that any language fits)."""
    chunks = b""
    for key, text in texts.items():
        body = b"iTXt" + key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:PNG_START] + chunks + png[PNG_START:]


def picture_texts(record: ImageRecord | GridRecord) -> dict[str, str]:
    """Return the chunks that a picture of ours carries; a grid has no `parameters`, which would let it pass for one picture."""
    if isinstance(record, GridRecord):
        return {"Description": describe_plot(record.spec), GRID: record.model_dump_json()}
    return {"parameters": to_parameters(record), "studio": json.dumps(without_paths(record.model_dump(mode="json")))}


def without_paths(values: Any) -> Any:
    """Return plain values without any `path`: where a model lies on this machine is nobody else's business."""
    if isinstance(values, dict):
        return {name: without_paths(value) for name, value in values.items() if name != "path"}
    return [without_paths(value) for value in values] if isinstance(values, list) else values


def to_parameters(record: ImageRecord) -> str:
    """Write the request as A1111 does, so that other tools can read it."""
    request = record.request
    facts = {
        "Steps": request.num_inference_steps,
        "Sampler": request.scheduler,
        "Schedule type": SIGMA_LABELS[request.sigmas or "automatic"],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": record.seed,
        "Size": f"{request.width}x{request.height}" if request.width else None,
        "Model hash": record.model.sha256[:10],
        "Model": record.model.id,
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "Eta": f"{request.eta:g}" if request.eta else None,
        "CFG Rescale phi": f"{request.guidance_rescale:g}" if request.guidance_rescale else None,
        **_variation_facts(request, record.index),
        **_edit_facts(request),
        **_unit_facts(record),
        **_vae_facts(record),
        **_embedding_facts(record),
        **_template_facts(record),
        "Refiner": request.refiner,
        "Refiner switch at": f"{request.refiner_start:g}" if request.refiner else None,
        "Version": f"Studio {VERSION}",
    }
    lines = [" ".join([request.prompt, *map(tag_of, request.loras)])]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def _variation_facts(request: GenerationRequest, index: int) -> dict[str, object]:
    """Return A1111's facts about a variation seed and a hires fix."""
    facts: dict[str, object] = {}
    if request.variation_strength:
        facts["Variation seed"] = request.variation_seed + index
        facts["Variation seed strength"] = f"{request.variation_strength:g}"
    if request.only_enlarges:
        facts["Postprocess upscale by"] = f"{request.hires_scale:g}"
        facts["Postprocess upscaler"] = request.hires_upscaler
    elif request.hires_scale > 1:
        facts["Denoising strength"] = f"{request.hires_strength:g}"
        facts["Hires upscale"] = f"{request.hires_scale:g}"
        facts["Hires steps"] = request.hires_steps or None
        facts["Hires upscaler"] = upscaler_label(request.hires_upscaler)
    return facts


def _edit_facts(request: GenerationRequest) -> dict[str, object]:
    """Return A1111's facts about what a picture started from."""
    if request.task == TEXT2IMAGE:
        return {}
    facts: dict[str, object] = {"Denoising strength": f"{request.strength:g}"}
    if request.task == INPAINT:
        facts |= {"Mask blur": request.mask_blur, "Masked content": request.masked_content}
        if request.only_masked:
            facts |= {"Inpaint area": "Only masked", "Masked area padding": request.padding}
    return facts


def _vae_facts(record: ImageRecord) -> dict[str, object]:
    """Return A1111's fact about a VAE, which it calls by its file."""
    part = next((part for part in record.parts if part.kind == "vae"), None)
    return {"VAE": Path(part.path).name or part.id} if part else {}


def _embedding_facts(record: ImageRecord) -> dict[str, object]:
    """Return A1111's fact about textual inversions."""
    named = {part.id: part.sha256[:12] for part in record.parts if part.kind == "embedding"}
    text = ", ".join(f"{name}: {sha256}" for name, sha256 in named.items()).replace('"', "")
    return {"TI hashes": f'"{text}"'} if named else {}


def _template_facts(record: ImageRecord) -> dict[str, object]:
    """Return what A1111's dynamic prompts call the text from which a prompt was chosen."""
    given = record.template
    told = {"Template": given.prompt, "Negative Template": given.negative_prompt} if given else {}
    told["Styles"] = ", ".join(given.styles) if given else ""
    plain = {name: " ".join(text.replace('"', "'").split()) for name, text in told.items()}
    return {name: f'"{text}"' for name, text in plain.items() if text}


def _unit_facts(record: ImageRecord) -> dict[str, object]:
    """Return A1111's facts about ControlNets, and likewise about adapters."""
    hashes = {(part.kind, part.id): part.sha256[:8] for part in record.parts}
    facts: dict[str, object] = {}
    for field, kind in UNIT_KINDS.items():
        for unit in getattr(record.request, field):
            told = {
                "Module": getattr(unit, "preprocessor", "ip-adapter"),
                "Model": f"{unit.model} [{hashes.get((kind, unit.model), '')}]",
            }
            told["Weight"] = f"{getattr(unit, 'weight', getattr(unit, 'scale', 1)):g}"
            if hasattr(unit, "start"):
                told |= {"Guidance Start": f"{unit.start:g}", "Guidance End": f"{unit.end:g}"}
                told["Pixel Perfect"] = str(unit.resolution is None)
            if hasattr(unit, "mode"):
                told["Control Mode"] = MODE_LABELS[unit.mode]
            text = ", ".join(f"{key}: {value}" for key, value in told.items()).replace('"', "")
            facts[f"ControlNet {len(facts)}"] = f'"{text}"'
    return facts


def read_picture(path: Path) -> Found:
    """Read what a PNG, JPEG or WebP file says about how it was made.

    Raises:
        StudioError: if the file is no such picture.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise StudioError(
                    f"{path.name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read"
                )
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            if comment := user_comment(image):  # where A1111 writes in JPEG and WebP
                texts.setdefault("parameters", comment)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StudioError(f"{path.name} is not a picture that can be read (PNG, JPEG or WebP): {error}") from None
    return from_grid(texts[GRID], path.name) if GRID in texts else from_texts(texts)


def from_grid(text: str, name: str) -> Found:
    """Understand the chunk of a grid."""
    try:
        grid = GridRecord.model_validate_json(text)
    except (ValidationError, StudioError):
        return Found(source="none", notes=("this is a grid of another version of Studio and cannot be read",))
    return Found(
        source="grid",
        values=grid.spec.base.model_dump(),
        notes=(f"{grid_sentence(grid, name)}.",),
        grid=grid,
        text=describe_plot(grid.spec),
    )


def user_comment(image: Image.Image) -> str:
    """Return the EXIF UserComment of a picture, "" if it has none."""
    raw = image.getexif().get_ifd(0x8769).get(0x9286, b"")
    if not isinstance(raw, bytes):
        return str(raw)
    coding = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii"}.get(raw[:8], "utf-8")
    return raw[8:].decode(coding, "replace").strip("\0") if len(raw) > 8 else ""


def from_texts(texts: dict[str, str]) -> Found:
    """Understand the text chunks of a picture."""
    if "studio" in texts:
        try:
            record = ImageRecord.model_validate_json(texts["studio"])
        except (ValidationError, StudioError):  # of another version, or what today's rules refuse
            rest = from_texts({key: text for key, text in texts.items() if key != "studio"})
            note = "the `studio` chunk is of another version and cannot be read"
            return rest.model_copy(update={"notes": (note, *rest.notes)})
        values = record.request.model_dump() | {"seed": record.seed, "num_images_per_prompt": 1}
        if record.request.variation_strength:
            values["variation_seed"] += record.index
        return Found(source="studio", values=values, record=record, text=texts.get("parameters", ""))
    if "parameters" in texts:
        return from_parameters(texts["parameters"])
    if "prompt" in texts:
        return from_comfyui(texts["prompt"])
    return Found(source="none")


def from_parameters(text: str) -> Found:
    """Read A1111's text form."""
    lines = text.strip().split("\n")
    facts_line = lines.pop() if re.search(r"(^|, )Steps: \d", lines[-1]) else ""
    body = "\n".join(lines)
    prompt, _, negative = body.partition("Negative prompt:")
    facts = {key: value.strip().strip('"') for key, value in FACT.findall(facts_line[:FACTS_MAX])}
    values: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    notes = []
    for key, name, convert in (
        ("Steps", "num_inference_steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
        ("Eta", "eta", float),
        ("Denoising strength", "hires_strength" if "Hires upscale" in facts else "strength", float),
        ("Mask blur", "mask_blur", int),
        ("Variation seed", "variation_seed", int),
        ("Variation seed strength", "variation_strength", float),
        ("CFG Rescale phi", "guidance_rescale", float),
        ("Hires upscale", "hires_scale", float),
        ("Hires steps", "hires_steps", int),
        ("Hires upscaler", "hires_upscaler", upscaler_name),
        ("Refiner switch at", "refiner_start", float),
        ("Clip skip", "clip_skip", lambda value: int(value) - 1),
        ("VAE", "vae", vae_name),
    ):
        if key in facts:
            try:
                values[name] = convert(facts[key])
            except ValueError:
                notes.append(f"{key}: {facts[key]} is not a number")
    if size := re.fullmatch(r"(\d+)x(\d+)", facts.get("Size", "")):
        values["width"], values["height"] = int(size[1]), int(size[2])
    if "Sampler" in facts:
        notes += _set_sampler(values, facts["Sampler"], facts.get("Schedule type", ""))
    if "Model" in facts:
        notes.append(
            f"made with the model {facts['Model']} (hash {facts.get('Model hash', 'unknown')}); your model is kept"
        )
    if "Refiner" in facts:
        notes.append(f"its last steps were drawn by the refiner {facts['Refiner']}; choose yours below Refiner")
    return Found(source="a1111", values=values, notes=tuple(notes), text=text)


def vae_name(file: str) -> str:
    """Return what we call a VAE that A1111 names by its file."""
    return re.sub(r"\.(safetensors|ckpt|pt)$", "", file)


def _set_sampler(values: dict[str, Any], sampler: str, schedule: str) -> list[str]:
    """Set scheduler and sigmas; old A1111 wrote both in one word (`DPM++ 2M Karras`)."""
    for suffix in ("Karras", "Exponential", "Beta"):
        if sampler.endswith(f" {suffix}"):
            sampler, schedule = sampler.removesuffix(f" {suffix}"), schedule or suffix
    name = canonical(sampler)
    if name is None:
        return [f"sampling method {sampler} is not known here; the model's own is used"]
    values["scheduler"] = name
    if (kind := schedule.lower().replace(" ", "_")) in SIGMA_LABELS:
        values["sigmas"] = kind
    elif schedule:
        return [f"schedule type {schedule} is not known here; Automatic is used"]
    return []


def from_comfyui(text: str) -> Found:
    """Read the first sampler of a ComfyUI graph and what is wired to it."""
    try:
        nodes = {
            key: node
            for key, node in json.loads(text).items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }
        sampler = next(node["inputs"] for node in nodes.values() if "KSampler" in str(node.get("class_type", "")))
    except (ValueError, AttributeError, StopIteration, RecursionError):
        return Found(source="none", notes=("the ComfyUI graph has no sampler that can be read",))

    def wired(link: Any) -> dict[str, Any]:
        return nodes.get(str(link[0]), {}).get("inputs", {}) if isinstance(link, list) and link else {}

    def words(link: Any) -> str:
        found = wired(link).get("text", "")
        return found if isinstance(found, str) else ""

    values: dict[str, Any] = {
        "prompt": words(sampler.get("positive")),
        "negative_prompt": words(sampler.get("negative")),
    }
    latent = wired(sampler.get("latent_image"))
    candidates = {
        "num_inference_steps": sampler.get("steps"),
        "guidance_scale": sampler.get("cfg"),
        "seed": sampler.get("seed", sampler.get("noise_seed")),
        "width": latent.get("width"),
        "height": latent.get("height"),
    }
    for name, value in candidates.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = value
    notes = _set_sampler(values, str(sampler.get("sampler_name", "")), str(sampler.get("scheduler", "")))
    if values.get("seed", 0) > SEED_MAX:
        notes.append(f"the seed {values.pop('seed')} is larger than {SEED_MAX} and was left out")
    notes.append(
        "read from a ComfyUI graph: only its first sampler; ComfyUI draws noise differently, so the picture will differ"
    )
    return Found(source="comfyui", values=values, notes=tuple(notes))
