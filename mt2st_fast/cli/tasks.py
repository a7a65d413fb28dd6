"""The names that an option lists."""

from __future__ import annotations

import csv
import re
from typing import Any

import typer

from mt2st_fast.errors import InputError
from mt2st_fast.spelling import twice

_OPENING = re.compile(r'(^|,)\s*"')


def names_between_commas(option: str, flag: str) -> tuple[str, ...]:
    """Return the names in an option; a name with a comma in it is quoted, as in a table.

    Raises InputError for a quotation mark that is not closed.
    """
    if option.count('"') % 2 and _OPENING.search(option):  # csv would close it at the end
        raise InputError(
            f'{flag} {option}: a quotation mark is not closed; quote a name with a comma in it, as in "a,b",c'
        )
    rows = csv.reader([" ".join(option.split())], skipinitialspace=True)
    return tuple(name.strip() for row in rows for name in row if name.strip())


def tasks_option(what: str) -> Any:
    """Return what typer is told of --tasks of a command; what: that does to them."""
    help = f'comma-separated tasks to {what}, a name with a comma in "quotes"; the main task by default'
    return typer.Option(help=help)


def tasks_named(option: str | None) -> tuple[str, ...]:
    """Return the names in --tasks, empty if it is not given. Raises InputError for no name, or a name given twice."""
    if option is None:
        return ()
    names = names_between_commas(option, "--tasks")
    if not names:
        raise InputError(f"--tasks {option!r} names no task; leave it out to use the main task")
    if repeated := twice(names):
        raise InputError(f"--tasks names {repeated!r} twice; name it once")
    return names
