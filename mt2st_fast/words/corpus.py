"""The text that Word2Vec reads, and which of its words have vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mt2st_fast.data.stream import TokenStream, is_token_file
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.data.word_files import read_lines
from mt2st_fast.errors import InputError

Sentences = Iterable[Sequence[str]]


def read_corpus(
    sentences: Sentences | None, corpus_file: str | Path | None, corpus_iterable: Sentences | None = None
) -> Tokens:
    """The text in ids of its own words; corpus_iterable is gensim's other name of sentences.

    Raises InputError unless exactly one is given, and for what cannot be read or has no words.
    """
    if sentences is not None and corpus_iterable is not None:
        raise InputError("corpus_iterable is gensim's other name of sentences; give one of them")
    if sentences is None:
        sentences = corpus_iterable
    if (sentences is None) == (corpus_file is None):
        raise InputError("give either sentences or a corpus_file")
    if corpus_file is not None and is_token_file(Path(corpus_file)):
        return TokenStream.open(corpus_file)
    if isinstance(sentences, str):
        raise InputError("sentences are lists of words, not one string; for a file use corpus_file")
    try:
        if sentences is not None:
            text = Tokens.of(sentences)
        else:
            with Path(str(corpus_file)).open("rb") as file:
                text = read_lines(file)
    except OSError as error:
        raise InputError(f"cannot read {corpus_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{corpus_file} is not UTF-8 text") from None
    if not len(text.ids):
        raise InputError("the text has no words")
    return text


def check_totals(text: Tokens, total_examples: int | None, total_words: int | None) -> None:
    """gensim lets the rate fall by these; here it falls by what the text has.

    Raises InputError for numbers that are not the text's.
    """
    for name, given, found, what in (
        ("total_examples", total_examples, text.n_units, "sentences"),
        ("total_words", total_words, len(text.ids), "words"),
    ):
        if given is not None and given != found:
            raise InputError(
                f"{name} is {given}, but the text has {found} {what}; leave it out, they are counted here"
            )


def chosen_words(vocabulary: Vocabulary, min_count: int, most: int | None = None) -> Vocabulary:
    """The words seen at least min_count times: with `most`, by gensim's rule, at most so many of them.

    Words of one count stay or go together. Where all of the most frequent would have to go, which leaves gensim with
    none, the first `most` of them stay. Raises InputError where no word is so frequent.
    """
    counts = vocabulary.counts
    if most is None or most >= len(counts):
        return vocabulary.frequent(min_count)
    first_left_out = int(np.sort(counts)[::-1][most])
    if first_left_out >= min_count and first_left_out == counts.max():
        tied = vocabulary.frequent(first_left_out)
        return Vocabulary(tied.words[:most], tied.counts[:most])
    return vocabulary.frequent(max(first_left_out + 1, min_count))


def grown_vocabulary(
    known: Vocabulary, text: Vocabulary, min_count: int, most: int | None = None
) -> Vocabulary:
    """The known words as they stand, counted on, and behind them the chosen words of a text that are new."""
    counts = known.counts.copy()
    ids = known.lookup(text.words)
    counts[ids[ids >= 0]] += text.counts[ids >= 0]
    if text.counts.max(initial=0) < min_count:
        return Vocabulary(known.words, counts)
    chosen = chosen_words(text, min_count, most)
    new = [i for i, word in enumerate(chosen.words) if word not in known]
    return Vocabulary(
        [*known.words, *(chosen.words[i] for i in new)],
        np.append(counts, chosen.counts[np.array(new, np.int64)]),
    )
