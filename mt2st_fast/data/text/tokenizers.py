"""How a text is split into words, by the names that readers of training data use."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"
MOST_PIECES = 1 << 17  # maximum of cached pieces
LONGEST_PIECE = 64  # characters; longer pieces seldom repeat


class _Pieces(dict[str, tuple[str, ...]]):
    """The words of a piece of text between blanks. Each is split once, as most pieces of a text repeat."""

    def __missing__(self, piece: str) -> tuple[str, ...]:
        words = tuple(_cut(piece))
        if len(piece) <= LONGEST_PIECE:
            if len(self) >= MOST_PIECES:
                self.clear()
            self[piece] = words
        return words


_cut = re.compile(WORD).findall
_pieces = _Pieces()


def words_and_marks(text: str) -> list[str]:
    """Return the words, numbers and single punctuation marks of a text; none of them spans a blank."""
    return list(chain.from_iterable(map(_pieces.__getitem__, text.split())))


def lowered_words_and_marks(text: str) -> list[str]:
    """Return the words and marks of the text in lower case."""
    return words_and_marks(text.lower())


# For formats that give the words (conllu, columns), other text is split at blanks and around punctuation marks.
Cut = Callable[[str], list[str]]
TOKENIZERS: dict[str, Cut] = {
    "words": words_and_marks,
    "lowered words": lowered_words_and_marks,
    "blanks": str.split,
}
