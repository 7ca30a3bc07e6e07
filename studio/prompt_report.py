"""What a model really gets of a prompt, as data: tokens by chunk and text encoder, what is cut, ignored or unknown."""

from studio.chunks import Groups, cut_chunks
from studio.fields import Frozen
from studio.prompt_syntax import Piece


class TokenReport(Frozen):
    """A token: what it stands for, how much it counts, and whether it is a textual inversion's vector."""

    text: str
    weight: float = 1.0
    embedding: bool = False


class EncoderReport(Frozen):
    """What one text encoder gets.

    Attributes:
        name: of its tokenizer in the pipeline, `tokenizer_2`.
        kind: `clip` or `t5`.
        tokens: how many, without those that begin and end a chunk.
        limit: what its chunks hold, or the most that it reads.
        chunks: its tokens.
        cut: the end of the text, if that is not read.
        problem: why nothing could be counted.
    """

    name: str
    kind: str
    tokens: int = 0
    limit: int = 75
    chunks: tuple[tuple[TokenReport, ...], ...] = ()
    cut: str = ""
    problem: str = ""


class TextReport(Frozen):
    """What becomes of one prompt.

    Attributes:
        text: with styles and choices, without LoRA; a template's choices are those of the request's seed.
        moments: (part of the steps, words from there on); encoders tell of the longest.
        encoders: of the model, in its order.
        tokens: of the encoder that a person counts by.
        limit: likewise.
        ignored: why the model hears nothing of it, "" if it does.
    """

    text: str
    moments: tuple[tuple[float, str], ...] = ()
    encoders: tuple[EncoderReport, ...] = ()
    tokens: int = 0
    limit: int = 75
    ignored: str = ""


class PromptReport(Frozen):
    """What becomes of a request's words.

    Attributes:
        loras: names that were found, likewise `embeddings`.
        unknown: kind (`lora`, `embedding`, `wildcard`, `style`) -> names that are not there.
        unknown_words: that the model does not know, if it has a list.
        notes: what is ignored, and why.
        problems: why the request would be refused.
    """

    model: str
    family: str
    prompt: TextReport
    negative_prompt: TextReport
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    unknown: dict[str, tuple[str, ...]] = {}
    unknown_words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def chunk_report(
    name: str, sections: list[list[Piece]], groups: Groups, said: dict[int, str], room: int
) -> EncoderReport:
    """Report what a CLIP gets.

    Args:
        name: of its tokenizer.
        sections: of the prompt.
        groups: tokenizes, see `cut_chunks`; notes in `said` what each id stands for.
        said: id -> its text.
        room: tokens a chunk.
    """
    chunks = cut_chunks(sections, groups, room)
    told = tuple(
        tuple(TokenReport(text=said[token.id], weight=token.weight, embedding=token.id < 0) for token in chunk)
        for chunk in chunks
    )
    return EncoderReport(name=name, kind="clip", tokens=sum(map(len, chunks)), limit=room * len(chunks), chunks=told)
