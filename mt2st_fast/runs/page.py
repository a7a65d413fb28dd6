"""report.html: a single page with its pictures embedded, which needs no network."""

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
    """A table; a column whose name ends in ":" is right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """A picture; alt describes what it shows."""

    figure: Figure
    alt: str

    @property
    def base64(self) -> str:
        """The SVG, encoded for embedding."""
        return base64.b64encode(svg(self.figure)).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=())


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> bytes:
    """Return the page in UTF-8; all texts are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(title=title, lead=lead, sections=sections, footer=footer).encode(
        "utf-8", "replace"
    )
