"""What the tests of walkers and their worker in the interpreter share."""

from __future__ import annotations

RATE, FALL, LEAST = 0.1, 0.001, 0.06  # a step shows, and the least rate is reached
# (V, D, lengths of sentences, options, stretch): sentences of one word and longer than a stretch, ragged columns, more
# walkers than stretches, words that are their own negatives, and windows that no other word is in.
CASES = {
    "ragged": (40, 21, (1, 1, 9, 2, 40, 16, 3), {"window": 3, "walkers": 2}, 16),
    "few words": (3, 16, (30, 7), {"window": 5, "walkers": 9, "negatives": 2.5}, 16),
    "wide window": (60, 5, (40, 20), {"window": 10, "walkers": 1}, 64),
    "no pairs": (20, 5, (1, 1, 1), {"walkers": 2}, 16),
}
