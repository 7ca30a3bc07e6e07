"""Whether a word is a good name for something new: what the tokenizer of a model says, without torch."""

from studio.errors import ModelError
from studio.settings import CLIP_VOCABULARY, CLIP_WORDS
from studio.store.models import Model
from studio.store.tokenizers import Tokenizers, Words
from studio.word_facts import WordFacts, look_up, rare_words

PROPOSED = 3


def tokenizer_of(tokenizers: Tokenizers, model: Model) -> Words | None:
    """Return what cuts a model's prompts into tokens, that of its first text encoder; None if it cannot be read here."""
    if model.single:  # its vocabulary is CLIP's own, or that of another model, which is not looked up here
        folder = CLIP_VOCABULARY if {*model.words_known.values()} == {CLIP_WORDS} else None
    else:
        folder = next((path for path in (model.path / "tokenizer", model.path / "tokenizer_2") if path.is_dir()), None)
    try:
        return tokenizers.get(folder) if folder else None
    except ModelError:
        return None


def judge_trigger(tokenizers: Tokenizers, model: Model, word: str) -> tuple[WordFacts | None, list[str]]:
    """Look a word up; return what is known (None if nothing can be) and rare words to take instead."""
    words = tokenizer_of(tokenizers, model) if word.strip() else None
    return (look_up(words, word), rare_words(words, PROPOSED)) if words else (None, [])
