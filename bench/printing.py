"""Turn timings into records and a printed table, for all suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.interleaved import Timings
from bench.ledger import Record, make_record, ratio_text
from bench.load import DISTURBED_SHARE


class Measured(NamedTuple):
    """What was measured: the fields that the records share."""

    environment: Record
    suite: str
    case: str
    shape: str
    direction: str


def record_and_print(
    console: Console,
    measured: Measured,
    timings: Timings,
    ratios: Mapping[str, tuple[str, str]],
    *,
    title: str | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    columns: Mapping[str, Callable[[Record], str]] | None = None,
) -> list[Record]:
    """Print one row per candidate and return its record.

    ratios: numerator and denominator by candidate. more: further fields of a candidate's record. columns: further
    columns to print from a record, by heading.
    """
    environment, suite, case, shape, direction = measured
    shown = columns or {}
    made = []
    table = Table(title=escape(f"{title or f'{case}: {shape}'}, {_rounds(timings)}"), title_justify="left")
    for heading in ("", "µs, median", "p25 to p75", "ratio", "of", *shown):
        table.add_column(heading, justify="left" if heading in ("", "of") else "right")
    for name in timings.rounds_us:
        ratio = timings.ratio(*ratios[name]) if name in ratios else None
        of = " / ".join(ratios[name]) if name in ratios else None
        record = make_record(
            environment, suite, case, shape, name, direction, timings, of, ratio, **(more or {}).get(name, {})
        )
        made.append(record)
        quartiles = f"{record['p25']:,.1f} to {record['p75']:,.1f}"
        cells = (name, f"{record['p50']:,.1f}", quartiles, ratio_text(record), of or "")
        table.add_row(*map(escape, cells), *(show(record) for show in shown.values()))
    console.print(table)
    warn_if_disturbed(console, timings.others_cpu_share)
    return made


def _rounds(timings: Timings) -> str:
    """Say how many rounds there were, and how far apart the cores."""
    left_out = f" ({timings.left_out} left out: other placements of the cores)" if timings.left_out else ""
    apart = f", cores {timings.round_trip_ns:.0f} ns apart" if timings.round_trip_ns else ""
    return f"{timings.rounds} rounds{left_out}{apart}"


def field(name: str, scale: float = 1.0, digits: int = 1) -> Callable[[Record], str]:
    """Return a column for a record's field, empty if it has none."""
    return lambda record: f"{record[name] * scale:,.{digits}f}" if name in record else ""


def warn_if_disturbed(console: Console, share: float | None) -> None:
    """Print one line if others used the processors meanwhile."""
    if (share or 0.0) > DISTURBED_SHARE:
        console.print(
            f"[yellow]disturbed: other processes used {share:.0%} of the processors; "
            "measure again on an idle machine[/yellow]"
        )
