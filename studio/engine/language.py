"""Prompts for language models, and for T5 alone: encoded as the pipelines do it, and none of it is cut off."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studio.errors import InvalidRequest, listed, shown
from studio.family import ModelFamily


@dataclass(frozen=True)
class Draw:
    """What a prior draws with: its result is not decided by the words alone.

    Attributes:
        generators: one a picture.
        guidance: how strictly the prompt is followed; 1 is off.
        check: called after each step; raises if the job should stop.
    """

    generators: Sequence[torch.Generator]
    guidance: float
    check: Callable[[], None] = lambda: None


Encoded = list[dict[str, Any]]  # for each text: name of a pipeline's argument -> (1, ...), or a list of one tensor
Ask = Callable[[str], str]


def asked(pipe: Any, **options: Any) -> Ask:
    """Return what puts a text into the chat that its model was trained with."""

    def ask(text: str) -> str:
        said = [{"role": "user", "content": text}]
        return pipe.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **options)

    return ask


def check_lengths(tokenizer: Any, family: ModelFamily, texts: dict[str, str], ask: Ask = str) -> None:
    """Refuse texts (field -> text) that are longer than a family reads.

    Args:
        tokenizer: of its text encoder.
        family: with one limit.
        texts: as they are told.
        ask: puts a text among the words that count too.

    Raises:
        InvalidRequest: naming where to cut.
    """
    most = family.text_limits[-1]
    for field, text in texts.items():
        number = len(tokenizer(ask(text)).input_ids)
        if number <= most:
            continue
        words = tokenizer(text, add_special_tokens=False).input_ids
        lost = tokenizer.decode(words[len(words) - (number - most) :], skip_special_tokens=True)
        raise InvalidRequest(
            field,
            f"{field} has {number} tokens and {family.title} reads {most}; shorten it by what begins with {shown(lost)}",
        )


def encode_z_image(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for Z-Image: the states before Qwen3's last layer, as many as there are tokens, [(length, width)]."""
    check_lengths(pipe.tokenizer, family, texts, asked(pipe, enable_thinking=True))
    encoded = [pipe.encode_prompt(text, do_classifier_free_guidance=False)[0] for text in texts.values()]
    return [{"prompt_embeds": states} for states in encoded]


def encode_flux2(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for Flux.2 klein: three of Qwen3's layers beside each other, (1, 512, 3 * width)."""
    check_lengths(pipe.tokenizer, family, texts, asked(pipe, enable_thinking=False))
    return [{"prompt_embeds": pipe.encode_prompt(text)[0]} for text in texts.values()]


def encode_qwen_image(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for Qwen-Image: what Qwen2.5-VL says after its instruction, (1, length, width)."""
    _, _, spoken = pipe.prompt_template_encode.partition("<|im_start|>user\n")  # what comes before is left out again
    check_lengths(pipe.tokenizer, family, texts, spoken.format)
    most = family.text_limits[-1]
    return [{"prompt_embeds": pipe.encode_prompt(text, max_sequence_length=most)[0]} for text in texts.values()]


def encode_chroma(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for Chroma: T5 with a mask that lets one token of the padding through, (1, 512, width)."""
    check_lengths(pipe.tokenizer, family, texts)
    encoded = [pipe.encode_prompt(text, do_classifier_free_guidance=False) for text in texts.values()]
    return [{"prompt_embeds": states, "prompt_attention_mask": mask} for states, _, mask, *_ in encoded]


def encode_pixart(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for PixArt: T5 with its mask, (1, 300, width); capital letters are small ones for it."""
    small = {field: text.lower().strip() for field, text in texts.items()}
    check_lengths(pipe.tokenizer, family, small)
    encoded = [pipe.encode_prompt(text, do_classifier_free_guidance=False)[:2] for text in small.values()]
    return [{"prompt_embeds": states, "prompt_attention_mask": mask} for states, mask in encoded]


def encode_deepfloyd(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for DeepFloyd IF: T5 with its mask, (1, 77, width); capital letters are small ones for it."""
    small = {field: text.lower().strip() for field, text in texts.items()}
    check_lengths(pipe.tokenizer, family, small)
    encoded = [pipe.encode_prompt(text, do_classifier_free_guidance=False)[0] for text in small.values()]
    return [{"prompt_embeds": states} for states in encoded]


def encode_sana(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Encode for Sana: Gemma's states with their mask, (1, 300, width); the prompt follows the pipeline's own instruction."""
    check_lengths(pipe.tokenizer, family, texts)
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    encoded: list[tuple[torch.Tensor, torch.Tensor]] = [
        pipe.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            complex_human_instruction=instruction if field == "prompt" else None,
        )[:2]
        for field, text in texts.items()
    ]
    return [{"prompt_embeds": states, "prompt_attention_mask": mask} for states, mask in encoded]


def encode_kandinsky(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int, draw: Draw) -> Encoded:
    """Encode for Kandinsky: its prior makes the embedding of a picture, (pictures, width), one picture after the other.

    Without a negative prompt guidance leads away from the embedding of a black picture, as in the pipeline.
    """
    check_lengths(pipe.prior.tokenizer, family, texts)

    def after_step(*_: Any) -> dict[str, Any]:
        draw.check()
        return {}

    rows = [
        pipe.prior(
            texts["prompt"],
            texts.get("negative_prompt") or None,
            generator=generator,
            guidance_scale=draw.guidance,
            return_dict=False,
            callback_on_step_end=after_step,
        )
        for generator in draw.generators
    ]
    embeds = [{"image_embeds": torch.cat(parts)} for parts in zip(*rows, strict=True)]
    return embeds[: len(texts)]


def encode_nothing(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Tell a model without words nothing."""
    return [{}]


def encode_class(pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int) -> Encoded:
    """Tell a model of classes which one is meant, (1,); without a word, and for guidance, none.

    Raises:
        InvalidRequest: if it has no such class.
    """
    known = {name.casefold(): place for name, place in pipe.labels.items()}
    wanted = texts["prompt"].strip()
    if wanted and wanted.casefold() not in known:
        raise InvalidRequest(
            "prompt", f"prompt={shown(wanted)} is no class of this model; it has: {listed([*pipe.labels])}"
        )
    place = known[wanted.casefold()] if wanted else pipe.no_class
    return [{"class_labels": torch.tensor([one])} for one in (place, pipe.no_class)[: len(texts)]]


LANGUAGE_ENCODERS: dict[str, Callable[..., Encoded]] = {
    "z_image": encode_z_image,
    "flux2": encode_flux2,
    "qwen_image": encode_qwen_image,
    "chroma": encode_chroma,
    "pixart": encode_pixart,
    "deepfloyd": encode_deepfloyd,
    "sana": encode_sana,
    "kandinsky": encode_kandinsky,
    "nothing": encode_nothing,
    "classes": encode_class,
}
