"""Text of many kinds of letters and white space, and the sentences that a token file of it must hold."""

from __future__ import annotations

import gzip
import random
import re
from collections import Counter
from pathlib import Path

from mt2st_fast.data import TokenStream


def some_text(lines: int, seed: int = 0) -> str:
    """Lines of ragged length, some empty, with white space and letters of many kinds."""
    chance = random.Random(seed)
    words = ["the", "The", "naïve", "слово", "語", "🙂", "a.b", *(f"w{i}" for i in range(300))]
    gaps = [" ", "  ", "\t", " \u00a0", "\u3000", "\r", "\x0b"]
    return "".join(
        "".join(chance.choice(words) + chance.choice(gaps) for _ in range(chance.randrange(0, 30)))
        + chance.choice(["\n", "\r\n"])
        for _ in range(lines)
    )


def sentences_of(tokens: TokenStream) -> list[list[str]]:
    words = [tokens.vocabulary.words[t] for t in tokens.ids]
    return [words[a:b] for a, b in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True)]


def expected(text: str, min_count: int) -> list[list[str]]:
    """The sentences by the plainest means."""
    lines = [line.split() for line in lines_of(text)]
    counts = Counter(word for line in lines for word in line)
    kept = [[word for word in line if counts[word] >= min_count] for line in lines]
    return [line for line in kept if line]


def lines_of(text: str) -> list[str]:
    """A line feed ends one, as do carriage returns before it and one that stands alone."""
    return re.split("\r*\n|\r", text)


def text_of(corpus: Path) -> str:
    packed = gzip.decompress((corpus / "deeper" / "c.txt.gz").read_bytes()).decode()
    return (corpus / "b.txt").read_bytes().decode("utf-8-sig") + "\n" + packed
