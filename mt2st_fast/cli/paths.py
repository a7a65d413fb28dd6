"""The type of arguments that are paths: an empty one, as of an unset variable, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

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
