"""Stage `text`: the tokenizer, and a CLIPTextModel that learns to say what a caption means, before anything is drawn.

A throw-away read-out predicts every attribute of the scene from the encoder's states; then the encoder is frozen. Long
captions are cut into chunks of 75 tokens, each encoded alone and the states joined, as A1111 does: that is what is trained.
"""

import json
import random
from collections import Counter

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.shapes.world import (
    COLOURS,
    COUNTS,
    FILLERS,
    OPENERS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    STYLES,
    WORDS,
    Scene,
    caption,
    plural,
    training_scene,
)
from studio.engine.prompts import chunk_tokens, encode_chunks

WIDTH = 128
LENGTH = 77
VOCABULARY = 1408
BATCH = 32
LONG_BATCHES = 0.12

HEADS: dict[str, tuple[str, ...]] = {  # what the read-out predicts; "" is "not said"
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "other colour": ("", *COLOURS),
    "other shape": ("", *SHAPES),
    "background": ("", *COLOURS),
    "style": STYLES,
    "size": ("", "small", "big"),
    "position": POSITIONS,
    "count": ("", *COUNTS),
    "relation": ("", *RELATIONS),
}


def labels(scene: Scene, text: str) -> list[int]:
    """Return the index of every attribute in `HEADS` that this caption of the scene says."""
    first, second = scene.things[0], scene.things[1] if scene.kind == "pair" else None
    said = scene.background in text.replace(",", "").split()
    values = (
        first.colour,
        first.shape,
        second.colour if second else "",
        second.shape if second else "",
        scene.background if said else "",
        scene.style,
        scene.size,
        scene.position,
        scene.count,
        scene.relation,
    )
    return [choices.index(value) for choices, value in zip(HEADS.values(), values, strict=True)]


def build_tokenizer() -> CLIPTokenizer:
    """Train byte-level BPE with CLIP's own normaliser and splitting, so that every word of the world is one token."""
    rng = random.Random("tokenizer")
    corpus = Counter(
        word for _ in range(20_000) for word in caption(training_scene(rng), rng).replace(",", " ,").split()
    )
    grammar = [
        *COLOURS,
        *SHAPES,
        *map(plural, SHAPES),
        *COUNTS,
        *" ".join((*POSITIONS, *RELATIONS, *STYLES, "small big a an on with background style")).split(),
    ]
    for word in grammar:
        corpus[word] += 20_000
    for word in (*WORDS, *" ".join((*FILLERS, *OPENERS)).split()):
        corpus[word.strip(",")] += 2_000
    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]).backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", fuse_unk=False))
    bpe.normalizer, bpe.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((" ".join([word] * count) for word, count in sorted(corpus.items())), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [piece for piece in dict.fromkeys(a + b for a, b in merges) if piece not in set(pieces)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]  # eos is the last id: both of CLIP's ways to find it work
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=LENGTH)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the untrained encoder; all three special ids are set because CLIP's defaults lie outside a small vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


class ReadOut(nn.Module):
    """One learned query an attribute attends to the states; a linear layer names the value."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(HEADS), WIDTH) * 0.1)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(choices)) for choices in HEADS.values())

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        queries = self.queries.expand(states.shape[0], -1, -1)
        found = self.attention(queries, states, states, need_weights=False)[0]
        return [head(found[:, i]) for i, head in enumerate(self.heads)]


def described(rng: random.Random, number: int, *, long: bool) -> tuple[list[str], torch.Tensor]:
    """Draw captions and what they say, ((N,) strings, (N, attributes) int64)."""
    scenes = [training_scene(rng) for _ in range(number)]
    texts = [caption(scene, rng, long=1.0 if long else 0.0) for scene in scenes]
    return texts, torch.tensor([labels(scene, text) for scene, text in zip(scenes, texts, strict=True)])


def text_loss(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, readout: ReadOut, rng: random.Random) -> torch.Tensor:
    """One step: the mean cross-entropy over all attributes of a batch of captions."""
    long = rng.random() < 2 * LONG_BATCHES
    texts, wanted = described(rng, BATCH // 2 if long else BATCH, long=long)
    said = readout(encode_chunks(encoder, chunk_tokens(tokenizer, texts)))
    return torch.stack(
        [F.cross_entropy(logits, wanted[:, i].to(logits.device)) for i, logits in enumerate(said)]
    ).mean()


@torch.no_grad()
def understanding(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, readout: ReadOut) -> dict[str, float]:
    """Measure the share of attributes read back right from fresh captions: {"short": …, "long": …}."""
    result = {}
    for name, long in (("short", False), ("long", True)):
        texts, wanted = described(random.Random(f"understanding-{name}"), 128, long=long)
        said = readout(encode_chunks(encoder, chunk_tokens(tokenizer, texts)))
        result[name] = float(torch.stack([logits.argmax(-1) for logits in said], dim=1).cpu().eq(wanted).float().mean())
    return result
