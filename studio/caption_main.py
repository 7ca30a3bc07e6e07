"""The child of `Captions`: loads a captioner once, describes one picture after the other, and says so in JSON lines.

It ends when the pipe to it closes. The device is held for one picture at a time, so that others come in between.
"""

import csv
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError

from studio.captioning import FOLDER, TAGS, Captioner, look_at
from studio.download_main import hub_plan, run
from studio.engine.canvas import flatten
from studio.engine.devices import Device, open_device
from studio.errors import InvalidRequest, ModelError, StudioError
from studio.lease import DeviceLease
from studio.sources import Source, captioner_files
from studio.store import writer
from studio.store.blobs import Refused, decode, limit_pillow, read_file
from studio.store.edits import checked_crop, cropped

logger = logging.getLogger(__name__)

QUESTION = "Describe this image in one sentence."  # for models that are asked in a chat and were given no prompt
TASK = "<CAPTION>"  # Florence-2's usual one
ASKED = 2  # tokens that begin a caption without a prompt
CHARACTER, GENERAL = "4", "0"  # categories of tags; the rest are ratings
SHORT = 3  # letters up to which a tag is a face such as ^_^ and keeps its underscore

Describe = Callable[[Image.Image], str]


class Tag(NamedTuple):
    """One of a tagger's words."""

    name: str
    category: str


def main() -> int:
    """Do what stdin says; return 0, or 1 after a line with the problem."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    limit_pillow()
    channel = 1
    try:
        if source := order["source"]:
            order["captioner"] = str(fetch(Source.model_validate(source), Path(order["models"]), Path(order["folder"])))
        channel = os.dup(1)
        os.dup2(2, 1)  # libraries print: that goes to the log
        work(order, lambda event: say(channel, event))
        problem, field = "", ""
    except StudioError as error:
        problem, field = str(error), getattr(error, "field", "")
    except OSError as error:
        problem, field = f"the captioner could not be read or written: {error.strerror or error}", ""
    except torch.OutOfMemoryError:
        problem, field = (
            "the device has too little memory for this captioner; take a smaller one, or wait for other work",
            "",
        )
    except Exception as error:  # a process boundary: the page shall hear of it
        logger.exception("captioning")
        problem, field = f"captioning failed ({type(error).__name__}: {first_line(error)})", ""
    say(channel, {"event": "problem", "text": problem, "field": field} if problem else {"event": "done"})
    return 1 if problem else 0


def say(channel: int, event: dict[str, Any]) -> None:
    os.write(channel, (json.dumps(event) + "\n").encode())


def _end_with_parent() -> None:
    """End when the app is gone: it holds the other end of stdin."""
    sys.stdin.read()
    os._exit(3)


def fetch(source: Source, models: Path, folder: Path) -> Path:
    """Download a captioner from the Hub; return its folder."""
    writer.make_folder(models)
    plan = hub_plan(source, models, captioner_files, FOLDER)
    run(plan, folder, plan.told(models))
    return plan.target


def work(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load the captioner and describe every picture.

    Raises:
        StudioError: if the captioner cannot be used.
    """
    tell({"event": "loading"})
    device = open_device(order["device"], order["cpu_threads"])
    lease = DeviceLease(device.key)

    def waiting() -> bool:
        tell({"event": "waiting"})
        return False

    with lease.held(once(waiting)):
        describe = load(Path(order["captioner"]), device, order)
    for picture in order["pictures"]:
        try:
            image = seen(decode(read_file(Path(picture["path"]))), picture["crop"])
        except Refused as refusal:
            tell({"event": "refused", "picture": picture["name"], "text": f"{picture['name']} {refusal}"})
            continue
        with lease.held(once(waiting)), torch.inference_mode():
            text = describe(image)
        tell({"event": "caption", "picture": picture["name"], "text": text})


def once(ask: Callable[[], bool]) -> Callable[[], bool]:
    """Return what calls a function the first time that it is called, and answers False ever after."""
    left = [ask]
    return lambda: left.pop()() if left else False


def seen(picture: Image.Image, crop: list[float] | None) -> Image.Image:
    """Return what training sees of a picture: cropped, transparent parts white."""
    picture = cropped(picture, checked_crop(crop) if crop else None)
    return Image.fromarray(flatten(picture))


def load(folder: Path, device: Device, order: dict[str, Any]) -> Describe:
    """Load a captioner; return what describes a picture with it.

    Raises:
        ModelError: if it cannot be used.
    """
    found = look_at(folder)
    if found.problem:
        raise ModelError(f"{found.name} {found.problem}")
    try:
        return (load_tagger if found.kind == "tags" else load_captioner)(found, device, order)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        logger.exception("loading %s", folder)
        raise ModelError(
            f"{found.name} cannot be loaded: {first_line(error)}; copy it again, or choose another"
        ) from error


def load_captioner(found: Captioner, device: Device, order: dict[str, Any]) -> Describe:
    """Load a model that writes sentences."""
    import transformers

    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(found.path, **local)
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(
            f"{found.name} is of the kind {config.model_type!r}, with which transformers {transformers.__version__} describes "
            "no pictures; take a BLIP, BLIP-2, GIT, Florence-2 or another vision-language model"
        )
    processor = transformers.AutoProcessor.from_pretrained(found.path, **local)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        found.path, config=config, use_safetensors=True, dtype=device.dtype, output_loading_info=True, **local
    )
    if missing := sorted(info["missing_keys"]):  # the library would make random ones
        raise ModelError(f"{found.name} lacks {len(missing)} weights ({missing[0]}); copy it again")
    model = model.to(device.place).eval()
    prompt = order["prompt"] or (TASK if config.model_type == "florence2" else "")
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf

    def describe(image: Image.Image) -> str:
        inputs = {
            name: one.to(device.place, device.dtype if one.is_floating_point() else one.dtype)
            for name, one in inputs_of(processor, image, prompt).items()
        }
        taken = inputs["input_ids"].shape[-1] if "input_ids" in inputs else ASKED
        if order["max_length"] + taken > positions:
            raise InvalidRequest(
                "max_length",
                f"max_length={order['max_length']} is more than {found.name} can write after this prompt; use at most "
                f"{max(1, positions - taken)}",
            )
        made = model.generate(**inputs, max_new_tokens=order["max_length"], do_sample=False)
        said, *asked = (
            processor.batch_decode(ids, skip_special_tokens=True)[0]
            for ids in (made, inputs.get("input_ids"))
            if ids is not None
        )
        return without_prompt(said, *asked)

    return describe


def inputs_of(processor: Any, image: Image.Image, prompt: str) -> dict[str, torch.Tensor]:
    """Return a model's inputs for one picture; a model that is asked in a chat gets a question if there is no prompt."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt or QUESTION}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    return processor(images=image, text=prompt or None, return_tensors="pt")


def without_prompt(said: str, asked: str = "") -> str:
    """Leave out the prompt that many models repeat; a sign or two may stand before it."""
    at = said.casefold().find(asked.strip().casefold())
    said = said[at + len(asked.strip()) :] if 0 <= at <= 2 else said
    return " ".join(said.split())


def load_tagger(found: Captioner, device: Device, order: dict[str, Any]) -> Describe:
    """Load a tagger: a classifier of timm with the words that it knows, as SmilingWolf's third version of WD taggers."""
    import timm
    from timm.data import create_transform, resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    known = read_tags(found.path / TAGS)
    (weights,) = sorted(found.path.glob("*.safetensors"))[:1]
    model: Any = timm.create_model(f"local-dir:{found.path}", pretrained=False, checkpoint_path=str(weights))
    if model.num_classes != len(known):
        raise ModelError(f"{found.name} knows {model.num_classes} tags and {TAGS} names {len(known)}; copy it again")
    model = model.to(device.place, device.dtype).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))

    def describe(image: Image.Image) -> str:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = transform(square)[[2, 1, 0]]  # (3, H, W), blue first: they were trained with OpenCV's pictures
        sure = torch.sigmoid(model(pixels[None].to(device.place, device.dtype))[0]).float().tolist()
        return ", ".join(chosen_tags(known, sure, order))

    return describe


def read_tags(path: Path) -> list[Tag]:
    """Read the words of a tagger.

    Raises:
        ModelError: if the file is none.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "category"} <= rows[0].keys():
        raise ModelError(f"{path.name} of {path.parent.name} has no columns name and category; copy it again")
    return [Tag(row["name"], row["category"]) for row in rows]


def chosen_tags(known: list[Tag], sure: list[float], order: dict[str, Any]) -> Iterator[str]:
    """Yield the tags that a tagger is sure enough of: characters first, then the surest; ratings are left out."""
    limits = {CHARACTER: order["character_threshold"], GENERAL: order["threshold"]}
    found = [(tag, part) for tag, part in zip(known, sure, strict=True) if part >= limits.get(tag.category, math.inf)]
    found.sort(key=lambda pair: (pair[0].category != CHARACTER, -pair[1]))
    for tag, _ in found[: order["max_length"]]:
        yield tag.name if len(tag.name) <= SHORT else tag.name.replace("_", " ")


def first_line(error: BaseException) -> str:
    """Return the beginning of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
