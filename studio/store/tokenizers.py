"""Tokenizers of model folders without torch: `tokenizer.json`, or the older `vocab.json` and `merges.txt` of CLIP."""

import json
from pathlib import Path
from typing import Any

from studio.errors import ModelError
from studio.store.headers import read_json

CLIP_LENGTH = 77
# CLIP's own splitting (transformers 5.17, `CLIPTokenizer`), which its old folders do not say.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Words:
    """A tokenizer.

    Args:
        tokenizer: that does the work.
        length: tokens a chunk, those that begin and end it too.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self.length = tokenizer, length
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def ids(self, text: str, *, marks: bool = False) -> list[int]:
        """Return the ids of a text, with or without the marks of beginning and end."""
        return self._tokenizer.encode(text, add_special_tokens=marks).ids

    def tokenize(self, text: str) -> list[str]:
        """Cut a text into tokens, as they stand in the vocabulary."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens

    def get_vocab(self) -> dict[str, int]:
        """Return the place of each token."""
        return self._tokenizer.get_vocab()

    @property
    def unk_token(self) -> str | None:
        """What stands for words that it does not know."""
        return getattr(self._tokenizer.model, "unk_token", None)

    def text(self, *ids: int) -> str:
        """Return what tokens say."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False).replace("</w>", " ").strip()


class Tokenizers:
    """Reads tokenizers, and remembers them as long as their files stay the same."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[list[tuple[int, int]], Words]] = {}

    def get(self, folder: Path) -> Words:
        """Read the tokenizer of a folder.

        Raises:
            ModelError: if there is none that can be read without its own code.
        """
        files = [folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")]
        facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
        if self._known.get(folder, (None,))[0] != facts:
            self._known[folder] = facts, _read(folder)
        return self._known[folder][1]


def _read(folder: Path) -> Words:
    from tokenizers import Tokenizer  # not before it is needed: the page starts without it

    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    length = config.get("model_max_length", CLIP_LENGTH)
    try:
        if (folder / "tokenizer.json").is_file():
            made = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            made = _old_clip(folder)
        else:
            raise ModelError(f"{folder.name} has no tokenizer.json, so that its tokens cannot be counted here")
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception for whatever is wrong with a file
        raise ModelError(f"{folder.name} cannot be read: {str(error).splitlines()[0][:200]}; copy it again") from None
    return Words(made, length if isinstance(length, int) else CLIP_LENGTH)


def _old_clip(folder: Path) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines[1:] if line)]
    bpe = models.BPE(
        vocab=vocabulary,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token="<|endoftext|>",
    )
    made = Tokenizer(bpe)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return made
