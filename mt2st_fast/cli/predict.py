"""`mt2st-fast predict`: label text with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mt2st_fast.errors import InputError
from mt2st_fast.files import reading, writing_atomically


def predict(
    model: Annotated[
        Path, typer.Argument(help="the folder of a run of `train`, or of a model that was saved")
    ],
    file: Annotated[
        str, typer.Argument(help="CoNLL-U or text in UTF-8, .gz too; - is standard input", show_default=True)
    ] = "-",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="a file, instead of standard output")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="the tasks to say, separated by commas; the main one by default")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="conllu or jsonl for words, labels or jsonl for documents")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--input", help="what the file is: conllu, text (a sentence or document a line), or auto"
        ),
    ] = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="how text is cut into words: words, lowered words, blanks; as in training"),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="so many labels, the likeliest first; -1 for all")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="labels of at least this probability")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="with their probabilities")] = False,
) -> None:
    """Label words or texts with a trained model, a block at a time: a file of any length, or a pipe."""
    # Reading options needs no torch.
    from mt2st_fast.serving.models import load_text_model
    from mt2st_fast.serving.reading import TOKENIZERS, read_units
    from mt2st_fast.serving.writing import Wanted, check_format, write_units

    found = load_text_model(model)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else (found.main,)
    for name in names:
        found.check_task(name)
    wanted = Wanted(names, check_format(found, form), k, threshold, probabilities)
    cut = found.tokenizer if tokenizer is None else tokenizer
    if cut not in TOKENIZERS:
        raise InputError(f"--tokenizer is one of {', '.join(TOKENIZERS)}, not {cut!r}")
    where = "standard input" if file == "-" else file
    with _opened(file) as source, _sink(out) as sink:
        for text in write_units(found, read_units(source, where, cut, kind), wanted):
            sink.write(text.encode("utf-8", "surrogatepass"))


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The bytes to read, with a bar on a terminal that shows how far."""
    if file == "-":
        yield sys.stdin.buffer
        return
    path = Path(file)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
    )
    with reading(path) as source:
        if not console.is_terminal or path.suffix == ".gz":
            yield source
            return
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task(f"label {escape(path.name)}", total=path.stat().st_size)
            yield _Watched(source, lambda done: progress.update(bar, completed=done))  # type: ignore[misc]


class _Watched:
    """A file that says now and then how far it was read."""

    def __init__(self, file: BinaryIO, say: Callable[[int], None]) -> None:
        self._file, self._say = file, say

    def __iter__(self) -> Iterator[bytes]:
        done = said = 0
        for line in self._file:
            done += len(line)
            if done - said > 1 << 18:
                self._say(done)
                said = done
            yield line


def _sink(out: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdout.buffer) if out is None else writing_atomically(out)
