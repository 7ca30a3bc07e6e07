"""The world of the embedded model: what a scene is, and how people would describe it.

A scene is a set of attributes; `caption` says it in words, `render` (render.py) draws it, `judge` (judge.py) reads it back
from a picture. Everything is a pure function of the `random.Random` that is passed in.
"""

import random
from dataclasses import dataclass, replace

from trainers.scorers.figures import COLOURS, SHAPES, Thing

SIZES: dict[str, float] = {"small": 0.16, "": 0.25, "big": 0.35}  # half extent as a fraction of the picture's side
POSITIONS = ("", "on the left", "on the right", "at the top", "at the bottom")
COUNTS = ("two", "three", "four")
RELATIONS = ("and", "to the left of", "above")
STYLES = ("flat", "outline", "striped", "pixel art")
HELD_OUT = frozenset(  # never drawn in training, in any kind of scene: composition is tested on them
    {
        ("red", "star"),
        ("blue", "heart"),
        ("green", "triangle"),
        ("yellow", "square"),
        ("purple", "circle"),
        ("orange", "diamond"),
        ("cyan", "cross"),
        ("pink", "ring"),
    }
)
OPENERS = (
    "a picture of",
    "a drawing of",
    "an image of",
    "an illustration of",
    "a photo of",
    "here is",
    "draw",
    "please draw",
)
FILLERS = (
    "masterpiece", "best quality", "high quality", "highly detailed", "sharp focus", "8k", "4k", "beautiful", "clean lines",
    "digital art", "award winning", "trending", "professional", "very nice", "simple", "minimal", "centered composition",
    "studio light", "soft light", "elegant", "amazing", "good picture", "for a children's book", "by a great artist",
    "full view", "modern design", "poster", "icon", "logo", "geometry", "paper", "museum", "it is a calm day",
    "the sky is not in the picture", "nothing else is there", "as people like it", "made with care", "in the middle of the week",
    "we saw it yesterday and liked it", "everyone was happy about it", "intricate", "smooth", "crisp", "vivid", "cinematic",
)  # fmt: skip
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work number night point home water room mother area money story fact "
    "month lot right study book eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name team minute idea body information back parent face level office door health person art war "
    "history party result change morning reason research girl guy moment air teacher force education dog cat tree bird robot "
    "sks toy bowl flower river mountain street window summer winter music quiet gentle strong early late near far old young"
).split()


@dataclass(frozen=True)
class Scene:
    """A picture's whole truth. `size`, `position`, `count`, `relation` are "" where the caption must not name them."""

    things: tuple[Thing, ...]
    background: str
    style: str = "flat"
    size: str = ""
    position: str = ""
    count: str = ""
    relation: str = ""

    @property
    def kind(self) -> str:
        """`single`, `count` or `pair`."""
        return "count" if self.count else "pair" if self.relation else "single"


def vocabulary() -> list[str]:
    """Return every word that means something in this world, for telling people which words do not."""
    phrases = [*COLOURS, *SHAPES, *map(plural, SHAPES), *SIZES, *POSITIONS, *COUNTS, *RELATIONS, *STYLES, *OPENERS]
    return sorted(
        {word for phrase in phrases for word in phrase.split()} | set("a an on with background style".split())
    )


def article(word: str) -> str:
    """`an` before a vowel, else `a`."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def draw_colour_and_shape(rng: random.Random, *, held_out: bool) -> tuple[str, str]:
    """Draw a colour-shape pair: only pairs of `HELD_OUT` if `held_out`, else only the others."""
    if held_out:
        return rng.choice(sorted(HELD_OUT))
    while True:
        pair = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
        if pair not in HELD_OUT:
            return pair


def draw_scene(rng: random.Random, kind: str, *, style: str = "flat", held_out: bool = False) -> Scene:
    """Draw a random scene.

    Args:
        rng: the only source of randomness.
        kind: `single` (size and position at random), `plain` (one object, no size and no position), `count` or `pair`.
        style: one of `STYLES`.
        held_out: use only the colour-shape pairs that training never draws.

    Raises:
        ValueError: for an unknown kind or style.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r} must be one of {STYLES}")
    colour, shape = draw_colour_and_shape(rng, held_out=held_out)
    if kind in ("single", "plain"):
        size = "" if kind == "plain" else rng.choice(tuple(SIZES))
        position = rng.choice(POSITIONS) if kind == "single" and rng.random() < 0.5 else ""
        things: tuple[Thing, ...] = (_place(rng, colour, shape, size, position),)
        scene = Scene(things, "", style, size=size, position=position)
    elif kind == "count":
        count = rng.choice(COUNTS)
        radius = 0.165 * rng.uniform(0.95, 1.05)
        things = tuple(Thing(colour, shape, x, y, radius) for x, y in _slots(rng, count))
        scene = Scene(things, "", style, count=count)
    elif kind == "pair":
        other = draw_colour_and_shape(rng, held_out=held_out)
        while other[0] == colour:
            other = draw_colour_and_shape(rng, held_out=held_out)
        relation = rng.choice(RELATIONS)
        spots = ((0.5, 0.26), (0.5, 0.74)) if relation == "above" else ((0.26, 0.5), (0.74, 0.5))
        things = tuple(
            Thing(c, s, x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02), 0.195 * rng.uniform(0.95, 1.05))
            for (c, s), (x, y) in zip(((colour, shape), other), spots, strict=True)
        )
        scene = Scene(things, "", style, relation=relation)
    else:
        raise ValueError(f"kind={kind!r} must be single, plain, count or pair")
    used = {thing.colour for thing in things}
    return replace(scene, background=rng.choice([name for name in COLOURS if name not in used]))


def _place(rng: random.Random, colour: str, shape: str, size: str, position: str) -> Thing:
    radius = SIZES[size] * rng.uniform(0.94, 1.06)
    x, y = (0.5 + rng.uniform(-0.05, 0.05) for _ in range(2))
    margin = radius + 0.03 + rng.uniform(0, 0.04)  # big objects have little room to move: their margin is all of it
    spots = {
        "on the left": (margin, y),
        "on the right": (1 - margin, y),
        "at the top": (x, margin),
        "at the bottom": (x, 1 - margin),
    }
    x, y = spots.get(position, (x, y))
    return Thing(colour, shape, x, y, radius)


def _slots(rng: random.Random, count: str) -> list[tuple[float, float]]:
    spots = {
        "two": [(0.27, 0.5), (0.73, 0.5)],
        "three": [(0.5, 0.26), (0.26, 0.72), (0.74, 0.72)],
        "four": [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)],
    }[count]
    return [(x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)) for x, y in spots]


def clauses(scene: Scene) -> tuple[str, str, str]:
    """Return the plainest wording of a scene as (objects, background, style); flat style is the unsaid default."""
    names = [f"{article(t.colour)} {t.colour} {t.shape}" for t in scene.things]
    if scene.kind == "count":
        objects = f"{scene.count} {scene.things[0].colour} {plural(scene.things[0].shape)}"
    elif scene.kind == "pair":
        objects = f"{names[0]} {scene.relation} {names[1]}"
    else:
        thing = scene.things[0]
        first = scene.size or thing.colour
        objects = " ".join(filter(None, (article(first), scene.size, thing.colour, thing.shape, scene.position)))
    background = f"on {article(scene.background)} {scene.background} background"
    return objects, background, "" if scene.style == "flat" else f"{scene.style} style"


def plain_caption(scene: Scene) -> str:
    """Return the wording that tests and scores use: `a red circle on a blue background, outline style`."""
    objects, background, style = clauses(scene)
    return f"{objects} {background}" + (f", {style}" if style else "")


def caption(scene: Scene, rng: random.Random, *, long: float = 0.0) -> str:
    """Describe a scene as some person might.

    Args:
        scene: what is in the picture.
        rng: chooses the wording.
        long: probability of a caption of 60 to 280 words, its clauses scattered among words that say nothing.
    """
    objects, background, style = clauses(scene)
    if scene.kind == "single" and rng.random() < 0.08:
        objects = objects.split(" ", 1)[1]
    background = rng.choices(
        (background, f"on {scene.background}", f"with {background[3:]}", f"{scene.background} background", ""),
        (62, 10, 10, 8, 10),
    )[0]
    if not style and rng.random() < 0.1:
        style = "flat style"
    if rng.random() < long:
        return _scatter([objects, background, style], rng)
    text = " ".join(filter(None, (objects, background)))
    if rng.random() < 0.15:
        text = f"{rng.choice(OPENERS)} {text}"
    if style:
        text = f"{style}, {text}" if rng.random() < 0.25 else f"{text}, {style}"
    if rng.random() < 0.2:
        fillers = [_filler(rng) for _ in range(rng.randint(1, 5))]
        text = ", ".join([*fillers, text] if rng.random() < 0.4 else [text, *fillers])
    return text


def _filler(rng: random.Random) -> str:
    return rng.choice(FILLERS) if rng.random() < 0.7 else " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))


def _scatter(parts: list[str], rng: random.Random) -> str:
    words = rng.randint(60, 280)
    phrases: list[str] = []
    while sum(phrase.count(" ") + 2 for phrase in phrases) < words:  # a comma is a token too
        phrases.append(_filler(rng))
    spots = sorted(rng.randint(0, len(phrases)) for _ in parts)
    for offset, (spot, part) in enumerate(zip(spots, parts, strict=True)):
        phrases.insert(spot + offset, part)
    return ", ".join(filter(None, phrases))


def training_scene(rng: random.Random) -> Scene:
    """Draw from the mix that the model is trained on: 66 % one object, 14 % counts, 20 % pairs; 74 % flat."""
    kind = rng.choices(("single", "plain", "count", "pair"), (44, 22, 14, 20))[0]
    style = rng.choices(STYLES, (74, 9, 9, 8))[0]
    return draw_scene(rng, kind, style=style)
