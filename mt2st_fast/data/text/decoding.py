"""Decode the bytes of a text, by one rule for all text input.

- Text is UTF-8; UTF-16, UTF-32 and compressed content are recognized by their first bytes.
- A line ends with a line feed, with returns and a line feed (CRLF), or with a return alone.
- A byte order mark (U+FEFF) at the start of a line is not part of it: files begin so, also those that were joined.
- NUL is a blank.

kernels/text counts words by the same rule, compiled.
"""

import re
from collections.abc import Iterable

MARK = "\ufeff"
MARK_BYTES = MARK.encode()
LOOKED_AT = 16  # bytes at the start of a text that identify its encoding

_ENDS = re.compile("\r+\n?|\n")
_END_BYTES = re.compile(rb"\r+\n?|\n")
_MARKS_BEHIND = re.compile(f"(?<=\n){MARK}+")
_MARKS_BYTES = re.compile(rb"(?:" + MARK_BYTES + rb")+")
_UTF_16, _UTF_32 = (
    f"is in UTF-{bits}, not UTF-8; convert it: iconv -f UTF-{bits} -t UTF-8" for bits in (16, 32)
)
_FOREIGN = {  # by their first bytes; of two that match, the longer comes first
    b"\xff\xfe\0\0": _UTF_32,
    b"\0\0\xfe\xff": _UTF_32,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"\x1f\x8b": "is compressed with gzip; decompress it: gzip -d",
    b"PK\x03\x04": "is a zip archive or an office document, not text; extract it, or save it as UTF-8 text",
    b"PAR1": "is a Parquet file, not text; save it as CSV or JSON lines",
    b"\xfd7zXZ\0": "is compressed with xz; decompress it: xz -d",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it: zstd -d",
}


def foreign(start: bytes) -> str | None:
    """Say what a text is, and the fix, if its first bytes show that it is not UTF-8; None if it may be.

    start: the first LOOKED_AT bytes, or all of a shorter text.
    """
    for magic, said in _FOREIGN.items():
        if start.startswith(magic):
            return said
    if len(start) < 4:
        return None
    # Without a byte order mark: most letters have one zero byte in UTF-16, and two or three in UTF-32.
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
    """Decode bytes to a text in which every line ends with a line feed; raises UnicodeDecodeError.

    They must not end between a return and what follows it. begins_line: whether they begin at the start of a line,
    where a byte order mark is dropped. joined: whether the mark is also dropped at the start of their other lines.
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
    """Return a line feed for each line that ends here; returns before a line feed belong to the same line end."""
    return "\n" if ends[0][-1] == "\n" else "\n" * len(ends[0])


def count_ends(pieces: Iterable[bytes]) -> int:
    """Count the line ends in the pieces of a text, wherever it is cut."""
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
    """Return the position after the last line end that is surely complete, 0 where there is none."""
    body = content.rstrip(b"\r")
    return max(body.rfind(b"\n"), body.rfind(b"\r")) + 1


class Oddities:
    """What a text contains that is read by the rule but worth a note: how often, and on which line first."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}
        self._has_feeds = False

    def look(self, content: bytes | bytearray, n: int, number: int, begins_line: bool = True) -> None:
        """Check content[:n], whose first line is line `number`; the blocks of a text must come in order."""
        self._has_feeds = self._has_feeds or content.find(b"\n", 0, n) >= 0
        for kind, places in _odd_places(content, n, begins_line).items():
            if places:
                count, first = self._found.get(kind, (0, 0))
                first = first or number + count_ends([bytes(content[: places[0]])])
                self._found[kind] = count + len(places), first

    def notes(self) -> list[str]:
        """Return one line for each kind."""
        said = {
            "nul": "NUL characters read as spaces: {:,}, the first on line {}",
            "return": "lines that end in a lone carriage return, where others end in a line feed: {:,}, the first is "
            "line {}",
            "mark": "byte order marks kept within lines: {:,}, the first on line {}; were files joined without a line "
            "feed between them?",
        }
        if not self._has_feeds:
            del said["return"]
        return [text.format(*self._found[kind]) for kind, text in said.items() if kind in self._found]


def _odd_places(content: bytes | bytearray, n: int, begins_line: bool) -> dict[str, list[int]]:
    """Return where each kind of oddity is in content[:n]. Three byte searches suffice if there is nothing."""
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
    return places
