"""How a tokenizer reads a word, and what that means for teaching: whether it is known, and whether it is rare. No torch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

START, END = "▁", "</w>"  # what T5's tokens begin with where a word begins, and CLIP's end in where it ends
RARE = 0.75  # part of the vocabulary after which words are rare: merges stand in it in the order of their frequency
LETTERS = range(3, 5)  # of words that are proposed


class Tokenizer(Protocol):
    """What a tokenizer of transformers can do, as far as it is needed here."""

    @property
    def unk_token(self) -> str | None:
        """What stands for words that it does not know."""
        ...

    def tokenize(self, text: str) -> list[str]:
        """Cut a text into tokens."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the place of each token."""
        ...


class WordFacts(NamedTuple):
    """How a tokenizer reads a word.

    Attributes:
        word: as it was given.
        pieces: the tokens, without marks of where words begin or end; empty for a word of blanks.
        ranks: place of each in the vocabulary, from 0: the higher, the rarer; `size` for what is not in it.
        size: of the vocabulary.
        whole: whether it is one token that stands for a whole word, so that the model has a meaning for it.
        spelled: whether nothing longer than single signs was found in it: the tokenizer does not know it.
    """

    word: str
    pieces: tuple[str, ...]
    ranks: tuple[int, ...]
    size: int
    whole: bool
    spelled: bool

    @property
    def rare(self) -> bool:
        """Whether it is one token and among the rarest quarter."""
        return self.whole and self.ranks[0] >= RARE * self.size


def look_up(tokenizer: Tokenizer, word: str) -> WordFacts:
    """Read a word, or several, as a tokenizer does."""
    tokens, vocabulary = tokenizer.tokenize(word), tokenizer.get_vocab()
    pieces = tuple(token.removeprefix(START).removesuffix(END) for token in tokens)
    unknown = any(token not in vocabulary or token == tokenizer.unk_token for token in tokens)
    return WordFacts(
        word,
        pieces,
        tuple(vocabulary.get(token, len(vocabulary)) for token in tokens),
        len(vocabulary),
        len(tokens) == 1 and not unknown,
        unknown or (len(pieces) > 1 and all(len(piece) <= 1 for piece in pieces)),
    )


def rare_words(tokenizer: Tokenizer, number: int) -> list[str]:
    """Propose words of three or four letters that are one token each, the rarest of a vocabulary first."""
    vocabulary = tokenizer.get_vocab()
    short = [token for token in vocabulary if len(token) - len(END) in LETTERS and token.endswith(END)]
    plain = [token for token in short if (name := token.removesuffix(END)).isascii() and name.isalpha()]
    return [token.removesuffix(END) for token in sorted(plain, key=lambda token: -vocabulary[token])[:number]]


def advice(facts: WordFacts, proposals: Sequence[str] = ()) -> str:
    """Say in a sentence whether a word is a good name for something new.

    Args:
        facts: of the word.
        proposals: better ones, to be named where it is not.
    """
    instead = f", such as {' or '.join(proposals)}" if proposals else ""
    if facts.rare:
        return f"{facts.word!r} is one token and rare ({_rank(facts)}): a good name for something new"
    if facts.whole:
        return (
            f"{facts.word!r} is a word that the model knows ({_rank(facts)}), and its meaning will mix with the new one; "
            f"use a rarer one{instead}"
        )
    if not facts.pieces:
        return f"{facts.word!r} is no word; use a short rare one{instead}"
    return (
        f"{facts.word!r} is cut into {len(facts.pieces)} tokens ({', '.join(facts.pieces)}), each with a meaning of its own; "
        f"one rare token{instead} is learnt more easily"
    )


def _rank(facts: WordFacts) -> str:
    return f"token {facts.ranks[0] + 1:,} of {facts.size:,} by frequency"
