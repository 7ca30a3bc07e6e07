"""What a run learns from: folders read, pictures and captions encoded once, and a step's batch put together."""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from studio.buckets import bucket_of, bucket_sizes
from studio.errors import InvalidRequest, shown
from studio.store import writer
from studio.store.datasets import Dataset, Example, find_dataset, read_dataset
from trainers.concepts import Concept
from trainers.conditions import Conditions
from trainers.configs import TrainingConfig
from trainers.data import (
    Batch,
    Cache,
    Shown,
    encode_pixels,
    framed,
    mask_pixels,
    noises,
    pixels_of,
)
from trainers.denoisers import Told
from trainers.losses import offset_noise
from trainers.models import Parts
from trainers.plan import CENTER, CROPS, Chances, Draw, Item, Plan, shuffled

logger = logging.getLogger(__name__)


class Pictures:
    """The examples of all concepts, with their captions.

    Attributes:
        examples: in an order that depends on the folders' content only.
        captions: of each.
        notes: sentences about what was refused or is doubtful.
    """

    def __init__(
        self, concepts: Sequence[Concept], root: Path, trigger_word: str = "", *, captions: str = "needed"
    ) -> None:
        """Read the folders; `captions` are `needed`, `taken` where there are some, or `left`: then every one is "".

        Raises:
            InvalidRequest: if a folder is missing or has no usable picture, or a picture has no caption.
        """
        self.examples: list[Example] = []
        self.captions: list[str] = []
        self.repeats: list[int] = []
        self.notes: list[str] = []
        self._captions = captions
        if not concepts:
            raise InvalidRequest("dataset", "dataset is missing; give a folder of pictures")
        for concept in concepts:
            found = read_dataset(find_dataset(concept.dataset, root))
            self.notes += [*found.refused, *found.warnings]
            self._take(found, concept)
        if trigger_word and (without := sum(trigger_word not in caption for caption in self.captions)):
            self.notes.append(
                f"{without} of {len(self.captions)} captions do not have the trigger word {trigger_word!r}"
            )

    def _take(self, found: Dataset, concept: Concept) -> None:
        for example in found.examples:
            caption = example.caption if example.caption is not None else example.words or concept.instance_prompt
            if self._captions == "left":
                caption = ""
            elif self._captions == "needed" and not caption and example.caption is None:
                name = example.path.relative_to(found.folder).as_posix()
                raise InvalidRequest(
                    "instance_prompt",
                    f"{name} has no caption; put {Path(name).stem}.txt beside it, or give instance_prompt for all",
                )
            self.examples.append(example)
            self.captions.append(caption)
            self.repeats.append(example.repeats * concept.repeats)

    @property
    def fingerprint(self) -> list[list[Any]]:
        """What a resumed run compares: name, content, caption and repeats of each picture, its mask, its condition, its crop."""
        return [
            [
                e.path.name,
                e.sha256,
                caption,
                repeats,
                beside_of(e.mask),
                beside_of(e.conditioning),
                *([list(e.crop)] if e.crop else []),
            ]
            for e, caption, repeats in zip(self.examples, self.captions, self.repeats, strict=True)
        ]


def beside_of(path: Path | None) -> list[str] | None:
    """Return name and content of a picture that lies beside another."""
    return None if path is None else [path.name, writer.file_sha256(path)]


class Material:
    """Encoded pictures, and the plan of who is shown when.

    Args:
        config: for sizes, crops, captions, and the seed.
        pictures: what is learnt from.
        parts: encode them; None for a model that works on pixels.
        folder: of the cache.
        processes: how many learn together.
        first: whether this process writes the cache for all.
        words: whether captions are encoded here; False if the text encoders learn.
        also: captions that the method wants to know about besides.

    Attributes:
        beside: what is shown at the same time and judged on its own.
        conditions: what a ControlNet follows; None if nothing.
    """

    def __init__(
        self,
        config: TrainingConfig,
        pictures: Pictures,
        parts: Parts | None,
        folder: Path,
        *,
        processes: int = 1,
        first: bool = True,
        words: bool = True,
        also: Sequence[str] = (),
    ) -> None:
        self.config, self.pictures, self.parts, self._also = config, pictures, parts, also
        self.conditions: Conditions | None = None
        self.beside: Material | None = None
        self._folder, self._first = folder, first
        self._words = words and parts is not None and not config.shuffle_caption
        held = set(held_out(config, len(pictures.examples)))
        sizes = [self._sizes(side) for side in config.resolution]
        shown_at = [
            (i, bucket_of(example.size, choice), pictures.repeats[i])
            for i, example in enumerate(pictures.examples)
            for choice in sizes
        ]
        self.chances = Chances(config.random_flip, config.crop == "random", config.caption_dropout)
        self._latents = self._texts = None
        if parts is not None:
            self._texts = self._cache_texts() if self._words else None
            self._latents = self._cache_latents([(i, size) for i, size, _ in shown_at])
        items = [Item(i, size, self._length(i), repeats) for i, size, repeats in shown_at]
        self._held = [item for item in items if item.example in held]
        learnt = [item for item in items if item.example not in held]
        self.plan = Plan(
            learnt, config.train_batch_size * processes, config.gradient_accumulation_steps, config.seed, self.chances
        )

    def _sizes(self, side: int) -> list[tuple[int, int]]:
        if not self.config.enable_bucket:
            return [(side, side)]
        sizes = bucket_sizes(side, min(self.config.bucket_step, side))
        step = 1 if self.parts is None else self.parts.family.size_step
        fitting = [size for size in sizes if size[0] % step == size[1] % step == 0]
        if not fitting:
            raise InvalidRequest(
                "resolution", f"resolution={side} has no size whose sides are multiples of {step}; use a multiple of 64"
            )
        return fitting

    def _length(self, example: int) -> int:
        return self._texts.shape(self.pictures.captions[example], "prompt_embeds")[1] if self._texts else 0

    def _all_shown(self, wanted: Sequence[tuple[int, tuple[int, int]]]) -> list[Shown]:
        """List all ways in which pictures may be shown at some sizes."""
        crops = range(len(CROPS)) if self.chances.random_crop else (CENTER,)
        flips = (False, True) if self.chances.flip else (False,)
        return [
            Shown(self.pictures.examples[i], size, crop, flip) for i, size in wanted for crop in crops for flip in flips
        ]

    def follow(self, conditions: Conditions) -> None:
        """Show control pictures too; what is missing is made now.

        Raises:
            ModelError: if a preprocessor's weights are missing.
        """
        items = (*self.plan.items, *self._held)
        conditions.fill(self._all_shown([(item.example, item.size) for item in items]), write=self._first)
        self.conditions = conditions

    def first_shown(self, number: int) -> list[Shown]:
        """Return the first pictures that are learnt from, in the middle and not mirrored; fewer if there are fewer."""
        sizes: dict[int, tuple[int, int]] = {}
        for item in self.plan.items:
            sizes.setdefault(item.example, item.size)
        return [Shown(self.pictures.examples[i], sizes[i], CENTER, False) for i in list(sizes)[:number]]

    def learnt(self) -> list[tuple[Shown, str]]:
        """Return the pictures that are learnt from, in the middle and not mirrored, each with its caption."""
        places = list(dict.fromkeys(item.example for item in self.plan.items))
        shown = self.first_shown(len(places))
        return [(one, self.pictures.captions[place]) for one, place in zip(shown, places, strict=True)]

    def _cache_latents(self, wanted: Sequence[tuple[int, tuple[int, int]]]) -> Cache | None:
        if not self.config.cache_latents:
            return None
        all_shown = self._all_shown(wanted)
        assert self.parts is not None
        vae, told = self.parts.pipe.vae, self.parts.reference.sha256
        cache = Cache(self._folder, "latents", f"{told} {vae.dtype} {self.parts.device.key}")

        def make(places: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
            logger.info("encoding pictures %d to %d of %d", places[0] + 1, places[-1] + 1, len(all_shown))
            return encode_pixels(vae, (pixels_of(all_shown[i]) for i in places))

        cache.fill([one.key for one in all_shown], make, self._first)
        return cache

    def _cache_texts(self) -> Cache:
        captions = sorted({*self.pictures.captions, *self._also})
        assert self.parts is not None
        parts = self.parts

        @torch.no_grad()
        def make(places: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
            for i in places:
                said = parts.encode([captions[i], ""])  # the empty one at the same length
                yield {name: one[:1] for name, one in said.items()} | {
                    f"no {name}": one[1:] for name, one in said.items()
                }

        encoder = next(iter(parts.text_encoders().values()))
        cache = Cache(self._folder, "texts", f"{parts.reference.sha256} {encoder.dtype} {parts.device.key}")
        cache.fill(captions, make, self._first)
        return cache

    def batch(self, step: int, micro: int, rank: int = 0, processes: int = 1) -> Batch:
        """Put together what one process sees in a micro-batch."""
        draws = self.plan.step(step)[micro]
        share = len(draws) // processes
        batch = self.assemble(self.plan.items, draws[rank * share : (rank + 1) * share])
        if self.beside is not None:
            batch.beside = self.beside.batch(step, micro, rank, processes)
        return batch

    @torch.no_grad()
    def told_of(self, caption: str) -> Told:
        """Return what the text encoders, as they are now, say of a caption; (1, ...) each."""
        assert self.parts is not None
        if self._texts is None:
            return self.parts.encode([caption])
        names = [name for name in self._texts.names(caption) if not name.startswith("no ")]
        return {name: self._texts.get(caption, name) for name in names}

    def held_batches(self) -> Iterator[Batch]:
        """Yield the held-out pictures, each at four noise levels that are always the same."""
        for place in range(len(self._held)):
            rng = random.Random(f"held-{self.config.seed}-{place}")
            draws = [Draw(place, False, CENTER, False, (i + 0.5) / 4, rng.getrandbits(62)) for i in range(4)]
            yield self.assemble(self._held, draws)

    @property
    def has_held(self) -> bool:
        return bool(self._held)

    def assemble(self, items: Sequence[Item], draws: Sequence[Draw]) -> Batch:
        """Read what draws of one size and length need."""
        chosen = [
            Shown(self.pictures.examples[items[draw.item].example], items[draw.item].size, draw.crop, draw.flip)
            for draw in draws
        ]
        captions = [self._caption(items[draw.item].example, draw) for draw in draws]
        latents, noise, offsets = self._pictures(chosen, draws)
        if self.config.noise_offset:
            noise = offset_noise(noise, offsets, self.config.noise_offset)
        cell = 1 if self.parts is None else self.parts.cell
        masked = self.config.masked_loss
        return Batch(
            latents=latents,
            noise=noise,
            quantiles=torch.tensor([draw.quantile for draw in draws]),
            told=self._told(items, draws),
            captions=captions,
            frames=[framed(one.example.size, one) for one in chosen],
            mask=torch.stack([mask_pixels(one, cell) for one in chosen]) if masked else None,
            draws=list(draws),
            conditioning=torch.stack([self.conditions.get(one) for one in chosen]) if self.conditions else None,
        )

    def _pictures(
        self, chosen: Sequence[Shown], draws: Sequence[Draw]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents, noise and offsets; the latents are drawn from what the autoencoder says."""
        if self.parts is None:
            pixels = torch.stack([pixels_of(one) for one in chosen])
            _, noise, offsets = noises(draws, tuple(pixels.shape[1:]))
            return pixels, noise, offsets
        if self._latents is not None:
            means = torch.stack([self._latents.get(one.key, "mean") for one in chosen])
            stds = torch.stack([self._latents.get(one.key, "std") for one in chosen])
        else:
            found = list(encode_pixels(self.parts.pipe.vae, (pixels_of(one) for one in chosen)))
            means, stds = (torch.stack([one[name].cpu() for one in found]) for name in ("mean", "std"))
        posterior, noise, offsets = noises(draws, tuple(means.shape[1:]))
        return means + stds * posterior, noise, offsets

    def _caption(self, example: int, draw: Draw) -> str:
        caption = self.pictures.captions[example]
        if draw.drop:
            return ""
        return shuffled(caption, self.config.keep_tokens, draw.seed) if self.config.shuffle_caption else caption

    def _told(self, items: Sequence[Item], draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        if self._texts is None:
            return {}
        captions = [self.pictures.captions[items[draw.item].example] for draw in draws]
        names = [name for name in self._texts.names(captions[0]) if not name.startswith("no ")]
        return {
            name: torch.cat(
                [
                    self._texts.get(caption, f"no {name}" if draw.drop else name)
                    for caption, draw in zip(captions, draws, strict=True)
                ]
            )
            for name in names
        }


def held_out(config: TrainingConfig, number: int) -> list[int]:
    """Choose which pictures are not learnt from.

    Raises:
        InvalidRequest: if none would be left.
    """
    if config.validation_size >= number:
        raise InvalidRequest(
            "validation_size",
            f"validation_size={config.validation_size} leaves none of {number} pictures; use at most {number - 1}",
        )
    return random.Random(f"held-out-{config.seed}").sample(range(number), config.validation_size)


def fingerprint_problem(before: list[list[Any]], now: list[list[Any]]) -> str:
    """Say how a dataset differs from what a run began with; "" if it does not."""
    if json.loads(json.dumps(now)) == before:
        return ""
    old, new = ({json.dumps(row) for row in rows} for rows in (before, now))
    gone, come = (sorted(json.loads(row)[0] for row in rows) for rows in (old - new, new - old))
    changed = sorted(set(gone) & set(come))
    parts = {
        "changed": changed,
        "gone": [name for name in gone if name not in changed],
        "new": [name for name in come if name not in changed],
    }
    said = "; ".join(f"{word}: {shown(', '.join(names))}" for word, names in parts.items() if names)
    return said or "the order of the pictures"
