"""The words of a block of text as ids, by the standard library alone.

Also runs as a script: pickled blocks on stdin, pickled answers on stdout. As it imports nothing of the package, nor
numpy, a worker starts in 30 ms and never needs the caller's `if __name__ == "__main__"`.
"""

import pickle
import sys
from array import array
from itertools import islice

END = 0
"""The id that stands for the end of a line."""

_MARK = "\0"


class WordIds(dict):
    """Word -> id; a word gets the next free id when it is first asked for."""

    def __init__(self) -> None:
        super().__init__({_MARK: END})

    def __missing__(self, word: str) -> int:
        self[word] = new = len(self)
        return new


class Encoder:
    """Turns blocks into ids of its own, and tells the words that are new to it."""

    def __init__(self) -> None:
        self._id_of = WordIds()

    def encode(self, block, first: bool, last: bool, lower: bool) -> tuple[bool, object]:
        """(True, (int32 ids of the words in order with END behind each line, new words in the order of their ids)),
        or (False, the place of the byte that is not UTF-8), or (False, an OSError's text).

        A block is UTF-8 bytes, or (path, offset, length) of them; `first` and `last` say whether it begins and ends
        its file. It ends behind white space or with its file. White space is what `str.split` takes for it, and NUL.
        """
        known = len(self._id_of)
        try:
            words = _words(block, first, last, lower)
        except UnicodeDecodeError as error:
            return False, error.start
        except OSError as error:
            return False, error.strerror or str(error)
        ids = array("i", map(self._id_of.__getitem__, words))
        new = list(islice(self._id_of, known, None)) if len(self._id_of) > known else []
        return True, (ids.tobytes(), new)


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


def main() -> None:
    """Answer for blocks until there are no more."""
    encoder = Encoder()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(encoder.encode(*request), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
