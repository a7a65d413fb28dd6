"""What a text in bytes says, by one rule for every text that comes in.

- Text is UTF-8; UTF-16, UTF-32 and packed content are told by their first bytes.
- A line ends with a line feed, with returns and a line feed (CRLF), or with a return alone.
- A byte order mark (U+FEFF) at the start of a line is no part of it: files begin so, also those that were joined.
- NUL is a blank.

Imports nothing of the package, nor numpy: processes that read for `prepare` start with this alone. kernels/text counts
words by the same rule, compiled.
"""

import re
from collections.abc import Iterable

MARK = "\ufeff"
MARK_BYTES = MARK.encode()
LOOKED_AT = 16  # bytes at the start of a text that tell what it is

_ENDS = re.compile("\r+\n?|\n")
_END_BYTES = re.compile(rb"\r+\n?|\n")
_MARKS_BEHIND = re.compile(f"(?<=\n){MARK}+")
_MARKS_BYTES = re.compile(rb"(?:" + MARK_BYTES + rb")+")
_UTF_16, _UTF_32 = (
    f"is in UTF-{bits}, not UTF-8; convert it: iconv -f UTF-{bits} -t UTF-8" for bits in (16, 32)
)
_FOREIGN = {  # by their first bytes; of two that fit, the longer stands first
    b"\xff\xfe\0\0": _UTF_32,
    b"\0\0\xfe\xff": _UTF_32,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"\x1f\x8b": "is packed by gzip; unpack it: gzip -d",
    b"PK\x03\x04": "is a zip archive or an office document, no text; unpack it, or save it as text in UTF-8",
    b"\xfd7zXZ\0": "is packed by xz; unpack it: xz -d",
    b"\x28\xb5\x2f\xfd": "is packed by zstd; unpack it: zstd -d",
}


def foreign(start: bytes) -> str | None:
    """What a text that begins so is, and the fix, where it is not UTF-8 by its first bytes; `start` is LOOKED_AT of
    them, or all.
    """
    for magic, said in _FOREIGN.items():
        if start.startswith(magic):
            return said
    if len(start) < 4:
        return None
    # Without a mark: most letters of most texts have a byte of zeros in UTF-16, and two or three in UTF-32.
    first, second, third, fourth = (start[i::4] for i in range(4))
    for zeros, others in ((third + fourth, first), (first + second, fourth)):
        if not any(zeros) and all(others):
            return _UTF_32
    even, odd = first + third, second + fourth
    for zeros, others in ((odd, even), (even, odd)):
        if 2 * zeros.count(0) > len(zeros) and all(others):
            return _UTF_16
    return None


def decode(content: bytes, begins_line: bool = True, joined: bool = True) -> str:
    """The text of bytes, in which every line ends in a line feed; raises UnicodeDecodeError.

    They must not end between a return and what follows it. begins_line: whether they stand at the start of a line,
    where a mark is dropped; joined: whether it is at the start of their other lines, too.
    """
    text = content.decode("utf-8")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:
            text = _ENDS.sub(_as_feeds, text)
    if "\0" in text:
        text = text.replace("\0", " ")
    if MARK in text:
        text = text.lstrip(MARK) if begins_line else text
        text = _MARKS_BEHIND.sub("", text) if joined else text
    return text


def _as_feeds(ends: re.Match[str]) -> str:
    """A line feed for each line that ends there: returns before one are one end with it."""
    return "\n" if ends[0][-1] == "\n" else "\n" * len(ends[0])


def count_ends(pieces: Iterable[bytes]) -> int:
    """How many lines end in the pieces of a text, wherever it is cut."""
    n, held = 0, b""
    for piece in pieces:
        piece = held + piece
        body = piece.rstrip(b"\r")  # a line feed may follow
        held = piece[len(body) :]
        n += _ends_in(body)
    return n + _ends_in(held)


def _ends_in(content: bytes) -> int:
    if b"\r" not in content:
        return content.count(b"\n")
    return sum(1 if ends[-1:] == b"\n" else len(ends) for ends in _END_BYTES.findall(content))


def end_of_lines(content: bytes) -> int:
    """The place behind the last end of a line that is surely whole, 0 where there is none."""
    body = content.rstrip(b"\r")
    return max(body.rfind(b"\n"), body.rfind(b"\r")) + 1


Found = tuple[dict[str, tuple[int, int]], bool]
"""By kind of oddity how many there are and the line of the first; and whether a line ends in a line feed."""


class Oddities:
    """What a text has that is read by the rule and should be said all the same: how often, and on which line first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}
        self._has_feeds = False

    def look(self, content: bytes | bytearray, n: int, number: int, begins_line: bool = True) -> None:
        """Look at content[:n], whose first line is line `number`; a text's blocks come in their order."""
        self.add(found_in(content, n, begins_line), number)

    def add(self, found: Found, number: int) -> None:
        """What is in a block whose first line is line `number`."""
        counted, has_feeds = found
        self._has_feeds = self._has_feeds or has_feeds
        for kind, (count, line) in counted.items():
            before, first = self._found.get(kind, (0, 0))
            self._found[kind] = before + count, first or number + line

    def notes(self) -> list[str]:
        """A line for each kind."""
        said = {
            "nul": "NUL characters read as blanks: {:,}, the first on line {}",
            "return": "lines that end in a return alone, where others end in a line feed: {:,}, the first is line {}",
            "mark": "byte order marks kept within lines: {:,}, the first on line {}; were files joined without a line "
            "feed between them?",
        }
        if not self._has_feeds:
            del said["return"]
        return [text.format(*self._found[kind]) for kind, text in said.items() if kind in self._found]


def found_in(content: bytes | bytearray, n: int, begins_line: bool) -> Found:
    """What is odd in content[:n], with lines from 0. What has nothing is told by four searches for a byte."""
    places: dict[str, list[int]] = {}
    if content.find(b"\0", 0, n) >= 0:
        places["nul"] = [m.start() for m in re.finditer(b"\0", bytes(content[:n]))]
    if content.find(b"\r", 0, n) >= 0 and content.count(b"\r", 0, n) > content.count(b"\r\n", 0, n):
        ends = _END_BYTES.finditer(bytes(content[:n]))
        places["return"] = [at for m in ends if m[0][-1:] == b"\r" for at in range(*m.span())]
    if content.find(MARK_BYTES[:1], 0, n) >= 0 and content.find(MARK_BYTES, 0, n) >= 0:
        places["mark"] = [
            m.start()
            for m in _MARKS_BYTES.finditer(bytes(content[:n]))
            if (content[m.start() - 1] not in b"\r\n" if m.start() else not begins_line)
        ]
    counted = {
        kind: (len(all_), count_ends([bytes(content[: all_[0]])])) for kind, all_ in places.items() if all_
    }
    return counted, content.find(b"\n", 0, n) >= 0
