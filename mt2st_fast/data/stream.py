"""A tokenized text that need not fit into memory: word ids and sentence bounds, mapped from a file.

The file, all numbers little-endian:

    0    8 bytes   b"MT2STTOK"
    8    uint32    version, 2
    12   uint32    CRC-32 of everything behind the header
    16   int64     n tokens
    24   int64     m sentences
    32   int64     b bytes of vocabulary
    40   uint32    CRC-32 of the 40 bytes before
    44   20 bytes  zero
    64   int32     n word ids; zero bytes up to a multiple of 8
    ..   int64     m + 1 bounds: sentence i is tokens[bounds[i] : bounds[i + 1]]; none is empty
    ..   b bytes   JSON in UTF-8: {"words": [...], "counts": [...]}, most frequent word first

`mt2st_fast.data.prepare` writes it. Words rarer than its min_count are dropped from the sentences, as word2vec does:
the words on either side of a dropped one become neighbours.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.files import writing_atomically

_MAGIC, _VERSION = b"MT2STTOK", 2
_HEADER = struct.Struct("<8sIIqqqI20x")
_CHECKED_BYTES = 40  # bytes of the header covered by its own checksum
_BLOCK = 1 << 20  # numbers checked in one block


class TokenStream(Tokens):
    """Tokens in sentences, mapped from a file or made from sentences; every word is in the vocabulary."""

    @classmethod
    def open(cls, path: str | Path) -> TokenStream:
        """Map a file that `prepare` wrote; tokens and bounds stay on disk until they are used.

        The file is checked once, at the speed of reading. Raises InputError for a file that is missing, truncated,
        damaged anywhere, or of another format.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                n, m, size, checksum = _read_header(path, file.read(_HEADER.size), path.stat().st_size)
                bounds_at = _aligned(_HEADER.size + 4 * n)
                file.seek(bounds_at + 8 * (m + 1))
                encoded = file.read(size)
            # "c" (copy on write): kernels are compiled for writable arrays; the file is never written to.
            tokens = np.memmap(path, "<i4", "c", _HEADER.size, (n,))
            bounds = np.memmap(path, "<i8", "c", bounds_at, (m + 1,))
            padding = bytes(bounds_at - _HEADER.size - 4 * n)
            if _checksum(tokens, padding, bounds, encoded) != checksum:
                raise ValueError("the checksum does not match")
            # The checksum finds damage to the file but not errors of its writer, so `Tokens` checks every number.
            stream = cls(tokens, bounds, Vocabulary.from_json(encoded))
            if stream.vocabulary.counts.min() < 1 or not _all_in_sentences(stream):
                raise ValueError("a sentence is empty, or the counts do not match the tokens")
            return stream
        except InputError:  # also a ValueError
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; create it with mt2st-fast prepare") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except ValueError:
            raise InputError(
                f"{path}: the token file is damaged; create it again with mt2st-fast prepare"
            ) from None


def is_token_file(path: Path) -> bool:
    """Whether a file begins like those that `prepare` writes; False for a missing file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def write_stream(path: Path, parts: Iterable[tuple[np.ndarray, np.ndarray]], vocabulary: Vocabulary) -> int:
    """Write the file, whole or not at all, from consecutive parts of the text; return the number of sentences.

    A part has word ids and the positions in it where sentences end (from 0 to its length, ascending). A sentence may
    extend over several parts; sentences without words are left out.
    """
    encoded = vocabulary.to_json().encode()
    n, m, last, checksum = 0, 0, 0, 0
    # The bounds come after the tokens: until then they are kept in a temporary file, not in memory.
    with writing_atomically(path) as file, tempfile.TemporaryFile(dir=path.parent) as waiting:
        file.write(bytes(_HEADER.size))
        waiting.write(struct.pack("<q", 0))
        for ids, ends in parts:
            of_part = ids.astype("<i4", copy=False).tobytes()
            checksum = zlib.crc32(of_part, checksum)
            file.write(of_part)
            bounds = ends.astype("<i8") + n
            bounds = bounds[np.diff(bounds, prepend=last) > 0]
            waiting.write(bounds.tobytes())
            n, m, last = n + len(ids), m + len(bounds), int(bounds[-1]) if len(bounds) else last
        if n != vocabulary.counts.sum() or last != n:
            raise ValueError(
                f"{n} ids (last sentence end {last}), but the vocabulary counts {vocabulary.counts.sum()} tokens"
            )
        waiting.seek(0)
        rest = (bytes(_aligned(_HEADER.size + 4 * n) - _HEADER.size - 4 * n), *_blocks_of(waiting), encoded)
        for block in rest:
            checksum = zlib.crc32(block, checksum)
            file.write(block)
        _write_header(file, n, m, encoded, checksum)
    return m


def _blocks_of(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _checksum(*parts: np.ndarray | bytes) -> int:
    """Return the CRC-32 of consecutive parts."""
    value = 0
    for part in parts:
        for first in range(0, len(part), _BLOCK):
            value = zlib.crc32(part[first : first + _BLOCK], value)  # type: ignore[arg-type]
    return value


def _all_in_sentences(stream: TokenStream) -> bool:
    """Whether no token is missing, no sentence is empty, and the counts add up to the number of tokens."""
    blocks = (stream.ids[first : first + _BLOCK] for first in range(0, len(stream.ids), _BLOCK))
    whole = stream.vocabulary.counts.sum() == len(stream.ids) and all(block.min() >= 0 for block in blocks)
    return bool(whole and (np.diff(stream.bounds) > 0).all())


def _write_header(file: BinaryIO, n: int, m: int, encoded: bytes, checksum: int) -> None:
    fields = (_MAGIC, _VERSION, checksum, n, m, len(encoded))
    of_header = zlib.crc32(_HEADER.pack(*fields, 0)[:_CHECKED_BYTES])
    file.seek(0)
    file.write(_HEADER.pack(*fields, of_header))


def _read_header(path: Path, header: bytes, size: int) -> tuple[int, int, int, int]:
    """Return (n, m, b, CRC). Raises InputError for a damaged header, and if they do not match the size of the file."""
    if not header.startswith(_MAGIC) or len(header) < _HEADER.size:
        raise InputError(f"{path}: is not a token file; create one with mt2st-fast prepare CORPUS --out FILE")
    _, version, checksum, n, m, b, of_header = _HEADER.unpack(header)
    if version != _VERSION:
        raise InputError(
            f"{path}: token file version {version}, but {_VERSION} is required; create it again with mt2st-fast "
            "prepare"
        )
    if zlib.crc32(header[:_CHECKED_BYTES]) != of_header or any(header[_CHECKED_BYTES + 4 :]):
        raise InputError(
            f"{path}: the token file's header is damaged; create it again with mt2st-fast prepare"
        )
    expected = _aligned(_HEADER.size + 4 * n) + 8 * (m + 1) + b
    if min(n, m) < 1 or b < 0 or size != expected:
        raise InputError(
            f"{path}: has {size} bytes instead of {expected}, so it is truncated or damaged; create it again with "
            "mt2st-fast prepare"
        )
    return n, m, b, checksum


def _aligned(position: int) -> int:
    return -(-position // 8) * 8
