"""For `mkdocs build`: docstrings are prose, in which an asterisk multiplies and arguments are explained in sentences.

    Trains an encoder. encoder: any module. heads: MultiTaskHeads over D. Raises ValueError for another width.

The name of an argument or field at the start of a sentence, followed by a colon, starts a list item; what is raised
becomes a paragraph.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function


class ArgumentsAsList(Extension):
    """Called by Griffe for everything that it has read."""

    def on_class(self, *, cls: Class, **others: Any) -> None:
        """Rewrite the docstring of a class: its fields, and the arguments of its constructor."""
        made_by = cls.members.get("__init__")
        arguments = made_by.parameters if isinstance(made_by, Function) else ()
        _rewrite(cls, {*cls.members, *(argument.name for argument in arguments)})

    def on_function(self, *, func: Function, **others: Any) -> None:
        """Rewrite the docstring of a function: its arguments."""
        _rewrite(func, {argument.name for argument in func.parameters})


def _rewrite(what: Class | Function, names: set[str]) -> None:
    if what.docstring is not None:
        what.docstring.value = as_markdown(what.docstring.value, names)


def as_markdown(text: str, names: set[str]) -> str:
    """The text with one list item per name; indented paragraphs, which are code, stay as they are."""
    return "\n\n".join(p if p.startswith(" ") else _paragraph(p, names) for p in text.split("\n\n"))


def _paragraph(paragraph: str, names: set[str]) -> str:
    code = r"(`[^`]*`)|\*"
    told = re.sub(code, lambda found: found[1] or r"\*", " ".join(paragraph.split())).removeprefix("Args: ")
    name = "(?:" + "|".join(map(re.escape, sorted(names))) + ")" if names else "(?!)"
    first, *rest = re.split(rf"(?:^|(?<=[.;)])\s+)({name}(?:, {name})*): ", told)
    parts = [first] if first else []
    for arguments, said in zip(rest[::2], rest[1::2], strict=True):
        said, raises = _parted(said)
        listed = ", ".join(f"`{argument}`" for argument in arguments.split(", "))
        parts += [f"- {listed}: {said}", *([f"\n{raises}"] if raises else [])]
    # A list needs an empty line before it.
    return "\n".join(parts) if not (first and rest) else "\n".join([parts[0], "", *parts[1:]])


def _parted(said: str) -> tuple[str, str]:
    """What is said about an argument, and what is raised, which follows it."""
    said, found, raises = said.partition(". Raises ")
    return (f"{said}.", f"Raises {raises}") if found else (said, "")
