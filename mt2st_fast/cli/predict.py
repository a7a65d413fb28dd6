"""`mt2st-fast predict`: label text with a trained model."""

from __future__ import annotations

import gc
import gzip
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import TextColumn, TimeElapsedColumn

from mt2st_fast.cli.bars import progress_bars
from mt2st_fast.cli.paths import not_empty, out_file, path_argument
from mt2st_fast.cli.table_flags import DelimiterFlag, TextColumnFlag
from mt2st_fast.cli.tasks import tasks_named, tasks_option
from mt2st_fast.cli.terminal import leave_unread
from mt2st_fast.errors import InputError
from mt2st_fast.files import (
    STANDARD_OUTPUT,
    at_home,
    check_not_read,
    is_stream,
    naming,
    reading,
    writing,
)
from mt2st_fast.interrupts import importing
from mt2st_fast.serving.wanted import Wanted

CHUNK_BYTES = 1 << 19


def predict(
    model: Annotated[Path, path_argument("folder of a `train` run or of a saved model")],
    file: Annotated[
        str,
        typer.Argument(
            help="CoNLL-U or text in UTF-8, optionally gzipped, or csv:PATH, jsonl:PATH, columns:PATH; - is "
            "standard input",
            show_default=True,
            parser=not_empty,
        ),
    ] = "-",
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="PATH", help="output file, packed if named .gz; standard output by default"
        ),
    ] = None,
    tasks: Annotated[str | None, tasks_option("predict")] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="output format: conllu or jsonl for words, labels or jsonl for documents"
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--input", help="input format: conllu, text (one sentence or document per line), or auto"
        ),
    ] = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="how to split text: words, lowered words or blanks; by default as in training"),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            help="number of labels, most likely first; -1 for all; by default 1, or all for a task with several "
            "labels per row",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="output labels with at least this probability; by default 0, or 0.5 for a task with several "
            "labels per row if --k is not given"
        ),
    ] = None,
    text_column: TextColumnFlag = None,
    delimiter: DelimiterFlag = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="also output probabilities; JSON lines include them with --k or --threshold as well",
        ),
    ] = False,
) -> None:
    """Label words or texts with a trained model, one block at a time, from a file of any length or a pipe."""
    # Imported here: reading options must not import torch.
    with importing():
        from mt2st_fast.model_folder import SUPERVISED, files_of_model, kind_of

    asked = _Asked(tasks_named(tasks), form, tokenizer, k, threshold, probabilities)
    source = _Source.of(file, kind, text_column, delimiter)
    sink_path = None if out is None else out_file(out)
    if sink_path is not None:
        check_not_read(sink_path, [source.path or _standard_input(), *files_of_model(model)])
    answers = _of_lines if kind_of(model) == SUPERVISED else _of_texts
    was_enabled = gc.isenabled()
    gc.disable()  # words form no reference cycles, and searching for them takes half of the time
    try:
        with _sink(sink_path) as sink:
            for text in answers(model, source, asked):
                sink.write(text.encode("utf-8", "surrogatepass"))
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class _Source:
    """What is to be labelled: a file, or standard input without a path; its kind, or "auto"; options of tables."""

    path: Path | None
    kind: str
    text_column: str | None
    delimiter: str | None

    @classmethod
    def of(cls, file: str, kind: str, text_column: str | None, delimiter: str | None) -> _Source:
        """Return what the arguments of the command name. Raises InputError where they contradict each other."""
        with importing():
            from mt2st_fast.data.readers import READERS, parse_spec, takes

        if kind not in ("auto", "conllu", "text"):
            raise InputError(
                f"--input {kind!r} is unknown; available: auto, conllu, text; name other kinds as KIND:PATH"
            )
        path = at_home(file)
        before, colon, _ = file.partition(":")
        if colon and before in READERS and not path.exists():
            if kind != "auto":
                raise InputError(f"{file} already names the kind {before}; leave out --input {kind}")
            kind, path = parse_spec(file, "FILE")
        for name, given in (("text_column", text_column), ("delimiter", delimiter)):
            if given is not None and not takes(kind, name):
                able = " or ".join(reader for reader in READERS if takes(reader, name))
                raise InputError(
                    f"--{name.replace('_', '-')} is for tables; use {able}:{path}, or leave it out"
                )
        return cls(None if file == "-" else path, kind, text_column, delimiter)

    @property
    def lines(self) -> tuple[Iterator[bytes], str]:
        """The bytes of a text, and its name."""
        from mt2st_fast.serving.reading import STANDARD_INPUT

        return _chunks(self.path), STANDARD_INPUT if self.path is None else str(self.path)

    @property
    def is_text(self) -> bool:
        """Whether it is read line by line."""
        from mt2st_fast.data.readers import READERS

        return self.kind not in READERS or READERS[self.kind].unlabelled is None


@dataclass(frozen=True)
class _Asked:
    """What the command's arguments ask for, None where they leave it to the model."""

    tasks: tuple[str, ...]
    form: str | None
    tokenizer: str | None
    k: int | None
    threshold: float | None
    probabilities: bool

    def wanted(self, main: str, form: str) -> Wanted:
        """Return what to write in a format, of the main task if no other is asked for."""
        return Wanted(self.tasks or (main,), form, self.k, self.threshold, self.probabilities)


def _of_texts(folder: Path, source: _Source, asked: _Asked) -> Iterator[str]:
    """Label text with the model of a run."""
    with importing():
        from mt2st_fast.data.readers import takes
        from mt2st_fast.data.text.tokenizers import TOKENIZERS
        from mt2st_fast.serving.reading import read_rows, read_units
        from mt2st_fast.serving.text_model import TextModel
        from mt2st_fast.serving.writing import check_format, write_units

    model = TextModel.load(folder)
    for task in asked.tasks:
        model.check_task(task)
    wanted = asked.wanted(model.main, check_format(model, asked.form))
    cut = model.tokenizer if asked.tokenizer is None else asked.tokenizer
    if cut not in TOKENIZERS:
        raise InputError(f"--tokenizer {cut!r} is unknown; available: {', '.join(TOKENIZERS)}")
    if source.path is None or source.is_text:
        units = read_units(*source.lines, TOKENIZERS[cut], source.kind)
    else:
        text_column = source.text_column
        if text_column is None and takes(source.kind, "text_column"):
            text_column = model.text_column
        units = read_rows(source.kind, source.path, TOKENIZERS[cut], text_column, source.delimiter)
    return write_units(model, units, wanted)


def _of_lines(folder: Path, source: _Source, asked: _Asked) -> Iterator[str]:
    """Label lines with a model of train_supervised, which splits lines itself."""
    with importing():
        from mt2st_fast.data.text.lines import TextLines
        from mt2st_fast.serving.classified_lines import check_format, write_lines
        from mt2st_fast.serving.fitting import check_keys
        from mt2st_fast.words.supervised_model import SupervisedModel

    if source.kind not in ("auto", "text") or asked.tokenizer not in (None, "blanks"):
        raise InputError(
            "a train_supervised model reads lines of text and splits them at white space; pass the name of a file, "
            "without a kind such as csv:, and leave out --input and --tokenizer"
        )
    model = SupervisedModel.load(folder, device="cpu")
    wanted = asked.wanted(model.main, check_format(asked.form))
    if wanted.format == "jsonl":
        check_keys(wanted.tasks, "document")
    return write_lines(model, (lines for _, lines in TextLines(*source.lines).blocks()), wanted)


def _standard_input() -> Path:
    """Return a path of the file that was passed with `<`, on systems that have one."""
    return Path("/dev/stdin")


def _chunks(path: Path | None) -> Iterator[bytes]:
    """Yield the bytes to read, from standard input for None, with a progress bar on a terminal."""
    if path is None:
        if sys.stdin is None:  # as after `<&-`, or in a program without a console
            raise InputError("standard input is closed; name a FILE to read")
        yield from iter(lambda: sys.stdin.buffer.read1(CHUNK_BYTES), b"")  # type: ignore[union-attr]
        return
    columns = TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn()
    with (
        reading(path) as source,
        # The length of a text that is unpacked is unknown.
        progress_bars(*columns, is_shown=not isinstance(source, gzip.GzipFile)) as bar,
    ):
        task = bar.add_task(f"label {path.name}", total=path.stat().st_size)
        for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
            yield chunk
            bar.update(task, advance=len(chunk))


def _sink(out: Path | None) -> AbstractContextManager[BinaryIO]:
    """Return what to write to: a device or a pipe cannot be replaced, and gets the answers as they come."""
    if out is None:
        return _standard_output()
    return out.open("wb") if is_stream(out) else writing(out)


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise InputError("standard output is closed; set --out to a file")
    try:
        with naming(STANDARD_OUTPUT):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        leave_unread()
