"""`mt2st-fast evaluate`: the quality of word vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mt2st_fast.cli.output import out_path, writable
from mt2st_fast.cli.paths import path_argument
from mt2st_fast.cli.terminal import plain_console, say, say_table
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted
from mt2st_fast.words.vectors import WordVectors


def evaluate(
    vectors: Annotated[
        Path, path_argument("file of word vectors: .txt, .vec, .bin, .safetensors or GloVe text")
    ],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="PATH", help="folder for the report and the picture")
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(help="comma-separated words to show the neighbours of; some frequent words by default"),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="neighbours to show per word", min=1)] = 5,
    most_frequent: Annotated[
        int,
        typer.Option(
            help="number of most frequent words to use for pairs and analogies; fewer is faster",
            min=2,
        ),
    ] = 300_000,
) -> None:
    """Measure word vectors: SimLex-999, WordSim-353, analogies, neighbours; --out also writes a report and a picture.

    Needs gensim and scipy: pip install 'mt2st-fast\\[words]'.
    """
    # Imported here, so that no other command waits for the import of matplotlib.
    from mt2st_fast.words.evaluation import EVALUATION_FILES, analogy_rows, pair_rows, write_evaluation
    from mt2st_fast.words.evaluation import evaluate as measure

    _check_file(vectors)
    folder = None if out is None else writable(out_path(out))
    queries = tuple(word.strip() for word in (words or "").split(",") if word.strip())
    busy = plain_console(stderr=True)
    with busy.status("reading vectors") as status:
        table = WordVectors.read(vectors)
        status.update(f"measuring {counted(len(table), 'word')}")
        result = measure(table, queries=queries, neighbours=neighbours, most_frequent=most_frequent)
        if folder is not None:
            status.update("drawing")
            write_evaluation(result, table, vectors.name, folder)
    console = plain_console()
    say(
        console,
        (str(vectors), "bold"),
        f": {counted(result['words'], 'word')}, {counted(result['dimension'], 'dimension')}",
        f"; {counted(result['zero_vectors'], 'zero vector')} left out" if result["zero_vectors"] else "",
    )
    _print(console, ("similarity", "Spearman", "Pearson", "pairs used", "OOV"), pair_rows(result))
    _print(console, ("analogies", "accuracy", "right", "questions used", "OOV"), analogy_rows(result))
    _print(
        console,
        ("word", "nearest neighbours"),
        [[word, ", ".join(near)] for word, near in result["neighbours"].items()],
    )
    if result["unknown_queries"]:
        say(console, f"Without a vector: {', '.join(result['unknown_queries'])}")
    if folder is not None:
        say(console, f"Written to {folder}: {', '.join(EVALUATION_FILES)}")


def _check_file(vectors: Path) -> None:
    """Raise InputError for a folder, naming what can be measured in that of a run."""
    of_run = vectors / "vectors.txt"
    if of_run.is_file():
        raise InputError(
            f"{vectors} is a folder; measure its vectors with mt2st-fast evaluate {of_run}, or its model with "
            f"mt2st-fast test {vectors} DATA"
        )
    if vectors.is_dir():
        raise InputError(f"{vectors} is a folder; pass a file of word vectors")


def _print(console: Console, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    say_table(console, table)
