"""Select the words of a text that a Word2Vec keeps, and their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import kept_shares
from mt2st_fast.words.gensim_errors import NoWordsError

# (word, count, min_count) -> one of gensim.utils' RULE_DEFAULT, RULE_DISCARD, RULE_KEEP.
TrimRule = Callable[[str, int, int], int]
RULE_DEFAULT, RULE_DISCARD, RULE_KEEP = 0, 1, 2


def counted_words(
    text: Tokens, most: int | None = None, trim_rule: TrimRule | None = None, sort: bool = True
) -> Vocabulary:
    """Count the words of a text, by descending count or, without `sort`, in order of first appearance.

    most: gensim's max_vocab_size. Whenever more words are known at the end of a sentence, those seen fewer times than a
    bound are dropped, and the bound, which starts at 1, rises by one: the counts of rare words are then too small.
    """
    counted = text.vocabulary if most is None else _pruned(text, most, trim_rule)
    if sort:
        return counted
    ids, first = np.unique(text.ids, return_index=True)
    words = [text.vocabulary.words[i] for i in ids[np.argsort(first)].tolist() if i >= 0]
    rows = counted.lookup(words)
    rows = rows[rows >= 0]
    return Vocabulary([counted.words[i] for i in rows], counted.counts[rows])


def _pruned(text: Tokens, most: int, trim_rule: TrimRule | None) -> Vocabulary:
    words, least = text.vocabulary.words, 1
    seen: dict[int, int] = {}
    for begin, end in zip(text.bounds[:-1].tolist(), text.bounds[1:].tolist(), strict=True):
        for word in text.ids[begin:end].tolist():
            seen[word] = seen.get(word, 0) + 1
        seen.pop(-1, None)  # in a token file: a word outside its vocabulary
        if len(seen) > most:
            counted = Vocabulary([words[i] for i in seen], list(seen.values()))
            kept = _kept(counted, least, trim_rule).tolist()
            seen = {word: n for (word, n), keep in zip(seen.items(), kept, strict=True) if keep}
            least += 1
    return Vocabulary.from_counts([words[i] for i in seen], list(seen.values()))


def vocabulary_of(counts: Mapping[str, int]) -> Vocabulary:
    """Return words and counts in their order.

    Raises InputError for a word that is no string, and for a count that is no whole number of at least 0.
    """
    for word, count in counts.items():
        if not isinstance(word, str):
            raise InputError(f"a word must be a string, not {word!r}")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise InputError(f"the count of {word!r} is {count!r}; pass the number of times it occurred")
    return Vocabulary(list(counts), np.fromiter(counts.values(), np.int64, len(counts)))


def frequent_words(
    counted: Vocabulary, min_count: int, most: int | None = None, trim_rule: TrimRule | None = None
) -> Vocabulary:
    """Return the words seen min_count times, or chosen by trim_rule, and of these the `most` most frequent.

    They stay in their order. Of words with equal counts the first are taken, where gensim takes none. Raises
    NoWordsError where no word is left.
    """
    if not len(counted):
        raise NoWordsError("the text has no words")
    kept = _kept(counted, min_count, trim_rule)
    if not kept.any():
        if trim_rule is not None:
            raise NoWordsError(
                f"the text: trim_rule keeps no word, and of those that it leaves to min_count none occurs {min_count} "
                "times; use more text, another rule or a smaller min_count"
            )
        raise NoWordsError(
            f"the text: no word occurs at least {min_count} times (the most frequent word occurs "
            f"{counted.counts.max()} times); use more text or a smaller min_count"
        )
    if most is not None and most < kept.sum():
        rows = np.flatnonzero(kept)
        kept[np.delete(rows, np.argsort(-counted.counts[rows], kind="stable")[:most])] = False
    return _of(counted, kept)


def with_words_of(
    known: Vocabulary, counted: Vocabulary, min_count: int, trim_rule: TrimRule | None = None
) -> Vocabulary:
    """Return the known words, in their order and with counts added, then those other words that are kept."""
    places = known.lookup(counted.words)
    counts = known.counts.copy()
    counts[places[places >= 0]] += counted.counts[places >= 0]
    new = _of(counted, (places < 0) & _kept(counted, min_count, trim_rule))
    return Vocabulary([*known.words, *new.words], np.concatenate([counts, new.counts]))


def _kept(counted: Vocabulary, min_count: int, trim_rule: TrimRule | None) -> np.ndarray:
    frequent = counted.counts >= min_count
    if trim_rule is None:
        return frequent
    said = np.array(
        [trim_rule(*pair, min_count) for pair in zip(counted.words, counted.counts.tolist(), strict=True)]
    )
    unknown = ~np.isin(said, (RULE_DEFAULT, RULE_DISCARD, RULE_KEEP))
    if unknown.any():
        raise InputError(
            f"trim_rule returned {said[unknown][0]!r}; it must return one of gensim.utils.RULE_*"
        )
    return np.where(said == RULE_DEFAULT, frequent, said == RULE_KEEP)


def _of(counted: Vocabulary, kept: np.ndarray) -> Vocabulary:
    if kept.all():
        return counted
    return Vocabulary([counted.words[i] for i in np.flatnonzero(kept)], counted.counts[kept])


def vocabulary_report(counted: Vocabulary, kept: Vocabulary, sample: float) -> dict[str, int]:
    """Return gensim's statistics of prepare_vocab: words dropped, words kept, and how many of these `sample` leaves."""
    rows = counted.lookup(kept.words)
    counts = counted.counts[rows[rows >= 0]]
    shares = kept_shares(counts, sample)
    return {
        "drop_unique": len(counted) - len(counts),
        "retain_total": int(counts.sum()),
        "downsample_unique": int((shares < 1).sum()),
        "downsample_total": int((np.minimum(shares, 1) * counts).sum()),
        "num_retained_words": len(counts),
    }
