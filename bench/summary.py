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
from bench.ledger import Record
from bench.report import gpu_step_table, heads_table
from bench.verdicts import MISSING, gpu_verdicts
from bench.word_report import gpu_word_section, job_section

MOST_FAILURES, MOST_COLUMNS = 25, 170
REASON = "because "  # begins a line by which a test on the GPU tells at once why it has failed


def summary(folder: Path, found: Sequence[Record]) -> str:
    """Return the whole summary as text."""
    parts = [
        ("tests on the GPU", tests(folder / "tests.txt")),
        ("memory safety", safety(folder / "safety.txt")),
        *(measured(found) if found else [("measurements", ["no result"])]),
    ]
    return "\n".join(line for title, lines in parts for line in (f"--- {title}", *lines, ""))


def measured(found: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return titles and lines: the tables of bench/RESULTS.md that say most, and what is missed."""
    return [
        ("heads, forward and backward, µs", heads_table(found, "forward+backward", "cuda")),
        ("training steps, µs", gpu_step_table(found)),
        ("required", required(found)),
        ("whole jobs", job_section(found)),
        ("bags of words", gpu_word_section(found)),
    ]


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


def required(found: Sequence[Record]) -> list[str]:
    """Say how many requirements are met, and list those that are missed; what was not measured is left out."""
    verdicts = [verdict for verdict in gpu_verdicts(found) if verdict.met != MISSING]
    missed = [verdict for verdict in verdicts if verdict.met != "met"]
    return [
        f"{len(verdicts) - len(missed)} met, {len(missed)} missed",
        *(f"{v.case.split(':')[0]}: {v.required}, measured {v.measured}"[:MOST_COLUMNS] for v in missed),
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []


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
