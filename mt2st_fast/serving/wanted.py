"""What a user wants to be written for every row."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """What to output for every row: the tasks, and the k likeliest (-1: all) labels of at least a probability.

    With k = None, the likeliest class, or the labels of at least 0.5. Raises InputError for numbers out of range.
    """

    tasks: tuple[str, ...]
    format: str
    k: int | None = None
    threshold: float | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and (self.k < -1 or self.k == 0):
            raise InputError(f"--k must be at least 1, or -1 for all labels, not {self.k}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold is a probability, between 0 and 1, not {self.threshold}")
        if self.format == "conllu" and (
            self.k is not None or self.threshold is not None or self.probabilities
        ):
            raise InputError(
                "CoNLL-U has one label a word: --k, --threshold and --probabilities are for --format jsonl"
            )

    @property
    def one_class(self) -> bool:
        """Whether only the likeliest class is asked for."""
        return self.k is None and self.threshold is None and not self.probabilities


def rounded(probability: float) -> float:
    """Round a probability to the six digits that are written."""
    return float(f"{probability:.6g}")
