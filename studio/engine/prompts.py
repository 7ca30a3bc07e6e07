"""From text to what the denoiser reads: CLIP prompts of any length, in chunks of 75 tokens as A1111 does, T5, and clip skip.

Weights, breaks and schedules (`prompt_syntax`) count where a family's descriptor says so; T5 hears the words without weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from studio.chunks import Token, cut_chunks
from studio.engine.inversions import Inversions
from studio.engine.language import LANGUAGE_ENCODERS, Draw
from studio.engine.places import place_of
from studio.errors import InvalidRequest, shown
from studio.families import FAMILIES
from studio.family import ModelFamily
from studio.prompt_syntax import Piece, moments, parse_prompt, plain_text, without_escapes
from studio.records import ModelRef
from studio.spec import GenerationRequest

Embeddings = dict[str, torch.Tensor]  # name of a pipeline's argument -> (1, ...)
NONE = Inversions()


@dataclass(frozen=True)
class Prompts:
    """A prompt and a negative prompt, encoded; `negative` is empty when guidance is off.

    `later` is what they become, each from its part of the steps on, ascending.
    """

    positive: Embeddings
    negative: Embeddings
    later: tuple[tuple[float, "Prompts"], ...] = ()

    def at(self, fraction: float) -> "Prompts":
        """Return what counts at a part of the steps."""
        begun = [prompts for start, prompts in self.later if start <= fraction + 1e-6]
        return begun[-1] if begun else self

    def arguments(self, number: int) -> Embeddings:
        """Return what a pipeline is told, for `number` pictures."""
        named = self.positive | {f"negative_{name}": part for name, part in self.negative.items()}
        return {name: repeated(part, number) for name, part in named.items()}

    def switched(
        self, names: Mapping[str, str], values: Mapping[str, torch.Tensor], number: int, *, guided: bool
    ) -> Embeddings:
        """Return a pipeline's own tensors for its next steps, with or without guidance.

        Args:
            names: the pipeline's tensor -> the embedding it is made of, or "" for rows that are the same for both.
            values: the pipeline's tensors as they are.
            number: of pictures.
            guided: whether the negative rows come first.
        """
        changed = {}
        for name, embedding in names.items():
            row = repeated(self.positive[embedding], number) if embedding else values[name][-number:]
            if guided:
                other = repeated(self.negative[embedding], number) if embedding else row
            changed[name] = torch.cat([other, row]) if guided else row
        return changed


def repeated(part: Any, number: int) -> Any:
    """Repeat (1, ...) to (number, ...); a list of one tensor, whose length may differ from another's, to one of `number`.

    What has a row for each picture already stays what it is.
    """
    if len(part) == number:
        return part
    return part * number if isinstance(part, list) else part.repeat(number, *[1] * (part.ndim - 1))


def encode_prompts(
    pipe: Any, request: GenerationRequest, model: ModelRef, inversions: Inversions = NONE, draw: Draw | None = None
) -> Prompts:
    """Encode prompt and negative prompt, the latter only where it counts.

    Args:
        pipe: a pipeline of the model.
        request: for its prompts, guidance and clip skip.
        model: for its family.
        inversions: that the prompts name.
        draw: for models with a prior; None is for one picture with the request's seed.

    Raises:
        InvalidRequest: if clip skip leaves no layer, or a prompt is longer than the model reads.

    Returns:
        What counts at first, with what it becomes.
    """
    family = FAMILIES[model.family]
    texts = {"prompt": request.prompt}
    if (getattr(request, family.guidance) or 1) > 1:
        texts["negative_prompt"] = request.negative_prompt
    steps = request.num_inference_steps or 1
    draw = draw or Draw([torch.Generator("cpu").manual_seed(max(request.seed, 0))], request.prior_guidance_scale)
    told = {
        name: moments(text, steps, name) if family.syntax else [(0.0, without_escapes(text))]
        for name, text in texts.items()
    }
    known: dict[tuple[str, ...], Prompts] = {}
    said = []
    for start in sorted({start for schedule in told.values() for start, _ in schedule}):
        now = {name: [text for begins, text in schedule if begins <= start][-1] for name, schedule in told.items()}
        key = tuple(now.values())
        if key not in known:
            with inversions.applied(pipe):
                more = (inversions,) if family.syntax else (draw,) if family.prior else ()
                encoded = ENCODERS[family.prompts](pipe, family, now, request.clip_skip, *more)
            known[key] = Prompts(encoded[0], encoded[1] if len(encoded) > 1 else {})
        said.append((start, known[key]))
    return replace(said[0][1], later=tuple(said)) if len(said) > 1 else said[0][1]


def encode_clip(
    pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int, inversions: Inversions = NONE
) -> list[Embeddings]:
    """Encode for one CLIP: states (1, chunks * 77, width)."""
    check_clip_skip(clip_skip, pipe.text_encoder)
    ids, weights = chunk_prompts(pipe.tokenizer, texts, inversions)
    encoder = pipe.text_encoder
    states = [encode_chunks(encoder, row[None], clip_skip) for row in ids]
    if (weights != 1).any():
        empty = encode_chunks(encoder, chunk_tokens(pipe.tokenizer, [""]), clip_skip)
        states = [weighted(*pair, empty) for pair in zip(states, weights, strict=True)]
    return [{"prompt_embeds": state} for state in states]


def encode_sdxl(
    pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int, inversions: Inversions = NONE
) -> list[Embeddings]:
    """Encode for two CLIPs: states (1, chunks * 77, width 1 + width 2), and what the second says of the first chunk (1, width 2).

    Its training made an empty negative prompt all zeros, where the model says so.
    """
    parts = [
        (getattr(pipe, f"tokenizer{which}"), getattr(pipe, f"text_encoder{which}"))
        for which in ("", "_2")
        if getattr(pipe, f"text_encoder{which}", None) is not None
    ]
    states, pooled = encode_penultimate(parts, texts, clip_skip, inversions)
    encoded = [
        {"prompt_embeds": state, "pooled_prompt_embeds": pool[-1]} for state, pool in zip(states, pooled, strict=True)
    ]
    if pipe.config.get("force_zeros_for_empty_prompt") and texts.get("negative_prompt") == "":
        encoded[1] = {name: torch.zeros_like(part) for name, part in encoded[1].items()}
    return encoded


def encode_sd3(
    pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int, inversions: Inversions = NONE
) -> list[Embeddings]:
    """Encode for two CLIPs and T5: the CLIPs' states, padded to T5's width, before T5's; pooled of both CLIPs.

    Without its T5 encoder, which is optional, the model gets zeros in its place.
    """
    parts = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
    states, pooled = encode_penultimate(parts, texts, clip_skip, inversions)
    if pipe.text_encoder_3 is None:
        width = pipe.transformer.config.joint_attention_dim
        read = [states[0].new_zeros(1, family.text_limits[0], width) for _ in texts]
    else:
        plain = {name: plain_text(parse_prompt(text, name)) for name, text in texts.items()}
        read = encode_t5(pipe.tokenizer_3, pipe.text_encoder_3, family, plain)
    encoded = []
    for state, pool, more in zip(states, pooled, read, strict=True):
        wide = torch.nn.functional.pad(state, (0, more.shape[-1] - state.shape[-1]))
        joined = torch.cat([wide, more], dim=-2)  # (1, chunks * 77 + length, width)
        encoded.append({"prompt_embeds": joined, "pooled_prompt_embeds": torch.cat(pool, dim=-1)})
    return encoded


def encode_flux(
    pipe: Any, family: ModelFamily, texts: dict[str, str], clip_skip: int, inversions: Inversions = NONE
) -> list[Embeddings]:
    """Encode for T5, (1, length, width), and pooled for CLIP, (1, width), which hears only the first 75 tokens."""
    read = encode_t5(pipe.tokenizer_2, pipe.text_encoder_2, family, texts)
    first = chunk_tokens(pipe.tokenizer, list(texts.values()))[:, 0].to(place_of(pipe.text_encoder))
    pooled = [pipe.text_encoder(row[None]).pooler_output for row in first]
    return [{"prompt_embeds": states, "pooled_prompt_embeds": pool} for states, pool in zip(read, pooled, strict=True)]


Encoder = Callable[
    ..., list[Embeddings]
]  # (pipe, family, texts, clip skip); inversions too where prompts have a syntax, what to draw with where a prior reads them
ENCODERS: dict[str, Encoder] = LANGUAGE_ENCODERS | {
    "clip": encode_clip,
    "sdxl": encode_sdxl,
    "sd3": encode_sd3,
    "flux": encode_flux,
}


def check_clip_skip(clip_skip: int, *encoders: Any) -> None:
    """Refuse to leave out all layers of a text encoder."""
    layers = min(encoder.config.num_hidden_layers for encoder in encoders)
    if clip_skip >= layers:
        raise InvalidRequest(
            "clip_skip", f"clip_skip={clip_skip} must be less than {layers}, the layers of this model's text encoder"
        )


def chunk_tokens(tokenizer: Any, texts: list[str], least: int = 1) -> torch.Tensor:
    """Cut texts into chunks between the tokenizer's own start and end tokens, (texts, chunks, model_max_length).

    Args:
        tokenizer: of a CLIP.
        texts: all get as many chunks as the longest.
        least: number of chunks.
    """
    return _chunks(tokenizer, [[[Piece(text)]] for text in texts], NONE, least)[0]


def chunk_prompts(
    tokenizer: Any, texts: dict[str, str], inversions: Inversions = NONE, least: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut prompts (field -> text) into chunks as their weights and breaks say: token ids and weights, both as `chunk_tokens`.

    Ids below 0 are vectors of `inversions`, which must be applied where they are read.
    """
    return _chunks(tokenizer, [parse_prompt(text, name) for name, text in texts.items()], inversions, least)


def _chunks(
    tokenizer: Any, prompts: list[list[list[Piece]]], inversions: Inversions, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the sections of each prompt into chunks."""
    length, begin, end = (
        tokenizer.model_max_length,
        Token(tokenizer.bos_token_id, 1.0),
        Token(tokenizer.eos_token_id, 1.0),
    )
    filler = Token(tokenizer.pad_token_id, 1.0)
    groups = partial(inversions.groups, lambda text: _token_ids(tokenizer, text))
    rows = [cut_chunks(sections, groups, length - 2) for sections in prompts]
    number = max(least, *map(len, rows))
    filled = [[[begin, *chunk, end] for chunk in [*row, *[[]] * (number - len(row))]] for row in rows]
    filled = [[chunk + [filler] * (length - len(chunk)) for chunk in row] for row in filled]
    ids, weights = ([[[token[i] for token in chunk] for chunk in row] for row in filled] for i in (0, 1))
    return torch.tensor(ids), torch.tensor(weights)


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def weighted(states: torch.Tensor, weights: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Move each token's state away from what an empty prompt says at its place, or towards it.

    Args:
        states: (1, chunks * length, width).
        weights: (chunks, length); 1 leaves a state as it is.
        empty: (1, length, width).
    """
    base = empty.repeat(1, len(weights), 1)
    return base + (states - base) * weights.flatten()[None, :, None].to(states)


def encode_chunks(encoder: Any, chunks: torch.Tensor, clip_skip: int = 0) -> torch.Tensor:
    """Encode (N, chunks, length) ids, each chunk alone, and join their states, (N, chunks * length, width).

    With `clip_skip` the last layers are left out and the final norm is applied to what the layer before them says, as diffusers
    means to; its own way fails since transformers 5.6 flattened CLIPTextModel.
    """
    ids = chunks.flatten(0, 1).to(place_of(encoder))
    if clip_skip:
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        states = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
    else:
        states = encoder(ids)[0]
    return states.reshape(len(chunks), -1, states.shape[-1])


def encode_penultimate(
    parts: list[tuple[Any, Any]], texts: dict[str, str], clip_skip: int, inversions: Inversions = NONE
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Encode with several CLIPs as models since SDXL do: the states before the last layer, `clip_skip` layers earlier still.

    Args:
        parts: tokenizer and text encoder of each.
        texts: field -> prompt; all get as many chunks.
        clip_skip: counts from the layer before the last.
        inversions: that the texts name.

    Returns:
        For each text (1, chunks * 77, sum of widths), and each encoder's own summary of the first chunk, (1, width).
    """
    check_clip_skip(clip_skip, *(encoder for _, encoder in parts))
    most = max(chunk_prompts(tokenizer, texts, inversions)[0].shape[1] for tokenizer, _ in parts)
    states: list[list[torch.Tensor]] = [[] for _ in texts]
    pooled: list[list[torch.Tensor]] = [[] for _ in texts]
    for tokenizer, encoder in parts:
        ids, weights = chunk_prompts(tokenizer, texts, inversions, most)
        for number, chunks in enumerate(ids):
            hidden, summary = _penultimate(encoder, chunks, clip_skip)
            if (weights[number] != 1).any():
                hidden = weighted(
                    hidden, weights[number], _penultimate(encoder, chunk_tokens(tokenizer, [""])[0], clip_skip)[0]
                )
            states[number].append(hidden)
            pooled[number].append(summary)
    return [torch.cat(row, dim=-1) for row in states], pooled


def _penultimate(encoder: Any, chunks: torch.Tensor, clip_skip: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode (chunks, length) ids: states (1, chunks * length, width), and the summary of the first chunk, (1, width)."""
    said = encoder(chunks.to(place_of(encoder)), output_hidden_states=True)
    hidden = said.hidden_states[-(clip_skip + 2)]
    return hidden.reshape(1, -1, hidden.shape[-1]), said[0][:1]


def encode_t5(tokenizer: Any, encoder: Any, family: ModelFamily, texts: dict[str, str]) -> list[torch.Tensor]:
    """Encode texts (field -> text) with T5, (1, length, width) each, padded to the least of the family's lengths that holds them.

    Raises:
        InvalidRequest: if one is longer than the greatest; nothing is cut off silently.
    """
    ids = {field: tokenizer(text, verbose=False).input_ids for field, text in texts.items()}  # with the end token
    most = family.text_limits[-1]
    for field, row in ids.items():
        if len(row) > most:
            lost = tokenizer.decode(row[most - 1 :], skip_special_tokens=True)
            raise InvalidRequest(
                field,
                f"{field} has {len(row)} tokens and {family.title} reads {most}; shorten it by what begins with {shown(lost)}",
            )
    length = next(limit for limit in family.text_limits if limit >= max(map(len, ids.values())))
    rows = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids.values()]
    return [encoder(torch.tensor([row], device=place_of(encoder)))[0] for row in rows]
