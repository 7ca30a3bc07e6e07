"""From text to what the denoiser reads: CLIP prompts of any length, in chunks of 75 tokens as A1111 does, and clip skip."""

from typing import Any

import torch

from studio.errors import InvalidRequest
from studio.spec import GenerationRequest


def encode_prompts(pipe: Any, request: GenerationRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Encode prompt and negative prompt of a CLIP pipeline.

    Args:
        pipe: a pipeline with `tokenizer` and `text_encoder`.
        request: for its prompts, guidance and clip skip.

    Returns:
        (1, chunks * 77, width) states for each, padded to the same number of chunks; the second is None when guidance is off.

    Raises:
        InvalidRequest: if clip skip leaves no layer.
    """
    layers = pipe.text_encoder.config.num_hidden_layers
    if request.clip_skip >= layers:
        raise InvalidRequest(
            "clip_skip",
            f"clip_skip={request.clip_skip} must be less than {layers}, the layers of this model's text encoder",
        )
    texts = (
        [request.prompt, request.negative_prompt]
        if request.guidance_scale and request.guidance_scale > 1
        else [request.prompt]
    )
    chunks = chunk_tokens(pipe.tokenizer, texts)
    states = [encode_chunks(pipe.text_encoder, row[None], request.clip_skip) for row in chunks]
    return states[0], states[1] if len(states) > 1 else None


def chunk_tokens(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Cut texts into chunks between the tokenizer's own start and end tokens, (texts, chunks, model_max_length)."""
    length = tokenizer.model_max_length
    room = length - 2
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    number = max(1, max(-(-len(row) // room) for row in ids))
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[[bos, *row[i * room : (i + 1) * room], eos] for i in range(number)] for row in ids]
    return torch.tensor([[part + [pad] * (length - len(part)) for part in row] for row in rows])


def encode_chunks(encoder: Any, chunks: torch.Tensor, clip_skip: int = 0) -> torch.Tensor:
    """Encode (N, chunks, length) ids, each chunk alone, and join their states, (N, chunks * length, width).

    With `clip_skip` the last layers are left out and the final norm is applied to what the layer before them says, as diffusers
    means to; its own way fails since transformers 5.6 flattened CLIPTextModel.
    """
    ids = chunks.flatten(0, 1).to(encoder.device)
    if clip_skip:
        hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        states = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
    else:
        states = encoder(ids)[0]
    return states.reshape(len(chunks), -1, states.shape[-1])
