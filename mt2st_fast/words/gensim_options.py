"""What gensim's Word2Vec is told beside numbers: text, which words are kept, and options that we refuse by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.stream import TokenStream, is_token_file
from mt2st_fast.data.text.word_files import read_lines
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_finite_number, check_not_negative

# (word, count, min_count) -> one of gensim.utils' RULE_DEFAULT, RULE_DISCARD, RULE_KEEP.
TrimRule = Callable[[str, int, int], int]
RULE_DEFAULT, RULE_DISCARD, RULE_KEEP = 0, 1, 2

# Option: (gensim's default, the only value that there is here; why, and what to do).
ONLY: dict[str, tuple[Any, str]] = {
    "cbow_mean": (1, "CBOW takes the mean of a window here; leave it 1"),
    "sorted_vocab": (1, "words are always sorted by falling count; leave it 1"),
    "null_word": (0, "there is no word for nothing; leave it 0"),
    "shrink_windows": (True, "windows are drawn from 1 to `window`, as in word2vec; leave it True"),
    "max_vocab_size": (
        None,
        "every word is counted, and counts stay exact; limit the words by max_final_vocab",
    ),
}


def refuse(**options: Any) -> None:
    """Raise InputError for a value that means what we do not have."""
    for name, value in options.items():
        only, why = ONLY[name]
        if value != only:
            raise InputError(f"{name}={value!r} is not supported: {why}")


def check_predicted_by(sg: int, hs: int, negative: int, max_n: int) -> None:
    """Raise InputError but for one of hierarchical softmax and negatives, and for a tree beside n-grams."""
    if sg not in (0, 1):
        raise InputError(f"sg is {sg!r}; it is 1 for skip-gram, else 0")
    if hs not in (0, 1):
        raise InputError(f"hs is {hs!r}; it is 1 for hierarchical softmax, else 0")
    if not hs:
        check_count(1, negative=negative)
    elif negative:
        raise InputError(
            f"hs=1 with negative={negative}: give negative=0, words are predicted in one way here"
        )
    elif max_n:
        raise InputError("hs=1 is not supported with n-grams (max_n): give negative=5 and hs=0")


def check_ngrams(min_n: Any, max_n: Any) -> None:
    """Raise InputError but for lengths of character n-grams, of which the first is not above the second."""
    check_count(0, min_n=min_n, max_n=max_n)
    if min_n > max_n:
        raise InputError(f"min_n ({min_n}) and max_n ({max_n}) must be 0 <= min_n <= max_n")


def check_sampling(sample: Any, ns_exponent: Any) -> None:
    """Raise InputError but for a finite threshold of at least 0 and a finite exponent, of any sign as in gensim."""
    check_not_negative(sample=sample)
    check_finite_number(ns_exponent=ns_exponent)


def check_rates(alpha: Any, min_alpha: Any, names: tuple[str, str] = ("alpha", "min_alpha")) -> None:
    """Raise InputError but for finite rates, of which the first is not below the second."""
    check_not_negative(**dict(zip(names, (alpha, min_alpha), strict=True)))
    if alpha < min_alpha:
        raise InputError(
            f"{names[0]} ({alpha}) must not be below {names[1]} ({min_alpha}): the rate falls from one to the other"
        )


def one_of(sentences: Any, corpus_iterable: Any) -> Any:
    """The one of the two that is given; raises InputError for both."""
    if sentences is not None and corpus_iterable is not None:
        raise InputError("corpus_iterable is another name of sentences: give one of them")
    return corpus_iterable if sentences is None else sentences


def frequent_words(
    counted: Vocabulary, min_count: int, most: int | None = None, trim_rule: TrimRule | None = None
) -> Vocabulary:
    """Words seen min_count times or as trim_rule says, of them the `most` most frequent.

    Of words of one count the alphabetically first are taken, where gensim takes none of them. Raises InputError where
    no word is left.
    """
    if trim_rule is None:
        kept = counted.frequent(min_count)
    else:
        kept = _of(counted, _kept(counted, min_count, trim_rule))
        if not len(kept):
            raise InputError("trim_rule and min_count leave no word; let them keep some")
    return kept if most is None or most >= len(kept) else Vocabulary(kept.words[:most], kept.counts[:most])


def with_words_of(
    known: Vocabulary, counted: Vocabulary, min_count: int, trim_rule: TrimRule | None = None
) -> Vocabulary:
    """The known words, in their order and counted further, then those of the others that are to be kept."""
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
        raise InputError(f"trim_rule gave {said[unknown][0]!r}; it gives one of gensim.utils.RULE_*")
    return np.where(said == RULE_DEFAULT, frequent, said == RULE_KEEP)


def _of(counted: Vocabulary, kept: np.ndarray) -> Vocabulary:
    return Vocabulary([counted.words[i] for i in np.flatnonzero(kept)], counted.counts[kept])


def read_text(sentences: Iterable[Sequence[str]] | None, corpus_file: str | Path | None) -> Tokens:
    """The text in ids of its own words."""
    if (sentences is None) == (corpus_file is None):
        raise InputError("give either sentences or a corpus_file")
    if corpus_file is not None and is_token_file(Path(corpus_file)):
        return TokenStream.open(corpus_file)
    if isinstance(sentences, str):
        raise InputError("sentences are lists of words, not one string; for a file use corpus_file")
    text = Tokens.of(sentences) if sentences is not None else read_lines(Path(str(corpus_file)))
    if not len(text.ids):
        raise InputError("the text has no words")
    return text
