"""fastText's Python module with its names, shapes and labels: `import mt2st_fast.fasttext as fasttext`.

    model = fasttext.train_supervised(input="cooking.train", epoch=25, wordNgrams=2)
    model.predict("Which baking dish is best to bake a banana bread ?", k=-1, threshold=0.5)
    print(model.test("cooking.valid"))                          # (documents, precision, recall)

docs/gensim-fasttext.md lists what is the same, what differs and what is refused. `mt2st_fast.train_supervised` is the
same training with this library's own interface: several label families, prediction by family, and a metric for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_at_most, check_count, check_positive_in_float32
from mt2st_fast.serving.load import load
from mt2st_fast.table_limits import MOST_DIM
from mt2st_fast.words.fasttext_models import Classifier, FastTextModel, Vectors, words_of
from mt2st_fast.words.fasttext_options import (
    UNSUPERVISED_LOSSES,
    check_refused,
    first_names,
    with_second_names,
)
from mt2st_fast.words.gensim_errors import NoWordsError
from mt2st_fast.words.gensim_vocabulary import RULE_DEFAULT, RULE_DISCARD
from mt2st_fast.words.supervised import train_supervised as train_families
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.vectors import WordVectors
from mt2st_fast.words.word2vec import Word2Vec

BOW, EOW, EOS = "<", ">", "</s>"
_PLACES = (
    "input", "lr", "dim", "ws", "epoch", "minCount", "minCountLabel", "minn", "maxn", "neg", "wordNgrams", "loss",
    "bucket", "thread", "lrUpdateRate", "t", "label", "verbose", "pretrainedVectors", "seed", "autotuneValidationFile",
    "autotuneMetric", "autotunePredictions", "autotuneDuration", "autotuneModelSize",
)  # fmt: skip
MODELS = {"skipgram": 1, "cbow": 0}
THREADS = 2  # shards of the text; results depend on their number, so it is not the machine's number of cores


def train_supervised(*args: Any, **options: Any) -> Classifier:
    """Train a classifier of lines on a file with `__label__` words. Labels are kept whole, even with `__` inside.

    Options are fastText's, in its order and also under its second names (min_count), and those of
    `mt2st_fast.train_supervised`, whose defaults and errors apply.
    """
    placed, options = dict(zip(_PLACES, args, strict=False)), first_names(options)
    if len(args) > len(_PLACES) or placed.keys() & options.keys():
        twice = ", ".join(sorted(placed.keys() & options.keys())) or f"{len(args)} positional options"
        raise InputError(f"train_supervised: {twice} given twice; pass options by name")
    if not {"input", "path"} & {*placed, *options}:
        raise InputError("train_supervised needs a file; pass input=")
    return Classifier(train_families(**{"families": False, **placed, **options}))


@with_second_names
def train_unsupervised(
    input: str | Path,
    model: str = "skipgram",
    lr: float = 0.05,
    dim: int = 100,
    ws: int = 5,
    epoch: int = 5,
    minCount: int = 5,
    minCountLabel: int = 0,
    minn: int = 3,
    maxn: int = 6,
    neg: int = 5,
    wordNgrams: int = 1,
    loss: str = "ns",
    bucket: int = 2_000_000,
    thread: int = THREADS,
    lrUpdateRate: int = 100,
    t: float = 1e-4,
    label: str = "__label__",
    verbose: int = 2,
    pretrainedVectors: str | Path = "",
    *,
    seed: int = 0,
) -> Vectors:
    """Train word vectors on a file with one sentence per line, from neighbouring words and character n-grams.

    Words that begin with `label` are left out. pretrainedVectors: a file of vectors that words of the text start from.
    thread: parts of the text that are read side by side; results depend on this number. Raises InputError for a file or
    an option that cannot be used.
    """
    check_count(dim=dim, ws=ws, epoch=epoch, bucket=bucket, thread=thread)
    check_at_most(MOST_DIM, dim=dim)
    check_count(0, minCount=minCount, minn=minn, maxn=maxn, seed=seed)
    check_positive_in_float32(lr=lr)
    if loss == "ns":
        check_count(neg=neg)
    if maxn and minn > maxn:
        raise InputError(f"minn ({minn}) and maxn ({maxn}) must satisfy 0 <= minn <= maxn")
    check_refused(minCountLabel=minCountLabel, lrUpdateRate=lrUpdateRate, verbose=verbose)
    if model not in MODELS:
        raise InputError(
            f"model={model!r} is unknown; available: {' and '.join(MODELS)}; for classifiers, use train_supervised"
        )
    if loss not in ("ns", "hs"):
        raise InputError(f"loss={loss!r}: {UNSUPERVISED_LOSSES}")
    if wordNgrams != 1:
        raise InputError(f"wordNgrams={wordNgrams!r}: only classifiers have word n-grams; leave it out")
    made = Word2Vec(
        vector_size=dim, alpha=lr, min_alpha=0.0, window=ws, min_count=minCount, sample=t, seed=seed, workers=thread,
        sg=MODELS[model], hs=int(loss == "hs"), negative=neg if loss == "ns" else 0, epochs=epoch,
        min_n=minn if maxn else 0, max_n=maxn, bucket=bucket,
    )  # fmt: skip
    try:
        made.build_vocab(
            corpus_file=input,
            trim_rule=lambda word, *_: RULE_DISCARD if word.startswith(label) else RULE_DEFAULT,
        )
    except NoWordsError:  # its message speaks of options that fastText does not have
        raise NoWordsError(
            f"{input}: no word occurs at least {minCount} times, labels aside; use more text or a smaller minCount"
        ) from None
    if pretrainedVectors:
        _begin_with(made, Path(pretrainedVectors))
    made.train(corpus_file=input)
    return Vectors(made)


def load_model(path: str | Path) -> FastTextModel:
    """Read a model that `save_model` wrote, or `save` of a SupervisedModel or a Word2Vec. Raises InputError for
    anything else.

    fastText's own .bin files are refused; `pretrainedVectors` reads the vectors in its .vec files.
    """
    if Path(path).is_file():
        raise InputError(
            f"{path}: is a file, but a model is a folder; of a fastText model only the .vec file can be read, by "
            "pretrainedVectors= or WordVectors.read"
        )
    model = load(path)
    if isinstance(model, SupervisedModel):
        return Classifier(model)
    if isinstance(model, Word2Vec):
        return Vectors(model)
    raise InputError(f"{path}: is not a fastText-style model; load it with mt2st_fast.load")


def tokenize(text: str) -> list[str]:
    """Return the words of a text as training reads them, split at white space; a line feed is the word `</s>`."""
    return words_of(text.replace("\n", f" {EOS} "))


def cbow(*_: Any, **__: Any) -> NoReturn:
    """Not supported, as in fastText: raises InputError."""
    raise InputError("cbow: call train_unsupervised(input, model='cbow')")


def skipgram(*_: Any, **__: Any) -> NoReturn:
    """Not supported, as in fastText: raises InputError."""
    raise InputError("skipgram: call train_unsupervised(input, model='skipgram')")


def supervised(*_: Any, **__: Any) -> NoReturn:
    """Not supported, as in fastText: raises InputError."""
    raise InputError("supervised: call train_supervised(input)")


def _begin_with(model: Word2Vec, path: Path) -> None:
    vectors = WordVectors.read(path)
    if vectors.dim != model.vector_size:
        raise InputError(
            f"{path}: has vectors of dimension {vectors.dim}; use dim={vectors.dim}, not {model.vector_size}"
        )
    rows: Mapping[str, int] = vectors.index_of
    for own, word in enumerate(model.words):
        if word in rows:
            model.tables.input_rows[own] = vectors.vectors[rows[word]]
    model.show_vectors()
