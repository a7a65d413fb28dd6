"""The tasks that an option names."""

from __future__ import annotations

from mt2st_fast.errors import InputError


def tasks_named(option: str | None) -> tuple[str, ...]:
    """Names between commas, each once; none where the option is not given. Raises InputError where it names none."""
    if option is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
    if not names:
        raise InputError(f"--tasks {option!r}: names no task; leave it out for the main one")
    return names
