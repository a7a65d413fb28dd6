"""report.html: one page that needs no network, its pictures within it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mt2st_fast.runs.plots import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Table:
    """A column whose name ends in ":" is set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """alt says what is to be seen."""

    figure: Figure
    alt: str

    @property
    def base64(self) -> str:
        """The SVG, as a page holds it."""
        return base64.b64encode(svg(self.figure)).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of the page under a title."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=())


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> bytes:
    """The page in UTF-8; whatever the texts hold, it is text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(title=title, lead=lead, sections=sections, footer=footer).encode(
        "utf-8", "replace"
    )
