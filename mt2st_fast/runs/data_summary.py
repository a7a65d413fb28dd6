"""The section "What was read" in every report: files, rows, columns, labels, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mt2st_fast.data import Splits
from mt2st_fast.data.record import LabelsRead, labels_read
from mt2st_fast.runs.run_schema import DataSummary
from mt2st_fast.runs.sections import Section, Table
from mt2st_fast.spelling import counted, listed

MOST_FILES_NAMED = 3
_OF_PARTS = ("dev", "test", "dev and test")  # keys of `understood` about parts without a file


def summarize_data(splits: Splits) -> DataSummary:
    """Return what a report keeps about the data, as JSON-able values."""
    record = splits.record
    return {
        "name": splits.name,
        "rows": {part: corpus.n_rows for part, corpus in splits.parts.items()},
        "tokens": {part: len(corpus.tokens) for part, corpus in splits.parts.items()},
        "vocabulary": len(splits.vocabulary),
        "files": [
            {
                "path": file.path,
                "part": file.part,
                "units": file.units,
                "rows": file.rows,
                "left_out": dict(file.left_out),
            }
            for file in record.files
        ],
        "columns": [
            {
                "name": column.name,
                "taken_as": column.taken_as,
                "values": column.values,
                "empty": column.empty,
                "nan": column.nan,
            }
            for column in record.columns
        ],
        "understood": dict(record.understood),
        "labels": labels_read(splits),
        "notes": list(splits.notes),
    }


def section_on_data(data: DataSummary) -> Section:
    """Return the section: what was understood, the notes, and tables of files, parts, columns and labels."""
    understood = "; ".join(f"{what}: {how}" for what, how in data["understood"].items())
    lines = [*([f"{understood}."] if understood else []), *data["notes"]]
    return Section("What was read", lines, [table for table in _tables(data) if table.rows])


def _tables(data: DataSummary) -> list[Table]:
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
    return [
        Table(("file", "used as", unit, "rows:", "left out"), files),
        Table(("part", "rows:", "tokens:"), parts),
        Table(("column", "used as", "distinct values:", "empty cells:", "nan or NA:"), columns),
        Table(
            (
                "task",
                "classes",
                "labels in train:",
                "in dev:",
                "in test:",
                "of classes unseen in training, in dev:",
                "of such, in test:",
            ),
            labels,
        ),
    ]


def _left_out(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in counts.items()) or "nothing"


def _labels(labels: LabelsRead) -> Sequence[object]:
    names, size = labels["first_classes"], labels["classes"]
    more = f" and {size - len(names):,} more" if size > len(names) else ""
    classes = "numbers" if labels["kind"] == "values" else f"{size:,}: {', '.join(names)}{more}"
    counts = (*labels["labelled"].values(), *labels["unseen"].values())
    return (labels["task"], classes, *(f"{n:,}" for n in counts))


def summary(data: DataSummary, parts: bool = True) -> str:
    """Return one line for a terminal: files, rows (by part, if parts matter), what was left out or understood."""
    files, rows = data["files"], data["rows"]
    left_out: Counter[str] = Counter()
    for file in files:
        left_out.update(file["left_out"])
    where = listed((file["path"] for file in files), MOST_FILES_NAMED) if files else data["name"]
    by_part = f" ({', '.join(f'{part} {n:,}' for part, n in rows.items())})" if parts else ""
    told = {what: how for what, how in data["understood"].items() if parts or what not in _OF_PARTS}
    understood = "".join(f"; {what}: {how}" for what, how in told.items())
    return f"read {where}: {counted(sum(rows.values()), 'row')}{by_part}; left out: {_left_out(left_out)}{understood}"
