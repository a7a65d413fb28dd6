"""How a text is cut into words, by the name that a reader of training data has for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

WORD = r"\w+(?:['’]\w+)*|[^\w\s]"
MOST_PIECES = 1 << 17  # remembered at a time
LONGEST_PIECE = 64  # characters; longer ones seldom come twice


class _Pieces(dict[str, tuple[str, ...]]):
    """The words of a piece of text between blanks. Each is cut once: most of a text is the same pieces again."""

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
    """The words, numbers and single punctuation marks of a text, none of which goes over a blank."""
    return list(chain.from_iterable(map(_pieces.__getitem__, text.split())))


def lowered_words_and_marks(text: str) -> list[str]:
    """Those of the text in lower case."""
    return words_and_marks(text.lower())


# Where files say themselves what a word is (conllu, columns), other text is cut at blanks and around punctuation marks.
Cut = Callable[[str], list[str]]
TOKENIZERS: dict[str, Cut] = {
    "words": words_and_marks,
    "lowered words": lowered_words_and_marks,
    "blanks": str.split,
}
