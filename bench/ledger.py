"""The measurements on file: one JSON object per line, appended and never overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.environment import ROOT
from bench.interleaved import Ratio, Timings

Record = dict[str, Any]
FOLDER = ROOT / "bench" / "records"


def make_record(
    environment: Record,
    suite: str,
    case: str,
    shape: str,
    peer: str,
    direction: str,
    timings: Timings,
    ratio_name: str | None = None,
    ratio: Ratio | None = None,
    **more: Any,
) -> Record:
    """Return the record of a measurement.

    ratio_name: what is divided by what, as in "eager / ours". more: fields of the suite's own.
    """
    return {
        "suite": suite,
        "case": case,
        "shape": shape,
        "peer": peer,
        "direction": direction,
        "unit": "microseconds",
        "rounds": timings.rounds,
        "others_cpu_share": timings.others_cpu_share,
        "round_trip_ns": timings.round_trip_ns,
        "rounds_left_out": timings.left_out,
        **timings.percentiles_us(peer),
        "ratio": None if ratio is None else {"of": ratio_name, **_rounded(ratio)},
        **more,
        **environment,
    }


def make_value(
    environment: Record, suite: str, case: str, shape: str, peer: str, unit: str, value: float
) -> Record:
    """Return the record of a number other than a time: a bandwidth, a memory peak."""
    return {
        "suite": suite,
        "case": case,
        "shape": shape,
        "peer": peer,
        "direction": unit,
        "unit": unit,
        "value": value,
        "others_cpu_share": None,
        **environment,
    }


def _rounded(ratio: Ratio) -> dict[str, float]:
    return {name: round(value, 4) for name, value in ratio._asdict().items()}


def ratio_text(record: Record, digits: int = 2) -> str:
    """Format the ratio of a record, with the quartiles of the rounds' ratios; "" if it has none."""
    ratio = record["ratio"]
    if ratio is None:
        return ""
    return f"{ratio['of_medians']:.{digits}f} [{ratio['p25']:.{digits}f} to {ratio['p75']:.{digits}f}]"


def append(records: Iterable[Record], folder: Path = FOLDER) -> None:
    """Append records to the file of their kind of device."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        with (folder / f"{record['device']['kind']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(folder: Path = FOLDER) -> list[Record]:
    """Return all records, oldest first."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return sorted(map(json.loads, lines), key=lambda record: record["date"])


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each suite, case, peer, direction and device."""
    newest: dict[tuple[object, ...], Record] = {}
    for record in records:
        device = record["device"]
        key = (
            record["suite"], record["case"], record["peer"], record["direction"],
            device["kind"], device["name"], device["threads"],
        )  # fmt: skip
        newest[key] = record
    return list(newest.values())
