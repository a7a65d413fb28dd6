"""Flags of the commands that read a table with a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

TextColumnFlag = Annotated[
    str | None, typer.Option(help="table column with the text; by default as in training")
]
DelimiterFlag = Annotated[
    str | None,
    typer.Option(help="table delimiter, one character or tab; detected from the header by default"),
]
