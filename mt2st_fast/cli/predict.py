"""`mt2st-fast predict`: label text with a trained model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mt2st_fast.errors import InputError
from mt2st_fast.files import reading, writing_atomically

CHUNK_BYTES = 1 << 19


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
    from mt2st_fast.serving.reading import TOKENIZERS, read_units
    from mt2st_fast.serving.text_model import TextModel
    from mt2st_fast.serving.writing import Wanted, check_format, write_units

    found = TextModel.load(model)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else (found.main,)
    for name in names:
        found.check_task(name)
    wanted = Wanted(names, check_format(found, form), k, threshold, probabilities)
    cut = found.tokenizer if tokenizer is None else tokenizer
    if cut not in TOKENIZERS:
        raise InputError(f"--tokenizer is one of {', '.join(TOKENIZERS)}, not {cut!r}")
    where = "standard input" if file == "-" else file
    gc.disable()  # words make no circles, and looking for some takes half of the time
    with _sink(out) as sink:
        for text in write_units(found, read_units(_chunks(file), where, cut, kind), wanted):
            sink.write(text.encode("utf-8", "surrogatepass"))


def _chunks(file: str) -> Iterator[bytes]:
    """The bytes to read, with a bar on a terminal that shows how far."""
    if file == "-":
        yield from iter(lambda: sys.stdin.buffer.read1(CHUNK_BYTES), b"")  # type: ignore[attr-defined]
        return
    path = Path(file)
    console = Console(stderr=True)
    shown = console.is_terminal and path.suffix != ".gz"  # whose length says nothing
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeElapsedColumn(),
    )
    with (
        reading(path) as source,
        Progress(*columns, console=console, transient=True, disable=not shown) as bar,
    ):
        task = bar.add_task(f"label {escape(path.name)}", total=path.stat().st_size)
        for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
            yield chunk
            bar.update(task, advance=len(chunk))


def _sink(out: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdout.buffer) if out is None else writing_atomically(out)
