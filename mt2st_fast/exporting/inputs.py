"""Make the inputs of an exported graph from words or lines, exactly as the model itself does.

This file only needs NumPy: to run a graph without mt2st-fast and torch, copy it.

    inputs = TextInputs.read("model.onnx.json")              # which `mt2st-fast export` wrote beside the graph
    session = onnxruntime.InferenceSession("model.onnx")
    (logits,) = session.run(["logits.upos"], inputs([["They", "buy", "books", "."]]))
    inputs.likeliest("upos", logits)                         # ["PRON", "VERB", "NOUN", "PUNCT"]

What the JSON says of texts, with "text": "words": a word has the row rows[word] of the table, or `unknown_row`, and for
each of its parts the row unknown_row + 1 + crc32(part in UTF-8) % buckets. The parts, of the word in lower case, are
"p" and its first 1 to max_prefix characters, "s" and its last 1 to max_suffix, "h" and its shape (runs of capitals,
small letters, digits as X, x, d; each run of another character as that character), and "n" and every n-gram of <word>
of min_n to max_n characters.

With "text": "lines": words are separated by white space and NUL, and those with the label prefix are left out. The ids
are: the indices of known words; len(words) + FNV-1a(part) % buckets, over signed bytes, for the n-grams of <word> of
minn to maxn characters; and len(words) + h % buckets for every run of 2 to word_ngrams words, where h is crc32 of the
first word, and then h * 116049371 + crc32 of the next, in 64 bits.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "mt2st-fast export 1"
_HASH_FACTOR, _64_BITS = 116_049_371, (1 << 64) - 1
_FNV_BASIS, _FNV_PRIME, _32_BITS = 2_166_136_261, 16_777_619, (1 << 32) - 1


class TextInputs:
    """Makes the inputs of a graph from texts, by the graph's description, and names its outputs."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self._id_of = {word: i for i, word in enumerate(description.get("words", ()))}
        self._known: dict[str, list[int]] = {}  # cache of words that were looked up

    @classmethod
    def read(cls, path: str | Path) -> TextInputs:
        """Read the JSON beside a graph. Raises ValueError for another file or half of one, and for one of another
        graph.
        """
        try:
            description = json.loads(Path(path).read_text("ascii"))
        except ValueError as error:  # of JSON or of its encoding
            raise ValueError(
                f"{path}: is not a complete description ({error}); export the model again"
            ) from None
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ValueError(f"{path}: is not written as '{FORMAT}'")
        if description.get("text") not in ("words", "lines"):
            raise ValueError(f"{path}: its graph does not take text, but {', '.join(description['inputs'])}")
        graph = Path(path).with_name(description["graph"])
        if graph.exists() and hashlib.sha256(graph.read_bytes()).hexdigest() != description["sha256"]:
            raise ValueError(f"{path}: belongs to a different {graph.name}; export the model again")
        return cls(description)

    def __call__(self, units: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return int64 arrays by name from units: lists of words, or lines if the model reads lines.

        Raises ValueError for a unit of the other kind, and for a line feed in a line.
        """
        if isinstance(units, str):
            raise ValueError("units must be a list, not one string")
        if self.description["text"] == "lines":
            bags = [self._bag(unit) for unit in units]
            return {"ids": _flat(bags), "ids_per_unit": _sizes(bags)}
        if any(isinstance(unit, str) for unit in units):
            raise ValueError("a unit must be a list of words, not one string; split it with cut(line)")
        rows = [self._rows(word) for unit in units for word in unit]
        return {"rows": _flat(rows), "rows_per_word": _sizes(rows), "words_per_unit": _sizes(units)}

    def cut(self, line: str) -> list[str]:
        """Return the words of a line, split as the training data was."""
        rule = self.description["cut"]
        return re.findall(rule["pattern"], line.lower() if rule["lower"] else line)

    def labels(self, task: str) -> list[str]:
        """Return the names of the C outputs of a task."""
        return list(self.description["tasks"][task]["labels"])

    def probabilities(self, task: str, logits: np.ndarray) -> np.ndarray:
        """Return (N, C): probabilities of classes sum to 1, those of labels are independent; for values, the values."""
        kind = self.description["tasks"][task]["kind"]
        if kind == "values":
            return logits
        if kind == "labels":
            return np.asarray(1 / (1 + np.exp(-logits)))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def likeliest(self, task: str, logits: np.ndarray) -> list[Any]:
        """Return for every row the likeliest class, a list of the labels with probability 0.5 and above, or a list of
        values.
        """
        names, kind = self.labels(task), self.description["tasks"][task]["kind"]
        if kind == "classes":
            return [names[c] for c in logits.argmax(axis=1).tolist()] if len(logits) else []
        if kind == "labels":
            return [[names[c] for c in np.flatnonzero(row >= 0)] for row in logits]
        return list(logits.tolist())

    # --- words ------------------------------------------------------------------------------------------

    def _rows(self, word: str) -> list[int]:
        if word not in self._known:
            unknown, buckets = self.description["unknown_row"], self.description["buckets"]
            own = self.description["rows"].get(word, unknown)
            parts = self._parts(word) if buckets else []
            self._known[word] = [own, *(unknown + 1 + _crc(part) % buckets for part in parts)]
        return self._known[word]

    def _parts(self, word: str) -> list[str]:
        rule, small = self.description, word.lower()
        parts = [f"p{small[:n]}" for n in range(1, min(rule["max_prefix"], len(small)) + 1)]
        parts += [f"s{small[-n:]}" for n in range(1, min(rule["max_suffix"], len(small)) + 1)]
        if rule["shape"]:
            parts.append("h" + "".join(sign for sign, _ in groupby(map(_sign, word))))
        if rule["max_n"] >= rule["min_n"]:
            parts += [f"n{gram}" for gram in _ngrams(f"<{small}>", rule["min_n"], rule["max_n"])]
        return parts

    # --- lines ------------------------------------------------------------------------------------------

    def _bag(self, line: Any) -> list[int]:
        if not isinstance(line, str) or "\n" in line:
            raise ValueError(f"a unit must be one line, a string without a line feed, not {line!r:.80}")
        rule = self.description
        words = [word for word in line.replace("\0", " ").split() if not word.startswith(rule["prefix"])]
        ids = [i for word in words for i in self._ids(word)]
        hashes = [_crc(word) for word in words] if rule["word_ngrams"] > 1 else []
        for first in range(len(hashes)):
            gram = hashes[first]
            for other in hashes[first + 1 : first + rule["word_ngrams"]]:
                gram = (gram * _HASH_FACTOR + other) & _64_BITS
                ids.append(len(self._id_of) + gram % rule["buckets"])
        return ids

    def _ids(self, word: str) -> list[int]:
        if word not in self._known:
            rule = self.description
            ids = [self._id_of[word]] if word in self._id_of else []
            marked = f"<{word}>"
            grams = _ngrams(marked, max(rule["minn"], 1), rule["maxn"])
            if rule["minn"] <= 1 <= rule["maxn"]:  # the single marks < and > do not count
                grams = grams[1 : len(marked) - 1] + grams[len(marked) :]
            self._known[word] = ids + [len(self._id_of) + _fnv(gram) % rule["buckets"] for gram in grams]
        return self._known[word]


def _ngrams(marked: str, least: int, most: int) -> list[str]:
    return [marked[i : i + n] for n in range(least, most + 1) for i in range(len(marked) - n + 1)]


def _sign(character: str) -> str:
    if character.isalpha():
        return "X" if character.isupper() else "x"
    return "d" if character.isdigit() else character


def _crc(part: str) -> int:
    return zlib.crc32(part.encode("utf-8", "surrogatepass"))


def _fnv(part: str) -> int:
    hashed = _FNV_BASIS
    for byte in part.encode("utf-8", "surrogatepass"):
        signed = byte - 256 if byte >= 128 else byte
        hashed = ((hashed ^ (signed & _32_BITS)) * _FNV_PRIME) & _32_BITS
    return hashed


def _flat(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([i for each in lists for i in each], np.int64)


def _sizes(lists: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.array([len(each) for each in lists], np.int64)
