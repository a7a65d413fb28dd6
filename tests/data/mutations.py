"""What happens to files on their way: marks, line ends, encodings, packing, damage; all of it from a seed."""

from __future__ import annotations

import gzip
import random
import re

PIECES = [
    *(b"\xef\xbb\xbf", b"\0", b"\r", b"\r\n", b"\n", b"\n\n", b"\r\r\n", b"\t", b" ", b",", b";", b'"', b'""', b"'"),
    *(b"#", b"# domain = news\n", b"# id 7\n", b"\n# a remark\n", b"=", b":", b"|", b"_", b"-DOCSTART- O O\n"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\xc2\xa0", b"\xe3\x80\x80", b"\x1a", b"\x0b"),
    *(b"nan", b"1.0", b"1e999", "\u0663".encode(), b"x" * 300, "\U0001f642".encode(), b"__label__", b"1\t", b"2-3\t"),
]  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with one to three changes."""
    for _ in range(chance.choice([1, 1, 2, 3])):
        content = chance.choices(CHANGES, WEIGHTS)[0](content, chance)
    return content


def _put_in(content: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(content))
    return content[:at] + chance.choice(PIECES) + content[at:]


def _put_before_a_line(content: bytes, chance: random.Random) -> bytes:
    starts = [0, *(m.end() for m in re.finditer(b"\n", content))]
    at = chance.choice(starts)
    return content[:at] + chance.choice(PIECES) + content[at:]


def _take_out(content: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(content))
    return content[:at] + content[at + chance.choice([1, 2, 20]) :]


def _take_out_a_line_end(content: bytes, chance: random.Random) -> bytes:
    ends = [m.span() for m in re.finditer(b"\r?\n", content)]
    if not ends:
        return content
    first, last = chance.choice(ends)
    return content[:first] + content[last:]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    first = chance.randint(0, len(content))
    return content[: first + chance.randint(0, 60)] + content[first:]


def _cut_off(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randint(0, len(content))]


def _other_ends(content: bytes, chance: random.Random) -> bytes:
    return content.replace(b"\n", chance.choice([b"\r\n", b"\r", b"\r\r\n"]))


def _joined(content: bytes, chance: random.Random) -> bytes:
    return content + b"\xef\xbb\xbf" + content


def _in_another_encoding(content: bytes, chance: random.Random) -> bytes:
    encoding = chance.choice(["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-8-sig", "latin-1"])
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def _packed(content: bytes, chance: random.Random) -> bytes:
    packed = gzip.compress(content, mtime=0)
    return packed if chance.random() < 0.7 else packed[: chance.randint(0, len(packed))]


def _packed_in_two(content: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(content))
    return gzip.compress(content[:at], mtime=0) + gzip.compress(content[at:], mtime=0)


CHANGES = [
    *(_put_in, _put_before_a_line, _take_out, _take_out_a_line_end, _repeat, _cut_off, _other_ends, _joined),
    *(_in_another_encoding, _packed, _packed_in_two),
]
WEIGHTS = [8, 8, 3, 3, 3, 1, 2, 1, 0.4, 0.6, 0.4]


def plain_lines(content: bytes) -> list[str]:
    """The lines of a file by the plainest means: unpacked, decoded, split, without marks before them, NUL as a blank.

    Raises where they cannot be had: OSError, EOFError, zlib.error, UnicodeDecodeError.
    """
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    text = content.decode("utf-8")
    lines = re.split("\r*\n|\r", text)
    if text.endswith(("\n", "\r")):
        lines.pop()
    return [line.lstrip("\ufeff").replace("\0", " ") for line in lines]
