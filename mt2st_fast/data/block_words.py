"""Words of a block of text: counting them and giving them ids, by the standard library alone.

Also runs as a script: pickled requests (name, arguments) on stdin, pickled answers on stdout. As it imports nothing of
the package, nor numpy, a worker starts in 30 ms and never needs the caller's `if __name__ == "__main__"`.
"""

import pickle
import sys
from array import array
from collections import Counter
from itertools import repeat

UNKNOWN, END = -1, -2
"""What `encode` writes for a word without an id and for the end of a sentence."""

_MARK = "\0"


class Blocks:
    """What a worker does. Blocks are UTF-8 bytes, or (path, offset, length) of them; `first` and `last` say whether
    the block begins and ends its file; a block ends behind white space or with its file.

    A line is a sentence, white space is what `str.split` takes for it, and so is NUL.
    """

    def __init__(self) -> None:
        self._id_of: dict[str, int] = {}

    def count(self, block, first: bool, last: bool, lower: bool) -> dict[str, int]:
        """How often each word occurs."""
        counter = Counter(_words(block, first, last, lower))
        del counter[_MARK]
        return dict(counter)

    def know(self, words: list[str]) -> None:
        """Take the words that have ids: their places in the list."""
        self._id_of = {word: i for i, word in enumerate(words)}
        self._id_of[_MARK] = END

    def encode(self, block, first: bool, last: bool, lower: bool) -> bytes:
        """int32 ids of the words in order, with UNKNOWN and END."""
        words = _words(block, first, last, lower)
        return array("i", map(self._id_of.get, words, repeat(UNKNOWN))).tobytes()


def _words(block, first: bool, last: bool, lower: bool) -> list[str]:
    """The words, and a mark at the end of every line and of the file."""
    if not isinstance(block, bytes):
        path, offset, length = block
        with open(path, "rb") as file:
            file.seek(offset)
            block = file.read(length)
    text = block.decode("utf-8")
    if first:
        text = text.removeprefix("\ufeff")
    if _MARK in text:
        text = text.replace(_MARK, " ")
    # A mark in place of the line feeds lets one split do all lines, however long they are.
    text = text.replace("\n", f" {_MARK} ")
    if lower:
        text = text.lower()
    words = text.split()
    if last:
        words.append(_MARK)
    return words


def answer(blocks: Blocks, name: str, arguments: tuple) -> tuple[bool, object]:
    """(True, what the method returned), or (False, the place of the byte that is not UTF-8 or an OSError's text)."""
    try:
        return True, getattr(blocks, name)(*arguments)
    except UnicodeDecodeError as error:
        return False, error.start
    except OSError as error:
        return False, error.strerror or str(error)


def main() -> None:
    """Answer requests until there are no more."""
    blocks = Blocks()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(blocks, name, arguments), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
