"""How a prompt's words become the chunks that a CLIP text encoder reads: the one rule, for the engine and for the report."""

from collections.abc import Callable
from typing import NamedTuple

from studio.prompt_syntax import Piece

Groups = Callable[[str], list[list[int]]]  # a text -> its tokens' ids, in groups that stay together


class Token(NamedTuple):
    """A token and how much it counts; below 0 an `id` is a textual inversion's vector."""

    id: int
    weight: float


def cut_chunks(sections: list[list[Piece]], groups: Groups, room: int) -> list[list[Token]]:
    """Cut a prompt into chunks of at most `room` tokens.

    Args:
        sections: of `parse_prompt`; each begins a chunk.
        groups: tokenizes; a group that does not fit into a chunk's rest begins the next.
        room: tokens a chunk.

    Returns:
        At least one chunk, which may be empty.
    """
    chunks: list[list[Token]] = []
    for section in sections:
        chunks.append([])
        for piece in section:
            for group in groups(piece.text):
                if len(chunks[-1]) + len(group) > room:
                    chunks.append([])
                chunks[-1] += [Token(one, piece.weight) for one in group]
    return chunks
