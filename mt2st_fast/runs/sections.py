"""The titled sections of reports, as Markdown and as report.html: a single page that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mt2st_fast.markdown import markdown_table, one_line
from mt2st_fast.runs.plots import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("sections.html")


class Table(NamedTuple):
    """A table; a column whose name ends in ":" is right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """A picture: `alt` describes what it shows, and `file` is its name beside report.md ("" if it is not there)."""

    draw: Callable[[], Figure]
    alt: str
    file: str = ""

    @property
    def base64(self) -> str:
        """The SVG, encoded for embedding."""
        return base64.b64encode(svg(self.draw())).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def sections_in_markdown(sections: Iterable[Section]) -> list[str]:
    """Return the lines of sections; pictures without a file are left out."""
    lines = []
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.lines:
            lines += [*(f"- {one_line(line)}" for line in section.lines), ""]
        for picture in section.pictures:
            lines += [f"![{picture.alt}]({picture.file})", ""] if picture.file else []
        for table in section.tables:
            lines += [*markdown_table(*table), ""]
    return lines


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> bytes:
    """Return report.html in UTF-8, with its pictures embedded; all texts are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(title=title, lead=lead, sections=sections, footer=footer).encode(
        "utf-8", "replace"
    )
