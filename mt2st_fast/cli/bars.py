"""Progress bars of the commands; silent if there is no terminal."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from mt2st_fast.cli.terminal import plain_console


def progress_bars(*columns: ProgressColumn, is_shown: bool = True) -> Progress:
    """Return bars on standard error, which a terminal shows until they end; by default with the time since the start.

    A description is printed literally.
    """
    console = plain_console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *(columns or (TimeElapsedColumn(),)),
        console=console, disable=not (console.is_terminal and is_shown), transient=True,
    )  # fmt: skip
