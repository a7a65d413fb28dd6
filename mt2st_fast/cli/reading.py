"""Read a corpus with a progress bar."""

from __future__ import annotations

from mt2st_fast.cli.bars import progress_bars
from mt2st_fast.data import Splits, complete_labels, open_data
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import NO_NUMBA, is_set, tuned_tables
from mt2st_fast.runs.config import Config


def read_data(config: Config) -> Splits:
    """Return the corpus that a configuration names. Raises InputError where it could be read, but not trained on."""
    if is_set(NO_NUMBA):
        raise InputError(f"{NO_NUMBA} is set, and training needs compiled kernels; unset it")
    try:
        tuned_tables()  # which not every engine reads, but which may have been asked for
    except ValueError as error:
        raise InputError(str(error)) from None
    with progress_bars() as progress:
        bar = progress.add_task(f"read {config.data}", total=None)
        splits = open_data(
            config.data,
            config.main,
            config.aux,
            config.label_fraction,
            seed=config.seed,
            text_column=config.text_column,
            delimiter=config.delimiter,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    return complete_labels(splits) if config.complete_labels else splits
