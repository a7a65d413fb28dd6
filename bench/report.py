"""python -m bench.report: writes bench/RESULTS.md and bench/heads.png from the latest records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from bench import ledger
from bench.cases import HEAD_CASES, Direction, HeadCase
from bench.environment import ROOT
from bench.ledger import Record
from bench.load import DISTURBED_SHARE
from bench.picture import draw
from bench.step_cases import STEP_CASES, SWITCHED_LIMIT

RESULTS = ROOT / "bench" / "RESULTS.md"
PICTURE = ROOT / "bench" / "heads.png"
PEERS = ("eager", "compiled", "linear_cross_entropy", "ours", "heads_module", "gemms")
MISSING = "not yet measured"
INTRODUCTION = """# Results

Made by `python -m bench.report` from `bench/records/`; nothing here is estimated. Times are medians in
microseconds over interleaved rounds, ratios are of medians, with the quartiles of the rounds' ratios in
brackets. A case is measured only after its results have passed the accuracy rule (`bench/accuracy.py`).
"Disturbed" says what share of the processors other processes used meanwhile: such a row is not to be quoted.

`ours` is the fused op on packed parameters; `heads_module` is `MultiTaskHeads`, which packs one `nn.Linear`
a task in every step; `gemms` are the bare GEMMs, the floor.
"""


def main() -> None:
    """Write bench/RESULTS.md and bench/heads.png."""
    found = ledger.latest(ledger.read())
    if not found:
        typer.echo("there are no records in bench/records; run python -m bench.measure all", err=True)
        raise typer.Exit(2)
    RESULTS.write_text(render(found), encoding="utf-8")
    typer.echo(f"wrote {RESULTS.relative_to(ROOT)}")
    if _draw_heads(found, PICTURE):
        typer.echo(f"wrote {PICTURE.relative_to(ROOT)}")


def render(found: Sequence[Record]) -> str:
    """The whole report as Markdown."""
    parts = [INTRODUCTION]
    for title, kind in (("On a CPU", "cpu"), ("On a GPU", "cuda")):
        parts.append(f"## {title}\n")
        here = [record for record in found if record["device"]["kind"] == kind]
        # No device, no sections: the tables still stand, and say so.
        for device in _devices(here) or [None]:
            parts.append(_device_section([r for r in here if _device(r) == device], device, kind))
    return "\n".join(parts)


def _device(record: Record) -> str:
    device = record["device"]
    return f"{device['name']}, {device['threads']} threads"


def _devices(found: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(map(_device, found)))


def _device_section(found: Sequence[Record], device: str | None, kind: str) -> str:
    lines = [] if device is None else [f"### {device}\n", _provenance(found), ""]
    if kind == "cpu" and any(record["suite"] == "heads" for record in found):
        lines += [f"![time by case and peer]({PICTURE.name})", ""]
    lines += ["**Heads, forward and backward**", "", *_heads_table(found, "forward+backward", kind), ""]
    lines += ["**Heads, forward**", "", *_heads_table(found, "forward", kind), ""]
    lines += ["**Training step**", "", *_step_table(found), ""]
    if kind == "cpu":
        lines += ["Reproduce: `python -m bench.measure all`, then `python -m bench.report`.", ""]
    return "\n".join(lines)


def _provenance(found: Sequence[Record]) -> str:
    """Versions and commits; more than one where the records are not of one measurement."""
    versions = _distinct(
        ", ".join(f"{name} {number}" for name, number in record["versions"].items() if number)
        for record in found
    )
    commits = _distinct(
        f"{(record['commit'] or 'unknown')[:10]}{' with changes' if record['dirty'] else ''} "
        f"({record['date'][:10]})"
        for record in found
    )
    return f"Versions: {'; '.join(versions)}. Commit: {'; '.join(commits)}."


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


# --- tables ----------------------------------------------------------------------------------------------


def _heads_table(found: Sequence[Record], direction: Direction, kind: str) -> list[str]:
    # The floors are required of a CPU, and of forward and backward together.
    has_floor = kind == "cpu" and direction == "forward+backward"
    heading = ["case", *PEERS, "eager / ours", *(["required"] if has_floor else []), "rounds"]
    rows = []
    for case in HEAD_CASES:
        by_peer = _by_peer(found, "heads", case.name, direction)
        rows.append(
            [
                f"{case.name}: {case.shape}",
                *(_time(by_peer.get(peer)) for peer in PEERS),
                _ratio(by_peer.get("ours")),
                *([_required(case, by_peer.get("ours"))] if has_floor else []),
                _rounds(by_peer),
            ]
        )
    return _table(heading, rows)


def _required(case: HeadCase, ours: Record | None) -> str:
    if case.floor is None:
        return "none"
    if ours is None or ours["ratio"] is None:
        return f"{case.floor:g}"
    return f"{case.floor:g}, {_verdict(ours, ours['ratio']['of_medians'] >= case.floor)}"


def _verdict(record: Record, met: bool) -> str:
    """A disturbed measurement decides nothing."""
    if _is_disturbed(record):
        return "undecided (disturbed)"
    return "met" if met else "missed"


def _is_disturbed(record: Record) -> bool:
    return (record["others_cpu_share"] or 0.0) > DISTURBED_SHARE


def _step_table(found: Sequence[Record]) -> list[str]:
    heading = [
        "model", "ours multi", "ours single", "multi / single", "eager multi", "eager single",
        "multi / single", "after switch / stl", f"required ≤ {SWITCHED_LIMIT:g}", "rounds",
    ]  # fmt: skip
    rows = []
    for case in STEP_CASES:
        by_peer = _by_peer(found, "step", case.name, "step")
        shape = next((f": {record['shape']}" for record in by_peer.values()), "")
        after = by_peer.get("after switch")
        rows.append(
            [
                case.name + shape,
                _time(by_peer.get("ours multi")),
                _time(by_peer.get("ours single")),
                _ratio(by_peer.get("ours multi")),
                _time(by_peer.get("eager multi")),
                _time(by_peer.get("eager single")),
                _ratio(by_peer.get("eager multi")),
                _ratio(after, digits=3),
                MISSING if after is None else _verdict(after, after["ratio"]["of_medians"] <= SWITCHED_LIMIT),
                _rounds(by_peer),
            ]
        )
    return _table(heading, rows)


def _by_peer(found: Sequence[Record], suite: str, case: str, direction: str) -> dict[str, Record]:
    wanted = (suite, case, direction)
    return {r["peer"]: r for r in found if (r["suite"], r["case"], r["direction"]) == wanted}


def _time(record: Record | None) -> str:
    return MISSING if record is None else f"{record['p50']:,.0f}"


def _ratio(record: Record | None, digits: int = 2) -> str:
    if record is None or record["ratio"] is None:
        return MISSING
    ratio = record["ratio"]
    return f"{ratio['of_medians']:.{digits}f} [{ratio['p25']:.{digits}f} to {ratio['p75']:.{digits}f}]"


def _rounds(by_peer: dict[str, Record]) -> str:
    return ", ".join(_distinct(map(_rounds_of, by_peer.values()))) or MISSING


def _rounds_of(record: Record) -> str:
    note = f", disturbed by {record['others_cpu_share']:.0%}" if _is_disturbed(record) else ""
    return f"{record['rounds']}{note}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]


def _draw_heads(found: Sequence[Record], path: Path) -> bool:
    """Draw the newest CPU; False where none has been measured."""
    on_cpu = [r for r in found if r["device"]["kind"] == "cpu" and r["suite"] == "heads"]
    if not on_cpu:
        return False
    device = _device(max(on_cpu, key=lambda record: record["date"]))
    here = [record for record in on_cpu if _device(record) == device]
    medians_us = {
        f"{case.name}\n{case.shape}": {peer: record["p50"] for peer, record in by_peer.items()}
        for case in HEAD_CASES
        if (by_peer := _by_peer(here, "heads", case.name, "forward+backward"))
    }
    if not medians_us:
        return False
    draw(medians_us, f"All heads, forward and backward, in float32 on {device}", path)
    return True


if __name__ == "__main__":
    typer.run(main)
