"""What a LoRA's file says about itself: our own metadata, kohya's `ss_*`, the Stability model spec's. Headers only."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from studio.fields import Frozen
from studio.loras import kind_of, rank_of
from studio.parts import PROMPT_WIDTHS, Part
from studio.store.headers import safetensors_header
from studio.store.lora_cards import cover_of, read_card

WORDS_MAX = 12


class LoraFacts(Frozen):
    """What a person wants to know of a LoRA before using it; empty where its file does not say.

    Attributes:
        method: LoRA, LoHa, LoKr, DoRA ….
        rank: the largest of its layers; 0 if it has none.
        trigger_words: what calls it in a prompt.
        recommended_weight: how strongly it was meant to count.
        base: the model that it was trained on, as its trainer named it.
        trained: how, in a few words.
        notes: anything else that its maker, or the person who has it, says.
        cover: whether a picture lies beside it.
    """

    method: str
    rank: int
    trigger_words: tuple[str, ...] = ()
    recommended_weight: float | None = None
    base: str = ""
    trained: str = ""
    notes: str = ""
    cover: bool = False


def read_lora_facts(path: Path) -> LoraFacts:
    """Read a file that the library can use."""
    header, card = safetensors_header(path), read_card(path)
    told = {name: str(value) for name, value in header.get("__metadata__", {}).items()}
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return LoraFacts(
        method=kind_of(shapes),
        rank=rank_of(shapes),
        trigger_words=_own_words(card) or _trigger_words(told),
        recommended_weight=_number(str(card.get("preferred weight") or told.get("recommended_weight", ""))),
        base=told.get("ss_sd_model_name") or told.get("base_model") or told.get("modelspec.architecture", ""),
        trained=_trained(told),
        notes=str(card.get("notes") or card.get("description") or "")
        or told.get("notes")
        or told.get("ss_training_comment")
        or told.get("modelspec.description", ""),
        cover=cover_of(path) is not None,
    )


def lora_rows(parts: list[Part]) -> list[dict[str, Any]]:
    """Describe LoRA files, usable or not, for lists."""
    rows = []
    for part in parts:
        facts = {} if part.problem else read_lora_facts(part.path).model_dump()
        base = part.shape.get("cross_attention_dim")
        fits = (
            PROMPT_WIDTHS.get(base, "").strip(" ()")
            or part.shape.get("denoiser")
            or ("Flux, Chroma" if part.shape.get("single_blocks") else "")
            or (f"prompts {base} wide" if base else "")
        )
        rows.append({"id": part.id, "kind": "lora", "fits": fits, **facts, "problem": part.problem})
    return rows


def _own_words(card: dict[str, Any]) -> tuple[str, ...]:
    """Return the words that a person wrote into A1111's card."""
    words = str(card.get("activation text") or "").split(",")
    return tuple(word.strip() for word in words if word.strip())[:WORDS_MAX]


def _trigger_words(told: dict[str, str]) -> tuple[str, ...]:
    """Return the words that call it: as said, or else the tags that every one of kohya's captions begins with or repeats."""
    if phrase := told.get("modelspec.trigger_phrase"):
        return (phrase,)
    own = _json(told.get("trigger_words", ""))
    if isinstance(own, list):
        return tuple(map(str, own))[:WORDS_MAX]
    tags: Counter[str] = Counter()
    folders = _json(told.get("ss_tag_frequency", ""))
    for counts in folders.values() if isinstance(folders, dict) else ():
        if isinstance(counts, dict):
            tags.update({tag.strip(): int(number) for tag, number in counts.items() if isinstance(number, int)})
    most = tags.most_common(1)[0][1] if tags else 0
    return tuple(tag for tag, number in tags.most_common(WORDS_MAX) if tag and 2 * number >= most)


def _trained(told: dict[str, str]) -> str:
    parts = {
        "steps": told.get("steps") or told.get("ss_steps") or told.get("ss_max_train_steps"),
        "epochs": told.get("ss_num_epochs"),
        "pictures": told.get("pictures") or told.get("ss_num_train_images"),
        "learning rate": told.get("learning_rate") or told.get("ss_learning_rate"),
    }
    return ", ".join(
        f"{value} {name}" if name != "learning rate" else f"{name} {value}" for name, value in parts.items() if value
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
