"""python -m bench.words: compare Word2Vec with gensim's in speed and quality, and append records.

Each seed is a round: gensim and ours take turns on the same file, with 2 workers each, for skip-gram and CBOW. Words
per second are raw words times epochs over the training time only, as gensim counts them, and also over the time of the
whole call, including reading and the vocabulary. The repeated treebank is also trained from a token file that stays
mapped. Quality is Spearman's correlation with WordSim-353 and SimLex-999, gensim's own files, by gensim's own
evaluate_word_pairs. Both corpora are small, so these scores are low and vary much between seeds.

Both have the same mean rate: with `corpus_file`, each of gensim's W workers compares its own sentence count with the
total (get_next_alpha of word2vec_corpusfile.pyx), so that within an epoch the rate falls only by 1 / W of its share.
Ours falls linearly to where gensim's ends.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console

from bench import ledger
from bench.environment import describe
from bench.interleaved import Timings
from bench.load import CpuLoad
from bench.printing import Measured, field, record_and_print
from bench.required import ALLOWED_LOSS, WORDS_OVER_GENSIM
from bench.verdicts import decided
from mt2st_fast import Word2Vec
from mt2st_fast.data.preparation import prepare
from mt2st_fast.environment import version

WORKERS = 2
SETTINGS: dict[str, Any] = {
    "vector_size": 100, "window": 5, "negative": 5, "sample": 1e-3, "min_count": 5, "epochs": 5, "workers": WORKERS,
}  # fmt: skip
ALPHA = 0.025  # gensim's default, and ours
LOWEST_ALPHA = ALPHA * (1 - 1 / WORKERS) / SETTINGS["epochs"]
PAIRS = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
MODES = {"cbow": 0, "skipgram": 1}
console = Console(width=150)
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
LINE_WORDS = 1000  # gensim truncates longer lines


class Run(NamedTuple):
    """One training of one peer."""

    prepare_seconds: float
    train_seconds: float
    quality: dict[str, float]


DIRECTIONS: dict[str, Callable[[Run], float]] = {
    "train": lambda run: run.train_seconds,
    "whole call": lambda run: run.prepare_seconds + run.train_seconds,
}


def main(
    treebank: Annotated[
        Path | None,
        typer.Option(help="CoNLL-U file, repeated up to --words; if not set, only Wikipedia is measured."),
    ] = None,
    words: Annotated[
        int, typer.Option(min=1000, help="Number of words of the repeated treebank.")
    ] = 5_000_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of rounds on the treebank.")] = 3,
    wikipedia_seeds: Annotated[
        int, typer.Option(min=0, help="Number of rounds on gensim's Wikipedia articles.")
    ] = 5,
    first_seed: Annotated[int, typer.Option(min=1, help="Seed of the first round.")] = 1,
    records: Annotated[Path, typer.Option(help="Folder for the records.")] = ledger.FOLDER,
) -> None:
    """Measure, print and append records."""
    if version("gensim") == "not installed":
        console.print("gensim is not installed: pip install 'mt2st-fast[words]'")
        raise typer.Exit(2)
    torch.set_num_threads(WORKERS)
    with tempfile.TemporaryDirectory() as folder:
        texts = []
        if treebank is not None:
            texts.append(("treebank", repeated(list(treebank_sentences(treebank)), words), seeds))
        if wikipedia_seeds:
            texts.append(("Wikipedia", list(wikipedia_sentences()), wikipedia_seeds))
        for name, sentences, rounds in texts:
            path = Path(folder) / f"{name}.txt"
            path.write_text("".join(" ".join(s) + "\n" for s in sentences), "utf-8")
            n_words = sum(map(len, sentences))
            for mode in MODES:
                measure(name, path, n_words, mode, range(first_seed, first_seed + rounds), records)
            if name == "treebank":
                measure_mapped(path, n_words, range(first_seed, first_seed + rounds), records)


def measure(name: str, path: Path, n_words: int, mode: str, seeds: range, records: Path) -> None:
    """Measure one corpus and mode: the peers take turns, one round per seed."""
    text = [[f"w{i * j % 97}" for j in range(600)] for i in range(1, 40)]
    Word2Vec(text, sg=MODES[mode], workers=WORKERS)  # compiles, or loads from the cache
    runs: dict[str, list[Run]] = {"gensim": [], "ours": []}
    load = CpuLoad()
    for seed in seeds:
        runs["gensim"].append(train_gensim(path, mode, seed))
        runs["ours"].append(train_ours(path, mode, seed))
        for peer, made in runs.items():
            last = made[-1]
            console.print(f"{name} {mode} seed {seed} {peer}: {last.train_seconds:.1f} s {last.quality}")
    others_share = load.others_share()
    for direction, seconds_of in DIRECTIONS.items():
        microseconds = {
            peer: np.array([seconds_of(run) for run in made]) * 1e6 for peer, made in runs.items()
        }
        _report(name, n_words, mode, direction, runs, Timings(microseconds, others_share), records)


def measure_mapped(path: Path, n_words: int, seeds: range, records: Path) -> None:
    """Measure CBOW from a mapped token file against the same text in memory: the training time only."""
    tokens = path.with_suffix(".tokens")
    prepare(path, tokens, min_count=SETTINGS["min_count"])
    sources = {"in memory": path, "mapped": tokens}
    runs: dict[str, list[Run]] = {name: [] for name in sources}
    load = CpuLoad()
    for seed in seeds:
        for name, source in sources.items():
            runs[name].append(train_ours(source, "cbow", seed))
    timings = Timings(
        {name: np.array([run.train_seconds for run in made]) * 1e6 for name, made in runs.items()},
        load.others_share(),
    )
    ratio = timings.ratio("in memory", "mapped")
    console.print(
        f"mapped: {ratio.of_medians:.2f} [{ratio.p25:.2f} to {ratio.p75:.2f}] times the words/s in memory"
    )
    environment, shape = describe(), f"{n_words} words, {SETTINGS['epochs']} epochs"
    made = [
        ledger.make_record(
            environment, "words", "token file, cbow", shape, name, "train", timings,
            "in memory / mapped" if name == "mapped" else None, ratio if name == "mapped" else None,
        )
        for name in sources
    ]  # fmt: skip
    ledger.append(made, records)


def train_gensim(path: Path, mode: str, seed: int) -> Run:
    """Train gensim in its fastest way: it reads the file in C."""
    from gensim.models import Word2Vec as Gensim

    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Gensim(sg=MODES[mode], seed=seed, **SETTINGS)
        model.build_vocab(corpus_file=str(path))
        prepared = time.perf_counter()
        model.train(
            corpus_file=str(path),
            total_words=model.corpus_total_words,
            total_examples=model.corpus_count,
            epochs=SETTINGS["epochs"],
        )
    seconds = time.perf_counter() - prepared
    return Run(prepared - started, seconds, quality(model.wv))


def train_ours(path: Path, mode: str, seed: int) -> Run:
    """Train ours from the same file; training begins with the first epoch."""
    clock: list[float] = []

    class Stopwatch:
        def on_train_begin(self, model: Word2Vec) -> None:
            clock.append(time.perf_counter())

    started = time.perf_counter()
    model = Word2Vec(
        corpus_file=path,
        sg=MODES[mode],
        seed=seed,
        callbacks=[Stopwatch()],
        min_alpha=LOWEST_ALPHA,
        **SETTINGS,
    )
    ended = time.perf_counter()
    return Run(clock[0] - started, ended - clock[0], quality(model.wv))


def quality(vectors: Any) -> dict[str, float]:
    """Return Spearman's correlation with human judgements of similarity."""
    from gensim.test.utils import datapath

    return {
        name: round(float(vectors.evaluate_word_pairs(datapath(file))[1][0]), 4)
        for name, file in PAIRS.items()
    }


def _report(
    name: str,
    n_words: int,
    mode: str,
    direction: str,
    runs: dict[str, list[Run]],
    timings: Timings,
    records: Path,
) -> None:
    epochs = SETTINGS["epochs"]
    speed = {peer: n_words * epochs / (timings.median_us(peer) / 1e6) for peer in runs}
    median = {
        peer: {task: float(np.median([run.quality[task] for run in made])) for task in PAIRS}
        for peer, made in runs.items()
    }
    shape = f"{n_words} words, {epochs} epochs, " + " ".join(f"{k}={v}" for k, v in SETTINGS.items())
    environment = describe()
    environment["versions"]["gensim"] = version("gensim")
    fields = {
        peer: {
            "words_per_second": round(speed[peer]),
            "prepare_seconds": round(float(np.median([run.prepare_seconds for run in runs[peer]])), 3),
            "quality": {task: [run.quality[task] for run in runs[peer]] for task in PAIRS},
            "quality_median": median[peer],
        }
        for peer in runs
    }
    made = record_and_print(
        console,
        Measured(environment, "words", f"{name}, {mode}", shape, direction),
        timings,
        {"ours": ("gensim", "ours")},
        title=f"{name}, {mode}, {direction}: {n_words:,} words",
        more=fields,
        columns={
            "words/s": field("words_per_second", digits=0),
            "prepare s": field("prepare_seconds", digits=2),
            **{task: lambda record, task=task: f"{record['quality_median'][task]:.3f}" for task in PAIRS},
        },
    )
    least = WORDS_OVER_GENSIM[direction]
    fast = timings.ratio("gensim", "ours").of_medians >= least
    good = all(median["ours"][task] >= median["gensim"][task] - ALLOWED_LOSS for task in PAIRS)
    console.print(
        f"required: {least:g} times gensim: {decided(fast, made)}; "
        f"no score lower by more than {ALLOWED_LOSS}: {decided(good, ())}"
    )
    ledger.append(made, records)


# --- texts -----------------------------------------------------------------------------------------------


def treebank_sentences(path: Path) -> Iterator[list[str]]:
    """Yield the words of a CoNLL-U file, in lower case."""
    sentence: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) == 10 and fields[0].isdigit():
            sentence.append(fields[1].lower().replace(" ", "_"))
        elif not line and sentence:
            yield sentence
            sentence = []


def repeated(sentences: list[list[str]], n_words: int) -> list[list[str]]:
    """Repeat the sentences, up to n_words."""
    whole: list[list[str]] = []
    done = 0
    while done < n_words:
        for sentence in sentences:
            whole.append(sentence)
            done += len(sentence)
            if done >= n_words:
                break
    return whole


def wikipedia_sentences() -> Iterator[list[str]]:
    """Yield the words of the 106 Wikipedia articles that gensim ships, in lines of LINE_WORDS."""
    from gensim.corpora.wikicorpus import WikiCorpus
    from gensim.test.utils import datapath

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        articles = WikiCorpus(datapath(WIKIPEDIA), dictionary={}, processes=1).get_texts()
        for words in articles:
            yield from (words[i : i + LINE_WORDS] for i in range(0, len(words), LINE_WORDS))


if __name__ == "__main__":
    typer.run(main)
