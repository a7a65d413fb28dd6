"""Numbers and engines as reports show them."""

from __future__ import annotations

from typing import Any


def shown(value: float | None, digits: int = 4) -> str:
    """A number for people, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def engine_of(phase: dict[str, Any]) -> str:
    """What took a phase's steps, and why the ones before it in the order did not."""
    passed_over = "; ".join(f"not {name}: {reason}" for name, reason in phase["passed_over"].items())
    return f"{phase['engine']} ({passed_over})" if passed_over else str(phase["engine"])
