"""Reading a corpus with a progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from mt2st_fast.data import Splits, open_data
from mt2st_fast.runs.config import Config


def read_data(config: Config) -> Splits:
    """The corpus that a configuration names."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(f"read {escape(config.data)}", total=None)
        return open_data(
            config.data,
            config.main,
            config.aux,
            config.label_fraction,
            seed=config.seed,
            text_column=config.text_column,
            delimiter=config.delimiter,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
