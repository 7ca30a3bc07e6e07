"""Do words count as they should? `python -m benchmarks.shapes.words --number 50` prints one JSON line.

`long`: a prompt of 200 tokens whose only colour word stands after the 150th token (in its third chunk), against the same words in
short: the share of pictures whose thing has the colour, and the one divided by the other. `weight`: "a red (blue:w) circle" with w from
0.4 to 1.6: the share of pictures in which the circle is blue, which must not fall.
"""

import argparse
import json
import random
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.shapes.product import PRESETS, Product
from benchmarks.shapes.world import COLOURS, SHAPES, WORDS
from studio.store.tokenizers import Tokenizers
from trainers.scorers.reading import judge

TOKENS, AFTER = 200, 150
WEIGHTS = (0.4, 0.7, 1.0, 1.3, 1.6)
TOKENIZER = PRESETS / "models" / "shapes" / "tokenizer"


def long_prompt(shape: str, colour: str, rng: random.Random) -> str:
    """Write a prompt of 200 tokens that names its colour after the 150th, the rest being words that say nothing of colours.

    Raises:
        ValueError: if it has another length.
    """
    words, told = Tokenizers().get(TOKENIZER), {*COLOURS, *SHAPES}
    fillers = [one for one in WORDS if not told & set(one.replace(",", "").split()) and len(words.ids(one)) == 1]
    head = ["a", shape, ","]
    rest = ["a", colour, shape]
    middle = [rng.choice(fillers) for _ in range(AFTER - len(head))]
    tail = [rng.choice(fillers) for _ in range(TOKENS - AFTER - len(rest))]
    text = " ".join([*head, *middle, *rest, *tail])
    found = words.ids(text)
    if len(found) != TOKENS or found.index(words.ids(colour)[0]) < AFTER:
        raise ValueError(f"the prompt has {len(found)} tokens: {text}")
    return text


def share(product: Product, prompts: list[tuple[str, str]]) -> float:
    """Draw prompts and return the share of pictures whose largest thing has the wanted colour.

    Args:
        product: draws.
        prompts: of (prompt, colour); the place is the seed.
    """
    right = 0
    for seed, (prompt, colour) in enumerate(prompts):
        things = judge(product.draw(prompt=prompt, seed=seed)).things
        right += bool(things) and things[0].colour == colour
    return right / len(prompts)


def obeyed(product: Product, number: int) -> dict[str, float]:
    """Return how often a colour is drawn that is named late, and early, and their ratio."""
    rng = random.Random("words")
    wanted = [(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(number)]
    late = share(product, [(long_prompt(shape, colour, rng), colour) for colour, shape in wanted])
    short = share(product, [(f"a {colour} {shape}", colour) for colour, shape in wanted])
    return {"long": round(late, 3), "short": round(short, 3), "ratio": round(late / max(short, 1e-9), 3)}


def blue_shares(product: Product, number: int) -> dict[str, float]:
    """Return the share of blue circles by the weight of `blue` beside `red`."""
    return {
        f"{weight:g}": round(share(product, [(f"a red (blue:{weight:g}) circle", "blue")] * number), 3)
        for weight in WEIGHTS
    }


def grows(shares: dict[str, float]) -> bool:
    """Whether shares never fall, and rise on the whole."""
    values = list(shares.values())
    return all(first <= second for first, second in pairwise(values)) and values[0] < values[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=50, help="pictures of each kind")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder))
        result = {"number": flags.number, "late colour": obeyed(product, flags.number)}
        shares = blue_shares(product, flags.number)
    print(json.dumps(result | {"blue by weight": shares, "grows": grows(shares)}))


if __name__ == "__main__":
    main()
