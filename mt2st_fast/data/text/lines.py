"""The lines of a text from a file or a pipe, in blocks, with their numbers and with notes about oddities."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mt2st_fast.data.text.decoding import LOOKED_AT, Oddities, count_ends, decode, end_of_lines, foreign
from mt2st_fast.errors import InputError
from mt2st_fast.files import peek, reading

log = logging.getLogger("mt2st_fast")
CHUNK_BYTES = 1 << 19


@contextmanager
def reading_text(path: Path, may_be_empty: bool = False) -> Iterator[BinaryIO]:
    """Open a text file for reading bytes; gzip is unpacked.

    Raises InputError as `reading` does, for an empty file, and for one in another encoding.
    """
    with reading(path) as file:
        start = peek(file, LOOKED_AT)
        if not start and not may_be_empty:
            raise InputError(f"{path}: the file is empty")
        if said := foreign(start):
            raise InputError(f"{path}: {said}")
        yield file


class TextLines:
    """The lines of a text that comes in chunks of bytes, to be iterated once: by lines, or in blocks of them.

    tell: log the notes at the end of the text. joined: whether a byte order mark is dropped at the start of any line,
    as in files that were joined, or only at the start of the text, as elsewhere it may belong to the following word.
    Iterating raises InputError, with the line, for bytes that are not UTF-8.
    """

    def __init__(self, chunks: Iterable[bytes], where: str, tell: bool = True, joined: bool = True) -> None:
        self._chunks, self._where, self._tell, self._joined = chunks, where, tell, joined
        self._oddities = Oddities()
        self.ends_open = False  # whether the last line so far has no end

    @property
    def notes(self) -> list[str]:
        """Return the notes on the lines so far."""
        return self._oddities.notes()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield (number from 1, line without its end)."""
        for number, lines in self.blocks():
            yield from enumerate(lines, number)

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (number of the first line, lines without their ends)."""
        number = 1
        for content in _whole_lines(_checked_start(self._chunks, self._where)):
            lines = self._lines(content, number)
            yield number, lines
            number += len(lines)
        if self._tell:
            for note in self.notes:
                log.warning("%s: %s", self._where, note)

    def _lines(self, content: bytes, number: int) -> list[str]:
        try:
            text = decode(content, self._joined or number == 1, self._joined)
        except UnicodeDecodeError as error:
            raise not_utf8(self._where, number, [content[: error.start]]) from None
        self._oddities.look(content, len(content), number)
        lines = text.split("\n")
        if content[-1:] in (b"\n", b"\r"):
            lines.pop()
        self.ends_open = content[-1:] not in (b"\n", b"\r")
        return lines


def open_lines(path: Path, tell: bool = True, joined: bool = True) -> TextLines:
    """Return the lines of a file; iterating them raises InputError as `reading_text` does."""
    return TextLines(_chunks(path), str(path), tell, joined)


def not_utf8(where: str, number: int, before: Iterable[bytes]) -> InputError:
    """Return the error for the byte after some pieces, the first of which begins in line `number`."""
    return InputError(f"{where}:{number + count_ends(before)}: is not valid UTF-8; convert the file to UTF-8")


def _chunks(path: Path) -> Iterator[bytes]:
    with reading_text(path) as file:
        yield from iter(lambda: file.read(CHUNK_BYTES), b"")


def _checked_start(chunks: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Yield the same bytes. Raises InputError if the first of them show another encoding."""
    start, checked = b"", False
    for chunk in chunks:
        if checked:
            yield chunk
            continue
        start += chunk
        if len(start) >= LOOKED_AT:
            checked = True
            _check(start, where)
            yield start
    if not checked and start:
        _check(start, where)
        yield start


def _check(start: bytes, where: str) -> None:
    if said := foreign(start[:LOOKED_AT]):
        raise InputError(f"{where}: {said}")


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces that end with a line."""
    begun: list[bytes] = []  # pieces of an unfinished line
    for chunk in chunks:
        end = end_of_lines(chunk)
        if not end:
            begun.append(chunk)
            continue
        yield b"".join([*begun, chunk[:end]])
        begun = [chunk[end:]]
    if last := b"".join(begun):
        yield last
