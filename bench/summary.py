"""python -m bench.summary FOLDER: summarize what bench/gpu.sh found, short enough for the end of a log.

Reads FOLDER/tests.txt, FOLDER/safety.txt and the records in FOLDER/records or --records; reports a missing part in one
line.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import ledger
from bench.cases import head_cases
from bench.ledger import Record
from bench.step_cases import step_cases
from bench.verdicts import MISSING, by_peer, gpu_verdicts
from bench.word_report import job_verdict

PEERS = (
    "eager", "eager_graph", "ours", "ours_graph", "heads_module", "gemms", "liger", "cut_cross_entropy",
    "ours_no_bias", "compiled",
)  # fmt: skip
PEAKS = ("ours", "eager", "liger")
STEPS = (
    "eager multi", "compiled multi", "ours multi", "ours multi, graph", "ours single, graph", "after switch, graph",
    "stl, graph",
)  # fmt: skip
MOST_FAILURES, MOST_COLUMNS = 25, 170
REASON = "because "  # begins a line by which a test on the GPU tells at once why it has failed


def summary(folder: Path, found: Sequence[Record]) -> str:
    """Return the whole summary as text."""
    parts = [
        ("tests on the GPU", tests(folder / "tests.txt")),
        ("memory safety", safety(folder / "safety.txt")),
        ("heads, forward and backward, µs", heads(found)),
        ("training steps, µs", steps(found)),
        ("required", required(found)),
        ("whole jobs", jobs(found)),
        ("bags of words", bags(found)),
    ]
    return "\n".join(line for title, lines in parts for line in (f"--- {title}", *lines, ""))


def tests(path: Path) -> list[str]:
    """Return pytest's last line, and each failure with the first line of its error."""
    lines = _lines(path)
    counted = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    failures = [line[:MOST_COLUMNS] for line in lines if re.match(r"(FAILED|ERROR) .*::", line)]
    if not counted:  # stopped or killed: use what was printed before
        failed = [line for line in lines if re.search(r" (FAILED|ERROR)\b", line)]
        reasons = [line for line in lines if line.startswith(REASON)]
        failures = [line[:MOST_COLUMNS] for line in reasons or failed]
        counted = (
            [f"not finished; {sum(' PASSED' in line for line in lines)} passed until then"] if lines else []
        )
    left = len(failures) - MOST_FAILURES
    more = [f"and {left} more"] if left > 0 else []
    return [*(counted[-1:] or ["no result"]), *failures[:MOST_FAILURES], *more]


def safety(path: Path) -> list[str]:
    """Return the final output of bench.memory_safety and compute-sanitizer."""
    wanted = re.compile(r"failed: |ok$|ERROR SUMMARY|Invalid|no compute-sanitizer|time limit")
    return [line[:MOST_COLUMNS] for line in _lines(path) if wanted.search(line)][-8:] or ["no result"]


def heads(found: Sequence[Record]) -> list[str]:
    """Return one row per case: median µs of each peer, and the peak memory of some."""
    rows = []
    for case in head_cases("cuda"):
        records = by_peer(found, "heads", case.name, "forward+backward")
        if records:
            times = [_number(records.get(peer)) for peer in PEERS]
            rows.append([case.name, *times, *(_peak(records.get(peer)) for peer in PEAKS)])
    return _table(["case", *PEERS, *(f"{peer} MB" for peer in PEAKS)], rows)


def steps(found: Sequence[Record]) -> list[str]:
    """Return one row per model: median µs of each step."""
    rows = []
    for case in step_cases("cuda"):
        records = by_peer(found, "step", case.name, "step")
        if records:
            rows.append([case.name, *(_number(records.get(step)) for step in STEPS)])
    return _table(["model", *STEPS], rows)


def required(found: Sequence[Record]) -> list[str]:
    """Say how many requirements are met, and list those that are missed; what was not measured is left out."""
    verdicts = [verdict for verdict in gpu_verdicts(found) if verdict.met != MISSING]
    missed = [verdict for verdict in verdicts if verdict.met != "met"]
    return [
        f"{len(verdicts) - len(missed)} met, {len(missed)} missed",
        *(f"{v.case.split(':')[0]}: {v.required}, measured {v.measured}"[:MOST_COLUMNS] for v in missed),
    ]


def jobs(found: Sequence[Record]) -> list[str]:
    """Return one line per job: its rate, the time of the whole call, its quality, and what took the steps."""
    lines = []
    for r in found:
        if r["suite"] != "jobs":
            continue
        line = f"{r['case']} ({r['shape']}), {r['peer']}: {r['value']:,.0f} {r['unit']}, call {r['call_seconds']:.2f} s"
        if r.get("quality") is not None:
            line += f", quality {r['quality']:.4f}"
        lines.append(f"{line} ({verdict})" if (verdict := job_verdict(r)) else line)
        lines += [
            f"  {len(phase['active'])} tasks: {phase.get('engine')}, {phase.get('step_ms_median')} ms, "
            f"graph: {phase.get('graph')}"[:MOST_COLUMNS]
            for phase in r.get("phases", ())
        ]
    return lines or ["no result"]


def bags(found: Sequence[Record]) -> list[str]:
    """Return one line per pass or update: its rate, or its time over that of copying its bytes."""
    lines = []
    for r in found:
        if r["suite"] != "bags" or r["device"]["kind"] != "cuda":
            continue
        rate = f", {r['tokens_per_second'] / 1e6:,.0f} million tokens/s" if "tokens_per_second" in r else ""
        ratio = f", {r['ratio']['of']} {r['ratio']['of_medians']:.2f}" if r["ratio"] else ""
        lines.append(f"{r['case']}, {r['peer']}: {r['p50']:,.0f} µs{rate}{ratio}")
    return lines or ["no result"]


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []


def _number(record: Record | None) -> str:
    return (
        "-" if record is None else f"{record['p50']:,.0f}" if record["p50"] >= 100 else f"{record['p50']:.1f}"
    )


def _peak(record: Record | None) -> str:
    return f"{record['peak_extra_bytes'] / 1e6:,.1f}" if record and "peak_extra_bytes" in record else "-"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return columns of equal width; one line if there are no rows."""
    if not rows:
        return ["no result"]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (heading, *rows)
    ]


def main() -> int:
    """Print the summary."""
    parser = argparse.ArgumentParser(prog="bench.summary", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=Path, help="folder with the records; FOLDER/records by default")
    parser.add_argument("--since", default="", help="use records from this date on, as in 2026-11-27T00:00")
    arguments = parser.parse_args()
    made = ledger.read(arguments.records or arguments.folder / "records")
    made = [
        record for record in made if record["device"]["kind"] == "cuda" and record["date"] >= arguments.since
    ]
    print(summary(arguments.folder, ledger.latest(made)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
