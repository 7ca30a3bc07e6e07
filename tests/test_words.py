"""The measure of words: its long prompts are what they claim, and it can fail."""

import random

from benchmarks.shapes.words import AFTER, TOKENIZER, TOKENS, grows, long_prompt
from benchmarks.shapes.world import COLOURS, SHAPES
from studio.store.tokenizers import Tokenizers


def test_a_long_prompt_names_one_colour_and_names_it_late() -> None:
    words, rng = Tokenizers().get(TOKENIZER), random.Random(1)
    for colour in COLOURS:
        text = long_prompt(rng.choice(SHAPES), colour, rng)
        said = text.split()
        assert len(words.ids(text)) == TOKENS
        assert [word for word in said if word in COLOURS] == [colour]
        assert said.index(colour) >= AFTER


def test_a_share_that_falls_or_stays_does_not_grow() -> None:
    assert grows({"0.4": 0.0, "1": 0.5, "1.6": 0.5})
    assert not grows({"0.4": 0.0, "1": 0.6, "1.6": 0.5})
    assert not grows({"0.4": 0.5, "1": 0.5})
