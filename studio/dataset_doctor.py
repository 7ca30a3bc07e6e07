"""The dataset doctor: what is wrong with pictures and captions before a model learns from them, and what a click does about it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.buckets import bucket_of, bucket_sizes
from studio.caption_doctor import Caption, caption_findings, trigger_finding
from studio.errors import InvalidRequest
from studio.findings import Change, Finding, Fix, counted, leave_out, named
from studio.picture_facts import PictureFacts, alike, measure
from studio.store.blobs import Refused, read_file
from studio.store.datasets import Dataset, Example, list_pictures, read_dataset
from studio.store.edits import Crop, read_edit
from studio.word_facts import WordFacts

BLURRED = 2.0  # pixels at the size of training: from this spread of edges on a picture teaches blur
ENLARGED = 1.05  # times that a picture may be enlarged without a word
SIDES = range(64, 4097)
STEPS = range(8, 513)

Known = MutableMapping[tuple[Any, ...], PictureFacts]


@dataclass(frozen=True)
class Aim:
    """What a dataset shall be used for.

    Attributes:
        trigger: word that calls the new thing; "" if none is used.
        class_word: what kind of thing it is; "" if that is not said.
        resolution: side in pixels of the square whose area the training pictures have.
        bucket_step: by which the sides of buckets differ.
        word: what the tokenizer says of the trigger; None if nobody knows.
        proposals: rarer words.
    """

    trigger: str = ""
    class_word: str = ""
    resolution: int = 512
    bucket_step: int = 64
    word: WordFacts | None = None
    proposals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """A picture of the dataset, and what was measured about it."""

    name: str
    example: Example
    facts: PictureFacts


def checked_aim(aim: Aim) -> Aim:
    """Return an aim with blanks removed.

    Raises:
        InvalidRequest: naming the first wrong value.
    """
    if aim.resolution not in SIDES:
        raise InvalidRequest(
            "resolution", f"resolution={aim.resolution} must be from {SIDES.start} to {SIDES.stop - 1} pixels"
        )
    if aim.bucket_step not in STEPS:
        raise InvalidRequest(
            "bucket_step", f"bucket_step={aim.bucket_step} must be from {STEPS.start} to {STEPS.stop - 1} pixels"
        )
    trigger, class_word = (" ".join(text.split()) for text in (aim.trigger, aim.class_word))
    return Aim(trigger, class_word, aim.resolution, aim.bucket_step, aim.word, aim.proposals)


def examine(
    folder: Path, aim: Aim, known: Known | None = None, heard: Callable[[int, int], None] = lambda done, all: None
) -> tuple[Finding, ...]:
    """Look at every picture and caption of a dataset; nothing is changed.

    Args:
        folder: of the dataset.
        aim: what it shall be used for.
        known: facts that were measured before; new ones are added.
        heard: told how many pictures are done, and how many there are.

    Returns:
        Problems first, then doubts, then notes.

    Raises:
        InvalidRequest: if a value is wrong, or no picture can be used.
    """
    aim, known = checked_aim(aim), {} if known is None else known
    dataset = read_dataset(folder)
    looked = []
    for place, example in enumerate(dataset.examples):
        name = example.path.relative_to(dataset.folder).as_posix()
        looked.append(Looked(name, example, _facts(example, aim.resolution, known)))
        heard(place + 1, len(dataset.examples))
    found = [*_unreadable(dataset), *_same(looked), *_blurred(looked), *_small(looked, aim), *_buckets(looked, aim)]
    captions = [Caption(one.name, said_with(one.example)) for one in looked]
    found += [*caption_findings(captions, aim.trigger, aim.class_word), *trigger_finding(aim.word, aim.proposals)]
    found += [*_transparent(looked), *_turned(looked)]
    return tuple(sorted(found, key=lambda one: ("problem", "doubt", "note").index(one.level)))


def said_with(example: Example) -> str:
    """Return what training says with a picture: its caption, or what kohya's folder name says."""
    return example.words if example.caption is None else example.caption


def _facts(example: Example, side: int, known: Known) -> PictureFacts:
    key = (example.sha256, example.crop, side)
    if key not in known:
        known[key] = measure(read_file(example.path), example.crop, side)
    return known[key]


def _unreadable(dataset: Dataset) -> Iterator[Finding]:
    """Find the files that training would pass over; what is left out on purpose is none of them."""
    used = {example.path for example in dataset.examples}
    names = []
    for path, _, _ in list_pictures(dataset.folder):
        try:
            if path not in used and not read_edit(path).left_out:
                names.append(path.relative_to(dataset.folder).as_posix())
        except Refused:  # the edit itself is damaged: leaving the picture out writes a new one
            names.append(path.relative_to(dataset.folder).as_posix())
    if names:
        reason = next((line for line in dataset.refused if line.startswith(tuple(names))), "")
        yield Finding(
            "unreadable",
            "problem",
            f"{counted(len(names), 'file', 'files')} cannot be used: {named(names)}. {reason}.",
            tuple(names),
            leave_out("Leave out", names),
        )
    for line in dataset.refused:
        if line.startswith("metadata.jsonl"):
            yield Finding("metadata", "problem", f"{line}.")


def _same(looked: Sequence[Looked]) -> Iterator[Finding]:
    """Find pictures that are there twice; the largest stays, of equals one that has a caption, then the first."""
    first: dict[str, Looked] = {}
    copies: dict[str, list[Looked]] = {}
    for one in looked:
        first.setdefault(one.example.sha256, one)
        copies.setdefault(one.example.sha256, []).append(one)
    for group in copies.values():
        if len(group) > 1:
            best, names = _best(group)
            yield Finding(
                "duplicate",
                "problem",
                f"{named([best, *names])} are the same file: it counts {len(group)} times as much as the others.",
                (best, *names),
                leave_out("Leave out all but the best", names),
            )
    several = list(first.values())
    for places in alike([one.facts for one in several]):
        best, names = _best([several[place] for place in places])
        yield Finding(
            "near-duplicate",
            "doubt",
            f"{named([best, *names])} show the same, perhaps in another size or quality. A model repeats what it sees often.",
            (best, *names),
            leave_out("Leave out all but the best", names),
        )


def _best(group: Sequence[Looked]) -> tuple[str, list[str]]:
    best = max(group, key=lambda one: (math.prod(one.example.size), one.example.caption is not None))
    return best.name, [one.name for one in group if one is not best]


def _blurred(looked: Sequence[Looked]) -> Iterator[Finding]:
    blurred = [one for one in looked if BLURRED <= one.facts.edge < math.inf]
    if blurred:
        names = [one.name for one in blurred]
        worst = max(one.facts.edge for one in blurred)
        yield Finding(
            "blurred",
            "doubt",
            f"{counted(len(names), 'picture', 'pictures')} "
            f"without a sharp edge: {named(names)} (edges are spread over {worst:.1f} pixels or less; a sharp "
            "picture has about 1). The model learns to blur.",
            tuple(names),
            leave_out("Leave out", names),
        )
    if blank := [one.name for one in looked if one.facts.edge == math.inf]:
        yield Finding(
            "blank",
            "doubt",
            f"{counted(len(blank), 'picture', 'pictures')} "
            f"without any edge: {named(blank)}. It is empty, or blurred beyond use.",
            tuple(blank),
            leave_out("Leave out", blank),
        )


def _small(looked: Sequence[Looked], aim: Aim) -> Iterator[Finding]:
    sizes = bucket_sizes(aim.resolution, min(aim.bucket_step, aim.resolution))
    small = []
    for one in looked:
        bucket = bucket_of(one.example.size, sizes)
        scale = max(wanted / given for wanted, given in zip(bucket, one.example.size, strict=True))
        if scale > ENLARGED:
            small.append((one, scale))
    if small:
        names = [one.name for one, _ in small]
        one, scale = max(small, key=lambda pair: pair[1])
        yield Finding(
            "too-small",
            "doubt",
            f"{counted(len(names), 'picture is', 'pictures are')} "
            f"too small for {aim.resolution} pixels: {named(names)}. {one.name} ({one.example.size[0]} x "
            f"{one.example.size[1]}) is enlarged {scale:.1f} times and looks soft; take larger ones, or train at a lower resolution.",
            tuple(names),
            leave_out("Leave out", names),
        )


def _buckets(looked: Sequence[Looked], aim: Aim) -> Iterator[Finding]:
    """Find buckets with one picture: a batch of one size is then filled with that picture alone."""
    sizes = bucket_sizes(aim.resolution, min(aim.bucket_step, aim.resolution))
    buckets = [bucket_of(one.example.size, sizes) for one in looked]
    number = Counter(buckets)
    lonely = [(one, bucket) for one, bucket in zip(looked, buckets, strict=True) if number[bucket] == 1]
    if len(number) < 2 or not lonely:
        return
    targets = [bucket for bucket in number if number[bucket] > 1]
    if not targets:  # all are: the middle one takes the others in
        targets = [sorted(number, key=lambda size: size[0] / size[1])[len(number) // 2]]
        lonely = [(one, bucket) for one, bucket in lonely if bucket not in targets]
    changes, most = [], 0.0
    for one, _ in lonely:
        crop, lost = crop_to(one.example, bucket_of(one.example.size, targets))
        changes.append(Change(one.name, "crop", crop))
        most = max(most, lost)
    names = tuple(one.name for one, _ in lonely)
    shown = ", ".join(f"{width} x {height}" for width, height in dict.fromkeys(bucket for _, bucket in lonely))
    yield Finding(
        "lonely-bucket",
        "doubt",
        f"{counted(len(names), 'picture is', 'pictures are')} "
        f"alone in a bucket: {named(names)} ({shown}). With a batch size above 1 such a picture fills a batch by "
        f"itself and counts more. Cropping it in the middle into the next bucket cuts off {most:.0%} at most.",
        names,
        Fix("Crop into the next bucket", tuple(changes)),
    )


def crop_to(example: Example, bucket: tuple[int, int]) -> tuple[Crop, float]:
    """Return the largest crop in the middle that has a bucket's proportions, within the crop there is, and what it cuts off.

    Returns:
        Parts of the whole upright picture, and the share of the area that is lost.
    """
    left, top, right, bottom = example.crop or (0.0, 0.0, 1.0, 1.0)
    width, height = example.size
    keep_x = min(1.0, height * bucket[0] / bucket[1] / width)
    keep_y = min(1.0, width * bucket[1] / bucket[0] / height)
    x, y = (right - left) * (1 - keep_x) / 2, (bottom - top) * (1 - keep_y) / 2
    return (left + x, top + y, right - x, bottom - y), 1 - keep_x * keep_y


def _transparent(looked: Sequence[Looked]) -> Iterator[Finding]:
    names = tuple(one.name for one in looked if one.facts.transparent and one.example.mask is None)
    if names:
        yield Finding(
            "transparent",
            "note",
            f"{counted(len(names), 'picture has', 'pictures have')} "
            f"transparent parts: {named(names)}. They become white; with masks, which training with "
            "masked loss follows, only what is opaque counts.",
            names,
            Fix("Make masks of what is opaque", tuple(Change(name, "mask", "alpha") for name in names)),
        )


def _turned(looked: Sequence[Looked]) -> Iterator[Finding]:
    names = tuple(one.name for one in looked if one.facts.turned)
    if names:
        yield Finding(
            "turned",
            "note",
            f"{counted(len(names), 'picture is', 'pictures are')} "
            f"stored on the side, as phones do: {named(names)}. Nothing to do: they are "
            "read upright.",
            names,
        )
