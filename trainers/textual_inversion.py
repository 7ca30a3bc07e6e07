"""`textual-inversion`: vectors for a new word learn, and nothing else (Gal et al. 2022, arXiv:2208.01618).

With `train_lora` a LoRA learns beside them (pivotal tuning: Roich et al. 2021, arXiv:2106.05744, for diffusion models in
diffusers' advanced scripts), and two files are saved: `NAME.safetensors` and `NAME_emb.safetensors`.
"""

import logging
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from studio.embeddings import ENCODER_KEYS, PLAIN_KEYS, Naming, layout_of
from studio.engine.inversions import Inversions
from studio.errors import InvalidRequest, ModelError, shown
from studio.spec import GenerationRequest
from studio.store import writer
from studio.word_facts import look_up
from trainers.checkpoints import read_adapter
from trainers.data import Batch
from trainers.denoisers import Told
from trainers.inversion_configs import TextualInversionConfig
from trainers.lora import LoraMethod, checkpoint_gradients
from trainers.material import Material
from trainers.method import Method, Rate
from trainers.models import Parts
from trainers.trigger import tidy

logger = logging.getLogger(__name__)

END = "_emb"  # of the embedding's name where a LoRA has the artifact's own
TEMPLATES = {  # the paper's, which are CLIP's for ImageNet
    "object": (
        "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of a clean {}",
        "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}", "a photo of the cool {}",
        "a close-up photo of a {}", "a bright photo of the {}", "a cropped photo of a {}", "a photo of the {}",
        "a good photo of the {}", "a photo of one {}", "a close-up photo of the {}", "a rendition of the {}",
        "a photo of the clean {}", "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}",
        "a photo of the nice {}", "a photo of the small {}", "a photo of the weird {}", "a photo of the large {}",
        "a photo of a cool {}", "a photo of a small {}",
    ),
    "style": (
        "a painting in the style of {}", "a rendering in the style of {}", "a cropped painting in the style of {}",
        "the painting in the style of {}", "a clean painting in the style of {}", "a dirty painting in the style of {}",
        "a dark painting in the style of {}", "a picture in the style of {}", "a cool painting in the style of {}",
        "a close-up painting in the style of {}", "a bright painting in the style of {}",
        "a good painting in the style of {}", "a rendition in the style of {}", "a nice painting in the style of {}",
        "a small painting in the style of {}", "a weird painting in the style of {}", "a large painting in the style of {}",
    ),
}  # fmt: skip


class TextualInversion(Method):
    """Vectors of a placeholder, which stand in for token embeddings while captions are encoded; no weight of the model changes.

    Attributes:
        vectors: the pipeline's text encoder -> (number, width), float32.
        lora: that learns with them, or None.
    """

    reads_captions = True

    def __init__(self, config: TextualInversionConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        readers = word_readers(parts)
        if len(readers) > 1 and config.embedding_layout != "diffusers":
            raise InvalidRequest(
                "embedding_layout",
                f"embedding_layout={config.embedding_layout} is for one text encoder and {parts.family.title} has two; use diffusers",
            )
        self._naming = Naming([config.placeholder_token])
        first = {name: self._first(name, *reader) for name, reader in readers.items()}
        self.vectors = torch.nn.ParameterDict({name: torch.nn.Parameter(one) for name, one in first.items()})
        self._lengths = {
            name: float(encoder.get_input_embeddings().weight.float().norm(dim=1).median())
            for name, (_, encoder) in readers.items()
        }
        self.lora = LoraMethod(config, parts) if config.train_lora else None
        if config.gradient_checkpointing and self.lora is None:
            checkpoint_gradients(parts.denoiser.network)

    def _first(self, name: str, tokenizer: Any, encoder: Any) -> torch.Tensor:
        """Return what the vectors of a text encoder begin as, (number, width) in float32."""
        config = self.config
        if look_up(tokenizer, config.placeholder_token).whole:
            raise InvalidRequest(
                "placeholder_token",
                f"placeholder_token={config.placeholder_token!r} is a word that the model knows already; "
                f"use one that it does not, like <{config.placeholder_token}>",
            )
        table = encoder.get_input_embeddings().weight.detach().float()
        if config.init_from:
            path = Path(config.init_from)
            return earlier_vectors(path.with_stem(path.stem + END) if config.train_lora else path, name, config, table)
        facts = look_up(tokenizer, config.initializer_token)
        if facts.spelled or not facts.pieces:
            raise InvalidRequest(
                "initializer_token",
                f"initializer_token={config.initializer_token!r} is unknown to the model, which reads {', '.join(facts.pieces)}; "
                "use words that it knows, like toy or painting",
            )
        logger.info(
            "%s: %d vectors begin as the tokens %s",
            config.placeholder_token,
            config.num_vectors,
            ", ".join(facts.pieces),
        )
        return spread(table[torch.tensor(facts.ranks, device=table.device)], config.num_vectors)

    @property
    def learns_words(self) -> bool:
        return True

    def rates(self) -> list[Rate]:
        config = self.config
        mine = Rate("vectors", list(self.vectors.values()), config.vectors_rate, config.embedding_weight_decay)
        return [mine, *(self.lora.rates() if self.lora else ())]

    def prepare(self, material: Material) -> None:
        """Refuse captions that teach nothing.

        Raises:
            InvalidRequest: if one does not say the placeholder; with a LoRA, which learns from all, if none does.
        """
        pictures, word = material.pictures, self.config.placeholder_token
        without = [i for i, caption in enumerate(pictures.captions) if not self._naming.found([caption])]
        if len(without) == len(pictures.captions) or (without and self.lora is None):
            name, caption = pictures.examples[without[0]].path.name, pictures.captions[without[0]]
            raise InvalidRequest(
                "placeholder_token",
                f"{len(without)} of {len(pictures.captions)} captions do not say placeholder_token={word!r}, such as that of "
                f"{name}, {shown(caption)!r}; write it into them, or remove captions and instance_prompt to use templates",
            )

    def told(self, batch: Batch) -> Told:
        captions = [self.said(caption, draw.seed) for caption, draw in zip(batch.captions, batch.draws, strict=True)]
        return {name: one.to(self.dtype) for name, one in self.parts.encode(captions, self.inversions()).items()}

    def said(self, caption: str, seed: int) -> str:
        """Return a caption as it is; the placeholder alone, which is that of pictures without one, in a template."""
        if caption != self.config.placeholder_token:
            return caption
        template = random.Random(f"template-{seed}").choice(TEMPLATES[self.config.learnable_property])
        return template.format(self.config.placeholder_token)

    def inversions(self) -> Inversions:
        """Return the vectors as they are now, by the placeholder's name."""
        return Inversions([dict(self.vectors.items())], [[self.config.placeholder_token]])

    @torch.no_grad()
    def step_ended(self) -> None:
        """Give the vectors the median length of the model's words, if wanted, as OneTrainer does."""
        if self.config.preserve_embedding_norm:
            for name, vectors in self.vectors.items():
                vectors.mul_(self._lengths[name] / vectors.norm(dim=1, keepdim=True))

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        path = folder / f"{name}.safetensors"
        embedding = self.embeddings_of(path)[0]
        writer.write_file(embedding, self.file(facts))
        if self.lora:
            self.lora.save(folder, name, facts | {"embedding": embedding.stem})
        return path

    def file(self, facts: dict[str, str]) -> bytes:
        """Return the vectors as a safetensors file for A1111 and diffusers: by the placeholder, or for SDXL `clip_l` and `clip_g`."""
        state = {name: one.detach().cpu().float().contiguous() for name, one in self.vectors.items()}
        metadata = {
            "format": "pt",
            "placeholder_token": self.config.placeholder_token,
            "initializer_token": self.config.initializer_token,
            "num_vectors": str(self.config.num_vectors),
        }
        return save({self._key(name): one for name, one in state.items()}, metadata | facts)

    def _key(self, name: str) -> str:
        if len(self.vectors) > 1:
            return next(key for key, encoder in ENCODER_KEYS.items() if encoder == name)
        return PLAIN_KEYS[0] if self.config.embedding_layout == "emb_params" else self.config.placeholder_token

    def embeddings_of(self, artifact: Path) -> list[Path]:
        return [artifact.with_stem(artifact.stem + END) if self.lora else artifact]

    def code(self, prompt: str) -> str:
        name = type(self.parts.pipe).__name__
        file = self.embeddings_of(Path(f"{self.config.output_name}.safetensors"))[0].name
        lines = ["import torch", f"from diffusers import {name}", "from safetensors.torch import load_file", ""]
        lines += [*self.device_code(), *self.base_code(name), f"vectors = load_file({file!r})"]
        for part in self.vectors:
            reads = f"text_encoder=pipe.{part}, tokenizer=pipe.{part.replace('text_encoder', 'tokenizer')}"
            token = repr(self.config.placeholder_token)
            lines.append(f"pipe.load_textual_inversion(vectors[{self._key(part)!r}], token={token}, {reads})")
        lines += self.lora.loading() if self.lora else []
        return "\n".join([*lines, f'pipe({prompt!r}).images[0].save("picture.png")'])

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        """Let prompts say the file's name instead of the placeholder: other files of the library may have the same one."""
        name = self.embeddings_of(artifact)[0].stem
        texts = {field: getattr(request, field) for field in ("prompt", "negative_prompt")}
        changed = {
            field: "".join(words + (name if found else "") for words, found in self._naming.split(text))
            for field, text in texts.items()
        }
        request = request.model_copy(update=changed)
        return self.lora.request_of(artifact, request) if self.lora else request

    def plain_prompt(self, prompt: str) -> str:
        """Let the words that the new one began as stand in its place."""
        known = self.config.initializer_token.strip()
        return tidy("".join(words + (known if found else "") for words, found in self._naming.split(prompt)))

    @property
    def scored(self) -> frozenset[str]:
        """Without a LoRA the model stays as it is, and nothing can drift."""
        return super().scored if self.lora else super().scored - {"drift"}


def word_readers(parts: Parts) -> dict[str, tuple[Any, Any]]:
    """Return the text encoders that read the new word, each with its tokenizer, by the pipeline's names."""
    return {
        name: (getattr(parts.pipe, name.replace("text_encoder", "tokenizer")), encoder)
        for name, encoder in parts.text_encoders().items()
    }


def spread(rows: torch.Tensor, number: int) -> torch.Tensor:
    """Make vectors of words' vectors: fewer are means of neighbours, more repeat them in order, as A1111 does.

    Args:
        rows: (words, width).
        number: of vectors.

    Returns:
        (number, width).
    """
    if number < len(rows):
        return torch.stack([part.mean(dim=0) for part in rows.tensor_split(number)])
    return rows[torch.arange(number, device=rows.device) * len(rows) // number].clone()


def earlier_vectors(path: Path, name: str, config: TextualInversionConfig, table: torch.Tensor) -> torch.Tensor:
    """Read the vectors of a text encoder from an earlier result, (number, width).

    Raises:
        InvalidRequest: if the file has another shape.
        ModelError: if it cannot be read.
    """
    state, _ = read_adapter(path)
    try:
        layout = layout_of({key: list(one.shape) for key, one in state.items()})
    except ModelError as error:
        raise InvalidRequest("init_from", f"init_from={path.name!r} is no embedding: {error}") from None
    vectors = state[layout.keys[name]].float().reshape(layout.vectors, -1) if name in layout.keys else table[:0]
    if vectors.shape != (config.num_vectors, table.shape[1]):
        raise InvalidRequest(
            "init_from",
            f"init_from={path.name!r} has {layout.vectors} vectors of width {' and '.join(map(str, layout.widths))}, and this run "
            f"num_vectors={config.num_vectors} of width {table.shape[1]} for {name}; set num_vectors, or choose another file",
        )
    return vectors.to(table.device)
