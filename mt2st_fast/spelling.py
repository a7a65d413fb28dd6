"""Names and numbers in messages: which known name is meant, which names are the same number, and how many there are."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_NAMED = 20
_LEAST_ALIKE = 0.7
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBERLIKE = re.compile(r"[+-]?\d[\d.,]*")
_WHOLE_AS_FLOAT = re.compile(r"([+-]?\d+)\.0+")


def in_shell(path: object) -> str:
    """Return a path as one types it into a shell: in quotation marks, if it has blanks for example."""
    return shlex.quote(str(path))


def listed(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """Return the first `most` names, separated by commas, and how many more there are; "none" without any."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def counted(number: int, one: str, more: str = "") -> str:
    """Return a number and what it counts: 1 seed, 2 seeds; more: the words for several, where an "s" does not do."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def twice(names: Sequence[str]) -> str | None:
    """Return the first name that is there more than once, if any."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def quoted(known: Iterable[str]) -> str:
    """Return a hint for an error about a name in a list with commas, if a known name has a comma itself; or ""."""
    name = next((name for name in known if "," in name), None)
    if name is None:
        return ""
    written = '"' + name.replace('"', '""') + '"'
    return f"; quote a name with a comma, here {written}"


def in_any_case(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that equals this one, or else the only one that differs just in case."""
    if name in known:
        return name
    alike = [other for other in known if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name most similar to this one, if any is similar enough."""
    of_folded = {other.casefold().strip(): other for other in reversed(known)}
    found = get_close_matches(name.casefold().strip(), of_folded, 1, _LEAST_ALIKE)
    return of_folded[found[0]] if found else None


def meant(name: str, known: Sequence[str]) -> str:
    """Return a suggestion to add to an error about a name: ` (did you mean 'label'?)`, or ""."""
    near = nearest(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def one_number_each(names: Iterable[str]) -> dict[str, str]:
    """Return {"1.0": "1"} for all names that are whole numbers written with a decimal point and also occur without one.

    Empty if another name is a number with decimals, or a version such as 1.0.1: 1.0 may then be one, too.
    """
    names = set(names)
    spelled = {name: found[1] for name in names if (found := _WHOLE_AS_FLOAT.fullmatch(name))}
    others = (name for name in names - spelled.keys() if not _WHOLE.fullmatch(name))
    if any(map(_NUMBERLIKE.fullmatch, others)):
        return {}
    return {name: whole for name, whole in sorted(spelled.items()) if whole in names}


def other_spelling(name: str, known: Sequence[str]) -> str | None:
    """Return a known name that is the same number, or that a reader would take for the same (see `alike`)."""
    key = _folded(_without_point(name))
    return next((other for other in known if other != name and _folded(_without_point(other)) == key), None)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ just in case, blanks, and what cannot be seen: é has two spellings, and
    some characters have no width.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names in quotation marks, with codes for their characters where they would look the same."""
    seen = {"".join(_visible(name).split()) for name in names}
    return [repr(name) if len(seen) == len(names) else ascii(name) for name in names]


def _visible(name: str) -> str:
    composed = unicodedata.normalize("NFKC", name)
    return "".join(sign for sign in composed if unicodedata.category(sign) not in ("Cf", "Cc"))


def _folded(name: str) -> str:
    return " ".join(_visible(name).casefold().split())


def _without_point(name: str) -> str:
    whole = _WHOLE_AS_FLOAT.fullmatch(name)
    return whole[1] if whole else name
