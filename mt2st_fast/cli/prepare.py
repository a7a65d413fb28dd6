"""`mt2st-fast prepare`: a token file from a corpus of any size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn, TimeRemainingColumn

from mt2st_fast.cli.bars import progress_bars
from mt2st_fast.cli.output import writable
from mt2st_fast.cli.paths import out_file, path_argument
from mt2st_fast.cli.terminal import plain_console, say
from mt2st_fast.data.preparation import prepare as prepare_corpus
from mt2st_fast.errors import OptionError
from mt2st_fast.spelling import counted

STAGES = {"read": "read text", "write": "write tokens"}


def prepare(
    corpus: Annotated[list[Path], path_argument("text files, plain or .gz, or folders of them")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="PATH", help="token file to write")],
    lower: Annotated[bool, typer.Option("--lower", help="lowercase the text")] = False,
    min_count: Annotated[
        int, typer.Option(help="leave out words that occur fewer times than this", min=1)
    ] = 5,
    processes: Annotated[
        int | None, typer.Option(help="cores that read at a time; by default as many as torch uses", min=1)
    ] = None,
) -> None:
    """Turn text (one sentence per line, words separated by white space) into a token file that training memory-maps.

    The corpus may be larger than memory. Ctrl-C or an error leaves nothing half-written.
    """
    file = out_file(out)
    writable(file.parent)
    start = time.perf_counter()
    with progress_bars(DownloadColumn(), TimeRemainingColumn()) as bars:
        bar_of = {stage: bars.add_task(text, total=None) for stage, text in STAGES.items()}
        try:
            done = prepare_corpus(
                corpus,
                file,
                lower=lower,
                min_count=min_count,
                processes=processes,
                progress=lambda stage, read, total: bars.update(bar_of[stage], completed=read, total=total),
            )
        except OptionError as error:
            raise error.calling_it("--min-count") from None
    seconds = time.perf_counter() - start
    say(
        plain_console(),
        f"{out}: {counted(done.words_kept, 'token')} in {counted(done.sentences, 'sentence')}, "
        f"{counted(done.types_kept, 'word type')}; "
        f"{counted(done.types_read - done.types_kept, 'rarer type')} "
        f"({counted(done.words_read - done.words_kept, 'token')}) left out. "
        f"{counted(done.files, 'file')}, {done.bytes_read / 1e6:,.1f} MB, "
        f"{done.bytes_read / 1e6 / seconds:,.1f} MB/s.",
    )
