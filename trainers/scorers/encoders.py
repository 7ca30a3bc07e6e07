"""Scorers with weights: CLIP and DINOv2 encoders, as DreamBooth was measured (Ruiz et al. 2022, arXiv:2208.12242).

Likeness is the cosine of two pictures' vectors. Obedience is CLIPScore, 2.5 times the cosine of text and picture (Hessel et al. 2021,
arXiv:2104.08718, equation 1). Negative cosines count as 0.
"""

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from studio.errors import InvalidRequest
from trainers.scorers.scorer import Picture, Scorer

BATCH = 16  # pictures at once
CLIP_WEIGHT = 2.5


class Kind(NamedTuple):
    """How a kind of encoder is asked.

    Attributes:
        model: its class in transformers.
        processor: that of what makes its input, where the folder has no preprocessor_config.json.
        vectors: what it says of pixels, (B, C).
        reads: whether it knows text.
    """

    model: str
    processor: str
    vectors: Callable[[Any, torch.Tensor], torch.Tensor]
    reads: bool = False


def _first_token(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).last_hidden_state[:, 0]


KINDS = {  # by `model_type`
    "clip": Kind("CLIPModel", "CLIPImageProcessor", lambda model, x: model.get_image_features(x).pooler_output, True),
    "clip_vision_model": Kind(
        "CLIPVisionModelWithProjection", "CLIPImageProcessor", lambda model, x: model(x).image_embeds
    ),
    "dinov2": Kind("Dinov2Model", "BitImageProcessor", _first_token),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", "BitImageProcessor", _first_token),
}


class Encoder:
    """One encoder; its weights are in memory from the first question to `close`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.kind, self._device = folder, KINDS[kind_of(folder)], device
        self._model: Any = None

    def pictures(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        """Return a vector of length 1 for each picture, on the CPU."""
        model, processor = self._opened(), self._processor()
        found: list[torch.Tensor] = []
        for start in range(0, len(pictures), BATCH):
            pixels = processor(list(pictures[start : start + BATCH]), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                found += self.kind.vectors(model, pixels.to(self._device)).float().cpu()
        return [torch.nn.functional.normalize(one, dim=0) for one in found]

    def text(self, prompt: str) -> torch.Tensor:
        """Return a vector of length 1 for a prompt, whose end is left out if it is too long."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = self._opened()
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([prompt], truncation=True, max_length=limit, return_tensors="pt").to(self._device)
        with torch.no_grad():
            vector = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0]
        return torch.nn.functional.normalize(vector.float().cpu(), dim=0)

    def close(self) -> None:
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self) -> Any:
        if self._model is None:
            import transformers

            loader = getattr(transformers, self.kind.model)
            made = loader.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
            self._model = made.to(self._device).eval()
        return self._model

    def _processor(self) -> Any:
        import transformers

        if (self.folder / "preprocessor_config.json").is_file():
            return transformers.AutoImageProcessor.from_pretrained(self.folder, local_files_only=True)
        config = self._opened().config
        side = getattr(config, "vision_config", config).image_size
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        return getattr(transformers, self.kind.processor)(**size)


class Encoders(Scorer):
    """What one encoder says of pictures, and one that reads of text: the same, or another.

    Args:
        images: compares pictures.
        words: holds pictures against prompts; None if there is none.
    """

    def __init__(self, images: Encoder, words: Encoder | None) -> None:
        self._images, self._words = images, words
        names = [images.folder.name] + ([words.folder.name] if words and words is not images else [])
        self.title = " and ".join(names)
        self._said: dict[str, torch.Tensor] = {}

    def read(self, pictures: Sequence[Picture]) -> list[Any]:
        """Return for each picture its vector among pictures, and among texts."""
        seen = self._images.pictures(pictures)
        if self._words is None or self._words is self._images:
            return list(zip(seen, seen, strict=True))
        return list(zip(seen, self._words.pictures(pictures), strict=True))

    def subject(self, sample: Any, training: Sequence[Any]) -> float | None:
        found = _cosines(sample, training)
        return sum(found) / len(found)

    def prompt(self, sample: Any, prompt: str) -> float | None:
        if self._words is None:
            return None
        if prompt not in self._said:
            self._said[prompt] = self._words.text(prompt)
        return min(1.0, max(0.0, CLIP_WEIGHT * float(sample[1] @ self._said[prompt])))

    def drift(self, now: Any, before: Any) -> float | None:
        return 1 - _cosines(now, [before])[0]

    def memorisation(self, sample: Any, training: Sequence[Any]) -> float | None:
        return max(_cosines(sample, training))

    def close(self) -> None:
        for encoder in (self._images, self._words):
            if encoder is not None:
                encoder.close()


def _cosines(one: Any, others: Sequence[Any]) -> list[float]:
    table = torch.stack([other[0] for other in others])
    return [min(1.0, max(0.0, value)) for value in (table @ one[0]).tolist()]


def kind_of(folder: Path) -> str:
    """Return the kind of the encoder in a folder.

    Raises:
        InvalidRequest: if it is none that is known, or has no safetensors.
    """
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError):
        raise InvalidRequest("scorer", f"scorer={folder.name!r} has no readable config.json") from None
    if kind not in KINDS:
        raise InvalidRequest("scorer", f"scorer={folder.name!r} is of the kind {kind}; use one of {', '.join(KINDS)}")
    if not list(folder.glob("*.safetensors")):
        raise InvalidRequest(
            "scorer",
            f"scorer={folder.name!r} has no .safetensors file; get its safetensors, or convert with python -m studio convert",
        )
    return kind


def joined(folders: Sequence[Path], device: torch.device) -> Encoders:
    """Make a scorer of folders, which must not be empty: a DINOv2 compares pictures if there is one, and a CLIP reads prompts."""
    found = [Encoder(folder, device) for folder in folders]
    images = next((one for one in found if one.kind.model.startswith("Dino")), None)
    words = next((one for one in found if one.kind.reads), None)
    return Encoders(images or words or found[0], words)
