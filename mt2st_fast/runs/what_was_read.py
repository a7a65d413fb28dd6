"""The section "What was read" in every report: files, rows, columns, labels, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mt2st_fast.data import Splits
from mt2st_fast.data.record import labels_read
from mt2st_fast.runs.markdown import markdown_table, one_line
from mt2st_fast.spelling import listed

TITLE = "What was read"
MOST_FILES_NAMED = 3
_OF_PARTS = ("dev", "test", "dev and test")  # keys of `understood` about parts without a file

# Columns (right-aligned where a name ends in ":"), and rows.
Tabled = tuple[Sequence[str], Sequence[Sequence[object]]]


def what_was_read(splits: Splits) -> dict[str, Any]:
    """Return what a report keeps about the data, as JSON-able values."""
    record = splits.record
    return {
        "name": splits.name,
        "rows": {part: corpus.n_rows for part, corpus in splits.parts.items()},
        "tokens": {part: len(corpus.tokens) for part, corpus in splits.parts.items()},
        "vocabulary": len(splits.vocabulary),
        "files": [asdict(file) for file in record.files],
        "columns": [asdict(column) for column in record.columns],
        "understood": dict(record.understood),
        "labels": labels_read(splits),
        "notes": list(splits.notes),
    }


def tables_of(data: Mapping[str, Any]) -> list[Tabled]:
    """Return the tables of the section that have rows: files, parts, columns, labels."""
    files = [
        (f["path"], f["part"], f"{f['units']:,}", f"{f['rows']:,}", _left_out(f["left_out"]))
        for f in data["files"]
    ]
    parts = [(part, f"{n:,}", f"{data['tokens'][part]:,}") for part, n in data["rows"].items()]
    columns = [
        (c["name"], c["taken_as"], f"{c['values']:,}", f"{c['empty']:,}", f"{c['nan']:,}")
        for c in data["columns"]
    ]
    labels = [_labels(each) for each in data["labels"]]
    unit = "documents:" if data["columns"] else "sentences:"
    found: list[Tabled] = [
        (("file", "used as", unit, "rows:", "left out"), files),
        (("part", "rows:", "tokens:"), parts),
        (("column", "used as", "distinct values:", "empty cells:", "nan or NA:"), columns),
        (
            (
                "task",
                "classes",
                "labels in train:",
                "dev:",
                "test:",
                "of classes not seen in training, dev:",
                "test:",
            ),
            labels,
        ),
    ]
    return [table for table in found if table[1]]


def _left_out(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in counts.items()) or "nothing"


def _labels(labels: Mapping[str, Any]) -> Sequence[object]:
    names, size = labels["first_classes"], labels["classes"]
    more = f" and {size - len(names):,} more" if size > len(names) else ""
    classes = "numbers" if labels["kind"] == "values" else f"{size:,}: {', '.join(names)}{more}"
    counts = (*labels["labelled"].values(), *labels["unseen"].values())
    return (labels["task"], classes, *(f"{n:,}" for n in counts))


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """Return the lines of the section: what was understood, then the notes."""
    understood = [f"{what}: {how}" for what, how in data["understood"].items()]
    return [*(["; ".join(understood) + "."] if understood else []), *data["notes"]]


def section_on_data(data: Mapping[str, Any]) -> list[str]:
    """Return the section in Markdown."""
    lines = [f"## {TITLE}", ""]
    for columns, rows in tables_of(data):
        lines += [*markdown_table(columns, rows), ""]
    for line in lines_of(data):
        lines.append(f"- {one_line(line)}")
    return [*lines, ""]


def summary(data: Mapping[str, Any], parts: bool = True) -> str:
    """Return one line for a terminal: files, rows (by part, if parts matter), what was left out or understood."""
    files, rows = data["files"], data["rows"]
    left_out: Counter[str] = Counter()
    for file in files:
        left_out.update(file["left_out"])
    where = listed((file["path"] for file in files), MOST_FILES_NAMED) if files else data["name"]
    by_part = f" ({', '.join(f'{part} {n:,}' for part, n in rows.items())})" if parts else ""
    told = {what: how for what, how in data["understood"].items() if parts or what not in _OF_PARTS}
    understood = "".join(f"; {what}: {how}" for what, how in told.items())
    return f"read {where}: {sum(rows.values()):,} rows{by_part}; left out: {_left_out(left_out)}{understood}"
