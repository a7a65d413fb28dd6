"""The tasks that an option names."""

from __future__ import annotations

from mt2st_fast.errors import InputError


def tasks_named(option: str | None) -> tuple[str, ...]:
    """Return the names between commas, each once; empty if the option is not given. Raises InputError if it has no
    name.
    """
    if option is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
    if not names:
        raise InputError(f"--tasks {option!r}: names no task; leave it out for the main one")
    return names
