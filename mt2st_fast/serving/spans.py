"""Spans that the tags of words describe (entities, chunks), and how many of them a model finds, as conlleval counts.

A tag is O, or a position and a type, as in B-NP. Positions are those of IOB (B, I), IOBES (also E, S) or BILOU (L, U).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

OUTSIDE = "O"
TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
FIRST, LAST = "BSU", "ESLU"  # positions at which a span begins, and ends, whatever is beside it


class SpanFigures(TypedDict):
    """A `SpanScore` as JSON; scores that are undefined are NaN, which is null in a file."""

    present: int
    found: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class SpanScore:
    """Spans in the data, spans that the model found, and those of them that have the same words and type."""

    present: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """Right spans over found ones; NaN if none was found."""
        return self.right / self.found if self.found else float("nan")

    @property
    def recall(self) -> float:
        """Right spans over those in the data; NaN if there are none."""
        return self.right / self.present if self.present else float("nan")

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; NaN without any span."""
        total = self.present + self.found
        return 2 * self.right / total if total else float("nan")

    def figures(self) -> SpanFigures:
        """Return counts and scores by name."""
        return {
            "present": self.present,
            "found": self.found,
            "right": self.right,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }


def are_span_tags(classes: Sequence[str]) -> bool:
    """Return whether class names are tags of spans: all of them, and not only O."""
    return any(name != OUTSIDE for name in classes) and all(
        name == OUTSIDE or TAG.fullmatch(name) for name in classes
    )


def span_score(
    tags: Sequence[str], present: np.ndarray, found: np.ndarray, labelled: np.ndarray, bounds: np.ndarray
) -> SpanScore:
    """Compare the spans of two taggings of N words, given as indices of tags, (N,) each.

    labelled: (N,), whether a word has a tag in the data; one without is outside in both. bounds: (n + 1,), sentence u
    is the words bounds[u]:bounds[u + 1]; no span goes over its end.
    """
    begins_sentence = np.zeros(len(present), bool)
    begins_sentence[bounds[:-1][bounds[:-1] < len(present)]] = True
    in_data, of_model = (
        _spans(tags, tagging, labelled, begins_sentence) for tagging in (present, found)
    )  # (n, 3) each
    _, own, others = np.intersect1d(in_data[:, 0], of_model[:, 0], assume_unique=True, return_indices=True)
    right = (in_data[own] == of_model[others]).all(1).sum()
    return SpanScore(len(in_data), len(of_model), int(right))


def _spans(
    tags: Sequence[str], tagging: np.ndarray, labelled: np.ndarray, begins_sentence: np.ndarray
) -> np.ndarray:
    """Return (n, 3) spans: first word, last word and type, ascending."""
    parsed = [TAG.fullmatch(tag) for tag in tags]
    types = {match[2]: i for i, match in enumerate(parsed) if match}
    type_of = np.array([-1 if match is None else types[match[2]] for match in parsed])[tagging]
    first = np.array([match is not None and match[1] in FIRST for match in parsed])[tagging]
    last = np.array([match is not None and match[1] in LAST for match in parsed])[tagging]
    inside = labelled & (type_of >= 0)
    before = np.arange(len(tagging)) - 1  # of word 0 it is the last one, but a sentence begins there
    continues = inside & inside[before] & (type_of == type_of[before]) & ~first & ~last[before]
    continues &= ~begins_sentence
    begins, ends = inside & ~continues, inside & ~np.append(continues[1:], False)
    return np.stack([begins.nonzero()[0], ends.nonzero()[0], type_of[begins]], axis=1)
