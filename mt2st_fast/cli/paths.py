"""Arguments that are paths, and the path of --out: an empty one, as of an unset variable, is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home

EMPTY = "it is empty; set a path (the current folder is .)"


def path(text: str) -> Path:
    """Return the path. Raises typer.BadParameter if it is empty, which Path would take for the current folder.

    typer shows the function's name as the type of an argument.
    """
    if not text:
        raise typer.BadParameter(EMPTY)
    return Path(text)


def not_empty(text: str) -> str:
    """Return what names a file, or raise as `path` does."""
    path(text)
    return text


def path_argument(help: str, **options: Any) -> Any:
    """Return what typer is told of an argument that is a path."""
    return typer.Argument(help=help, parser=path, **options)


def out_path(text: str) -> Path:
    """Return the path of --out, as a shell takes it. Raises InputError if it is empty: the current folder is `.`."""
    if not text:
        raise InputError("--out is empty; set a path, or leave it out")
    return at_home(text)


def out_file(text: str) -> Path:
    """Return the path of --out for one file. Raises InputError where it is empty or a folder, even one to be made."""
    path = out_path(text)
    if path.is_dir() or text.endswith((os.sep, "/")):
        raise InputError(f"--out {text} is a folder; use a file name in it")
    return path
