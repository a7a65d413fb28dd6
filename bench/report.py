"""python -m bench.report: write bench/RESULTS.md, its plots and the tables of pages from the latest records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import typer

from bench import ledger
from bench.cases import DeviceKind, Direction, HeadCase, head_cases
from bench.environment import ROOT
from bench.ledger import Record
from bench.markdown import table
from bench.pages import PAGES
from bench.pages import written as with_tables
from bench.picture import draw, draw_scaling
from bench.scaling import AXES, PEERS, points
from bench.step_cases import STEP_CASES, SWITCHED_LIMIT, TAGGER, step_cases
from bench.verdicts import MISSING, Verdict, by_peer, cpu_verdicts, decided, gpu_verdicts, is_disturbed
from bench.word_report import gpu_word_section, job_section, word_sections

RESULTS = ROOT / "bench" / "RESULTS.md"
HEADS_PICTURE = {"cpu": ROOT / "bench" / "heads.png", "cuda": ROOT / "bench" / "heads_cuda.png"}
SCALING_PICTURE = {"cpu": ROOT / "bench" / "scaling_cpu.png", "cuda": ROOT / "bench" / "scaling_cuda.png"}
PICTURED = ("heads", "scaling")  # suites
PEERS_OF = {
    "cpu": ("eager", "compiled", "linear_cross_entropy", "ours", "heads_module", "gemms"),
    "cuda": (
        "eager", "compiled", "linear_cross_entropy", "liger", "cut_cross_entropy", "eager_graph",
        "ours", "ours_graph", "ours_no_bias", "heads_module", "gemms",
    ),
}  # fmt: skip
SKIPPED = "–"
REPRODUCE = {
    "cpu": "`python -m bench.measure all`, `python -m bench.bags --polarity DIR`, "
    "`python -m bench.words --treebank FILE`",
    "cuda": "`bench/gpu.sh`, `python -m bench.measure scaling --device cuda`",
}
INTRODUCTION = """# Results

Made by `python -m bench.report` from `bench/records/`; nothing here is estimated. Times are medians in
microseconds over interleaved rounds, ratios are of medians, with the quartiles of the rounds' ratios in
brackets. A case is measured only after its results have passed the accuracy rule (`bench/accuracy.py`).
"Disturbed" says what share of the processors other processes used meanwhile: such a row is not to be quoted.

`ours` is the fused op on packed parameters; `heads_module` is `MultiTaskHeads`, as a model has it; `ours_no_bias`
is `ours` on heads without a bias, for cut-cross-entropy 25.1.1, which takes none; `gemms` are torch's matrix products
alone, not padded, so that ours may be faster than these; `–` is a peer that was not measured there. Ours are held to
the accuracy rule, a peer to a looser one of its own, which its record names: Liger-Kernel's total in bfloat16 is off by
2.6e-5 to 7.6e-5. Memory is the peak of one call, forward and backward, beside inputs and gradients (`bench/memory.py`
says how it is taken). Until 2026-11-28 the dense and compiled peers of the tagger's step ran this package's encoder
under separate heads (now torch's own layers), and `heads_module` packed one `nn.Linear` per task in every step.
"""


def main() -> None:
    """Write bench/RESULTS.md, the plots, and the tables of the README and of docs/claims.md."""
    found = ledger.latest(ledger.read())
    if not found:
        typer.echo("there are no records in bench/records; run python -m bench.measure all", err=True)
        raise typer.Exit(2)
    kinds: tuple[DeviceKind, ...] = ("cpu", "cuda")
    drawn = [path for kind in kinds for path in _draw(found, kind)]
    RESULTS.write_text(render(found), encoding="utf-8")
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8"), found), encoding="utf-8")
    for path in (RESULTS, *PAGES, *drawn):
        typer.echo(f"wrote {path.relative_to(ROOT)}")


def render(found: Sequence[Record]) -> str:
    """The whole report as Markdown."""
    parts = [INTRODUCTION]
    kinds: tuple[tuple[str, DeviceKind], ...] = (("On a CPU", "cpu"), ("On a GPU", "cuda"))
    for title, kind in kinds:
        parts.append(f"## {title}\n")
        here = [record for record in found if record["device"]["kind"] == kind]
        # Without a device there are no sections, but the tables remain and say so.
        for device in _devices(here) or [None]:
            of_device = [r for r in here if _device(r) == device]
            pictured = {
                suite for suite in PICTURED if device is not None and _pictured(here, suite) == device
            }
            parts.append(_device_section(of_device, device, kind, pictured))
    return "\n".join(parts)


def _device(record: Record) -> str:
    device = record["device"]
    return (
        str(device["name"]) if device["kind"] == "cuda" else f"{device['name']}, {device['threads']} threads"
    )


def _devices(found: Iterable[Record]) -> list[str]:
    """Return the devices by their latest records, the newest first."""
    newest_first = sorted(found, key=lambda record: record["date"], reverse=True)
    return list(dict.fromkeys(map(_device, newest_first)))


def _pictured(found: Iterable[Record], suite: str) -> str | None:
    """Return the device shown in a suite's picture, that of its newest record; None without a record."""
    return next(iter(_devices(r for r in found if r["suite"] == suite)), None)


def _device_section(
    found: Sequence[Record], device: str | None, kind: DeviceKind, pictured: Collection[str]
) -> str:
    lines = [] if device is None else [f"### {device}\n", _provenance(found), ""]
    if "heads" in pictured:
        lines += [f"![time by case and peer]({HEADS_PICTURE[kind].name})", ""]
    verdicts = cpu_verdicts(found) if kind == "cpu" else gpu_verdicts(found)
    lines += ["**Required**", "", *_verdict_table(verdicts), ""]
    lines += ["**Ceilings of the device**", "", *_floors_table(found), ""]
    lines += ["**Heads, forward and backward**", "", *_heads_table(found, "forward+backward", kind), ""]
    if kind == "cpu":
        lines += ["**Heads, forward**", "", *_heads_table(found, "forward", kind), ""]
        lines += ["**Training step**", "", *_step_table(found), ""]
        lines += ["**Held-out rows, all tasks**", "", *_held_out_table(found), ""]
        lines += word_sections(found)
    else:
        lines += ["**Heads, device time with a cold cache, µs**", "", *_cold_table(found), ""]
        lines += ["**Heads, peak memory, MB**", "", *_peak_table(found), ""]
        lines += ["**Training step**", "", *_gpu_step_table(found), ""]
        lines += ["**Whole jobs**", "", *job_section(found), ""]
        lines += gpu_word_section(found)
    lines += ["**Scaling: time in µs, peak memory in MB**", ""]
    if "scaling" in pictured:
        lines += [f"![time and memory against S, K and N]({SCALING_PICTURE[kind].name})", ""]
    lines += [*_scaling_table(found, kind), ""]
    command = REPRODUCE[kind]
    lines += [f"Reproduce: {command}, then `python -m bench.report`.", ""]
    return "\n".join(lines)


def _provenance(found: Sequence[Record]) -> str:
    """Return versions and commits; several if the records are from different measurements."""
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


def _verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a table with missed requirements first; one line below lists what has not been measured."""
    order = {"missed": 0, "met": 2}
    measured = sorted((v for v in verdicts if v.measured != MISSING), key=lambda v: order.get(v.met, 1))
    left = [f"{v.case.split(':')[0]}, {v.required}" for v in verdicts if v.measured == MISSING]
    lines = table(["case", "required", "measured", ""], measured, words=4) if measured else []
    return lines + ([*([""] if lines else []), f"{MISSING.capitalize()}: {'; '.join(left)}."] if left else [])


def _floors_table(found: Sequence[Record]) -> list[str]:
    rows = [
        [record["case"], f"{record['value'] / 1e12:,.2f} T{record['unit']}"]
        for record in found
        if record["suite"] == "floors"
    ]
    return _table(["", "measured"], rows or [["copy", MISSING], ["GEMM", MISSING]])


def _heads_table(found: Sequence[Record], direction: Direction, kind: DeviceKind) -> list[str]:
    # The floors of single cases are required on a CPU only, for forward and backward together.
    has_floor = kind == "cpu" and direction == "forward+backward"
    peers = PEERS_OF[kind]
    heading = ["case", *peers, "eager / ours", *(["required"] if has_floor else []), "rounds"]
    rows = []
    for case in head_cases(kind):
        records = by_peer(found, "heads", case.name, direction)
        rows.append(
            [
                f"{case.name}: {case.shape}",
                *(_time(records, peer) for peer in peers),
                _ratio(records.get("ours")),
                *([_required(case, records.get("ours"))] if has_floor else []),
                _rounds(records),
            ]
        )
    return _table(heading, rows)


def _required(case: HeadCase, ours: Record | None) -> str:
    if case.floor is None:
        return "none"
    if ours is None or ours["ratio"] is None:
        return f"{case.floor:g}"
    return f"{case.floor:g}, {decided(ours['ratio']['of_medians'] >= case.floor, [ours])}"


def _cold_table(found: Sequence[Record]) -> list[str]:
    return _gpu_values(found, "cold_us", 1.0)


def _peak_table(found: Sequence[Record]) -> list[str]:
    return _gpu_values(found, "peak_extra_bytes", 1e6)


def _gpu_values(found: Sequence[Record], field: str, unit: float) -> list[str]:
    rows = []
    for case in head_cases("cuda"):
        records = by_peer(found, "heads", case.name, "forward+backward")
        values = [_value(records, peer, field, unit) for peer in PEERS_OF["cuda"]]
        rows.append([f"{case.name}: {case.shape}", *values])
    return _table(["case", *PEERS_OF["cuda"]], rows)


def _step_table(found: Sequence[Record]) -> list[str]:
    peers = ("eager multi", "eager multi, row-sparse", "compiled multi")
    heading = [
        "model", "ours multi", *(f"{peer} / ours" for peer in peers), "ours / gemms", "ours multi / single",
        "eager single / ours single", "after switch / stl", f"required ≤ {SWITCHED_LIMIT:g}", "rounds",
    ]  # fmt: skip
    rows = []
    for case in STEP_CASES:
        records = by_peer(found, "step", case.name, "step")
        shape = next((f": {record['shape']}" for record in records.values()), "")
        after = records.get("after switch")
        rows.append(
            [
                case.name + shape,
                _time(records, "ours multi"),
                *(_ratio(records.get(peer)) for peer in peers),
                _ratio(records.get("gemms")),
                _ratio(records.get("ours multi")),
                _ratio(records.get("eager single")),
                _ratio(after, digits=3),
                MISSING
                if after is None
                else decided(after["ratio"]["of_medians"] <= SWITCHED_LIMIT, [after]),
                _rounds(records),
            ]
        )
    return _table(heading, rows)


def _held_out_table(found: Sequence[Record]) -> list[str]:
    records = by_peer(found, "step", TAGGER, "held out")
    shape = next((f": {record['shape']}" for record in records.values()), "")
    row = [TAGGER + shape, _time(records, "ours"), _ratio(records.get("eager")), _rounds(records)]
    return _table(["model", "ours", "eager / ours", "rounds"], [row])


def _gpu_step_table(found: Sequence[Record]) -> list[str]:
    steps = (
        "eager multi", "compiled multi", "ours multi", "ours multi, graph", "eager single", "ours single",
        "ours single, graph", "after switch", "stl", "after switch, graph", "stl, graph",
    )  # fmt: skip
    rows = []
    for case in step_cases("cuda"):
        records = by_peer(found, "step", case.name, "step")
        rows.append([case.name, *(_time(records, step) for step in steps), _rounds(records)])
    return _table(["model", *steps, "rounds"], rows)


def _scaling_table(found: Sequence[Record], kind: DeviceKind) -> list[str]:
    peers = PEERS[kind]
    heading = ["case", *peers, *(f"{peer}, MB" for peer in peers if peer != "gemms"), "rounds"]
    rows = []
    for point in points(kind):
        records = by_peer(found, "scaling", point.case.name, "forward+backward")
        rows.append(
            [
                f"{point.case.name}: {point.case.shape}",
                *(_time(records, peer) for peer in peers),
                *(_value(records, peer, "peak_extra_bytes", 1e6) for peer in peers if peer != "gemms"),
                _rounds(records),
            ]
        )
    return _table(heading, rows)


def _time(records: dict[str, Record], peer: str) -> str:
    return _value(records, peer, "p50", 1.0)


def _value(records: dict[str, Record], peer: str, field: str, unit: float) -> str:
    """Return a number, or a dash for a case that was measured without this peer."""
    if peer not in records or field not in records[peer]:
        return SKIPPED if records else MISSING
    value = records[peer][field] / unit
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _ratio(record: Record | None, digits: int = 2) -> str:
    if record is None or record["ratio"] is None:
        return MISSING
    ratio = record["ratio"]
    return f"{ratio['of_medians']:.{digits}f} [{ratio['p25']:.{digits}f} to {ratio['p75']:.{digits}f}]"


def _rounds(records: dict[str, Record]) -> str:
    return ", ".join(_distinct(map(_rounds_of, records.values()))) or MISSING


def _rounds_of(record: Record) -> str:
    note = f", disturbed by {record['others_cpu_share']:.0%}" if is_disturbed(record) else ""
    return f"{record['rounds']}{note}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; one line below lists what has not been measured at all."""
    required = heading.index("required") if "required" in heading else None
    measured = [
        row
        for row in rows
        if any(cell != MISSING for column, cell in enumerate(row) if column not in (0, required))
    ]
    names = [row[0].split(":")[0] for row in rows if row not in measured]
    lines = table(heading, measured) if measured else []
    if names:
        lines += [*([""] if measured else []), f"{MISSING.capitalize()}: {'; '.join(names)}."]
    return lines


# --- plots -----------------------------------------------------------------------------------------------


def _draw(found: Sequence[Record], kind: DeviceKind) -> list[Path]:
    """Draw a suite's newest device of a kind; return the plots for which there are records."""
    on_kind = [r for r in found if r["device"]["kind"] == kind]
    drawn = []
    for suite, path, draw_suite in (
        ("heads", HEADS_PICTURE[kind], _draw_heads),
        ("scaling", SCALING_PICTURE[kind], _draw_scaling),
    ):
        device = _pictured(on_kind, suite)
        if device is not None:
            draw_suite(
                [r for r in on_kind if r["suite"] == suite and _device(r) == device], kind, device, path
            )
            drawn.append(path)
    return drawn


def _draw_heads(found: Sequence[Record], kind: DeviceKind, device: str, path: Path) -> None:
    medians_us = {
        f"{case.name}\n{case.shape}": {peer: record["p50"] for peer, record in records.items()}
        for case in head_cases(kind)
        if (records := by_peer(found, "heads", case.name, "forward+backward"))
    }
    draw(medians_us, f"All heads, forward and backward, on {device}", path)


def _draw_scaling(found: Sequence[Record], kind: DeviceKind, device: str, path: Path) -> None:
    """Draw {axis: {field: {peer: [(value, number)]}}} in the panels of one picture."""
    sweeps: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {
        axis: {"p50": {}, "peak_extra_bytes": {}} for axis in AXES
    }
    for point in points(kind):
        for peer, record in by_peer(found, "scaling", point.case.name, "forward+backward").items():
            for field, of_peer in sweeps[point.axis].items():
                if field in record:
                    of_peer.setdefault(peer, []).append((point.value, record[field]))
    draw_scaling(sweeps, f"Forward and backward on {device}", path)


if __name__ == "__main__":
    typer.run(main)
