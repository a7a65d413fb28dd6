"""The words of a block of text as ids, by the standard library alone.

Also runs in processes of its own: pickled blocks on stdin, pickled answers on stdout. As it imports nothing of the
package but decoding.py, nor numpy, a worker starts in 30 ms and never needs the caller's `if __name__ == "__main__"`.
"""

import pickle
import sys
from array import array
from itertools import islice

from .decoding import decode, found_in

END = 0
"""The id that stands for the end of a line."""

_MARK = "\0"  # which no decoded text has


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

    def encode(self, block, begins_line: bool, last: bool, lower: bool) -> tuple[bool, object]:
        """(True, (int32 ids of the words in order with END behind each line, new words in the order of their ids, what
        is odd)), or (False, the place of the byte that is not UTF-8), or (False, an OSError's text).

        A block is bytes, or (path, offset, length) of them; it ends behind white space, and not between a return and
        what follows it, or with its file, which `last` says. `begins_line`: whether it stands at the start of a line.
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
    """The words, and a mark at the end of every line and of the file."""
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
