"""The words of a block of text as ids, by the standard library alone.

Also runs in separate processes, with pickled blocks on stdin and pickled answers on stdout. As it imports neither NumPy
nor anything of the package but decoding.py, a worker starts in 30 ms and never needs the caller's `if __name__ ==
"__main__"`.
"""

import pickle
import sys
from array import array
from itertools import islice

from .decoding import decode, found_in

END = 0
"""The id that stands for the end of a line."""

_MARK = "\0"  # occurs in no decoded text


class WordIds(dict):
    """Word -> id; a word gets the next free id at its first look-up."""

    def __init__(self) -> None:
        super().__init__({_MARK: END})

    def __missing__(self, word: str) -> int:
        self[word] = new = len(self)
        return new


class Encoder:
    """Converts blocks to its own ids, and reports the words that are new to it."""

    def __init__(self) -> None:
        self._id_of = WordIds()

    def encode(self, block, begins_line: bool, last: bool, lower: bool) -> tuple[bool, object]:
        """Return (True, (ids, new words, oddities)), or (False, the error).

        ids are int32 in text order with END after each line; new words are in the order of their ids. The error is the
        position of the byte that is not UTF-8, or the text of an OSError.

        A block is bytes, or their (path, offset, length). It ends after white space, but not between a return and what
        follows it, or at the end of its file, which `last` indicates. begins_line: whether it begins at the start of a
        line.
        """
        known = len(self._id_of)
        try:
            content = block if isinstance(block, bytes) else _bytes_of(*block)
            words = _words(decode(content, begins_line), last, lower)
        except UnicodeDecodeError as error:
            return False, error.start
        except OSError as error:
            return False, error.strerror or str(error)
        ids = array("i", map(self._id_of.__getitem__, words))
        new = list(islice(self._id_of, known, None)) if len(self._id_of) > known else []
        return True, (ids.tobytes(), new, found_in(content, len(content), begins_line))


def _bytes_of(path: str, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _words(text: str, last: bool, lower: bool) -> list[str]:
    """Return the words, and a mark at the end of every line and of the file."""
    # With marks in place of line feeds, a single split handles all lines, however long they are.
    text = text.replace("\n", f" {_MARK} ")
    if lower:
        text = text.lower()
    words = text.split()
    if last:
        words.append(_MARK)
    return words


def main() -> None:
    """Answer requests for blocks until there are no more."""
    encoder = Encoder()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(encoder.encode(*request), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()
