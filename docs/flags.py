"""Regenerates the tables of flags in docs/command-line.md from what the command line itself reads:

    python docs/flags.py

A table is between `<!-- flags: NAME -->` and `<!-- end -->`. A test checks that the page is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from mt2st_fast.cli import app

PAGE = Path(__file__).with_name("command-line.md")
SHARED = ("train", "compare")  # the flags that both have are in one table
_PLACE = re.compile(r"(<!-- flags: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def commands() -> dict[str, Any]:
    """The commands by name, as they parse their arguments."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def flags_of(command: Any) -> list[Any]:
    """Its options and arguments, except for hidden ones."""
    return [parameter for parameter in command.params if not parameter.hidden]


def tables() -> dict[str, str]:
    """The table of every command, and that of the flags shared by train and compare, by name."""
    found = commands()
    first, second = (map(_row, flags_of(found[name])) for name in SHARED)
    shared = set(first) & set(second)
    made = {" and ".join(SHARED): _by_panel(found[SHARED[0]], lambda parameter: _row(parameter) in shared)}
    for name, command in found.items():
        own = [p for p in flags_of(command) if name not in SHARED or _row(p) not in shared]
        made[name] = _table(own)
    return made


def written(page: str) -> str:
    """The page with up-to-date tables. Raises KeyError for the table of a command that does not exist."""
    made = tables()
    return _PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]]}\n{place[3]}", page)


def _by_panel(command: Any, is_wanted: Callable[[Any], bool]) -> str:
    parts = list(_panels(command, is_wanted))
    return "\n".join(f"**{panel or 'Options'}**\n\n{table}" for panel, table in parts)


def _panels(command: Any, is_wanted: Callable[[Any], bool]) -> Iterator[tuple[str, str]]:
    wanted = [parameter for parameter in flags_of(command) if is_wanted(parameter)]
    names = dict.fromkeys(parameter.rich_help_panel for parameter in wanted)
    for panel in sorted(names, key=lambda name: name == "Output"):  # in reading order: inputs first
        yield panel, _table([parameter for parameter in wanted if parameter.rich_help_panel == panel])


def _table(parameters: list[Any]) -> str:
    if not parameters:
        return "It takes no flags.\n"
    rows = [f"| {flag} | {meaning} | {default} |" for flag, meaning, default in map(_row, parameters)]
    return "\n".join(["| flag | what it means | default |", "|---|---|---|", *rows]) + "\n"


def _row(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.opts[0].upper()]
    # A flag in the text is set as code, unless it is inside code already.
    meaning = re.sub(r"(`[^`]*`)|(?<![\w-])(--[a-z][a-z-]*)", lambda m: m[1] or f"`{m[2]}`", parameter.help)
    return ", ".join(f"`{name}`" for name in names), meaning.replace("|", "\\|"), _default(parameter)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False or parameter.default == "":
        return ""
    return f"`{parameter.default}`"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), encoding="utf-8")
