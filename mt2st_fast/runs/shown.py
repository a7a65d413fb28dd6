"""Numbers and engines as reports show them."""

from __future__ import annotations

from typing import Any


def shown(value: float | None, digits: int = 4) -> str:
    """A number for people, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """A positive number of any size: whole from 100 on, else three digits of it."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def option(value: Any) -> str:
    """An option's value for people: what is not set is a dash, and several are a list."""
    if value is None or (isinstance(value, tuple | list | dict) and not value):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {option(each)}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(option, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def engine_of(phase: dict[str, Any]) -> str:
    """What took a phase's steps, and why the ones before it in the order did not."""
    passed_over = "; ".join(f"not {name}: {reason}" for name, reason in phase["passed_over"].items())
    return f"{phase['engine']} ({passed_over})" if passed_over else str(phase["engine"])


def change(share: float | None) -> str:
    """A change as people say it: 60 % less is -60 %."""
    return "–" if share is None else f"{round(100 * share):+d} %"


def points(quality: float | None) -> str:
    """A difference in quality in points, hundredths of it."""
    return "–" if quality is None else f"{100 * quality:+.2f} points"
