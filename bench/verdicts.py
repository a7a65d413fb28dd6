"""Compare the records with the requirements; a missing record gives no verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.cases import (
    CPU_OF_GEMMS,
    CPU_OF_GEMMS_FROM_S,
    CPU_OVER_BEST,
    CPU_OVER_EAGER,
    EAGER_MORE_BYTES,
    GPU_HEAD_CASES,
    HEAD_CASES,
    MEMORY_CASE,
    HeadCase,
)
from bench.ledger import Record
from bench.load import DISTURBED_SHARE
from bench.step_cases import (
    CPU_STEP_OVER,
    GPU_STEP_CASES,
    GPU_STEP_OVER,
    MOST_OVER_GEMMS,
    STEP_CASES,
    SWITCHED_LIMIT,
    TAGGER,
    TREEBANK_TAGGER,
)

MISSING = "not yet measured"
CPU_PEERS = ("eager", "compiled", "linear_cross_entropy")
GPU_PEERS = (*CPU_PEERS, "liger", "cut_cross_entropy", "eager_graph")
ByPeer = Mapping[str, Record]


class Verdict(NamedTuple):
    """One requirement: the case, what is required, what was measured, and whether that meets it."""

    case: str
    required: str
    measured: str
    met: str

    @classmethod
    def of(cls, case: str, required: str, measured: str, met: bool, records: Iterable[Record]) -> Verdict:
        """Make a verdict; a disturbed measurement leaves it undecided."""
        return cls(case, required, measured, decided(met, records))

    @classmethod
    def missing(cls, case: str, required: str, why: str = MISSING) -> Verdict:
        """Make a verdict without a record."""
        return cls(case, required, MISSING, why)


def decided(met: bool, records: Iterable[Record]) -> str:
    """Say whether a requirement is met, from its records: a disturbed measurement leaves it undecided."""
    if any(is_disturbed(record) for record in records):
        return "undecided (disturbed)"
    return "met" if met else "missed"


def is_disturbed(record: Record) -> bool:
    """Whether other work used the processors meanwhile. GPU times hardly depend on that."""
    return record["device"]["kind"] == "cpu" and (record["others_cpu_share"] or 0.0) > DISTURBED_SHARE


def by_peer(found: Sequence[Record], suite: str, case: str, direction: str) -> dict[str, Record]:
    """Return the records of one case by peer."""
    wanted = (suite, case, direction)
    return {r["peer"]: r for r in found if (r["suite"], r["case"], r["direction"]) == wanted}


def fastest(records: ByPeer, names: Iterable[str]) -> Record | None:
    """Return the record of the fastest of these peers that were measured."""
    return min((records[name] for name in names if name in records), key=lambda r: r["p50"], default=None)


# --- CPU -------------------------------------------------------------------------------------------------


def cpu_verdicts(found: Sequence[Record]) -> list[Verdict]:
    """Return the verdicts for the CPU."""
    cases = {case: by_peer(found, "heads", case.name, "forward+backward") for case in HEAD_CASES}
    return [
        _geometric_mean("eager / ours", CPU_OVER_EAGER, cases, ("eager",)),
        _geometric_mean(f"best of {', '.join(CPU_PEERS)} / ours", CPU_OVER_BEST, cases, CPU_PEERS),
        _none_slower(cases),
        _near_gemms(cases),
        *(
            _ratio(f"{case.name}: {case.shape}", records, ("eager",), ("ours",), least, "eager / ours")
            for case, records in cases.items()
            if (least := case.required.over_eager) is not None
        ),
        *_memory(by_peer(found, "memory", MEMORY_CASE.name, "forward+backward")),
        *_tagger_step(by_peer(found, "step", TAGGER, "step")),
        *_after_switch(found, (case.name for case in STEP_CASES), ("after switch",)),
    ]


def _tagger_step(records: ByPeer) -> list[Verdict]:
    name, ours = f"{TAGGER}, one step", ("ours multi",)
    over = [
        _ratio(name, records, (peer,), ours, least, f"{peer} / ours") for peer, least in CPU_STEP_OVER.items()
    ]
    return [*over, _ratio(name, records, ("gemms",), ours, 1 / MOST_OVER_GEMMS, "gemms / ours")]


def _geometric_mean(
    name: str, floor: float, cases: Mapping[HeadCase, ByPeer], peers: tuple[str, ...]
) -> Verdict:
    title, required = f"geometric mean of {name}, {len(cases)} cases", f"≥ {floor:g}"
    if not all("ours" in records and set(peers) & set(records) for records in cases.values()):
        return Verdict.missing(title, required)
    ratios = [fastest(r, peers)["p50"] / r["ours"]["p50"] for r in cases.values()]  # type: ignore[index]
    mean = statistics.geometric_mean(ratios)
    return Verdict.of(title, required, f"{mean:.2f}", mean >= floor, _all(cases.values()))


def _none_slower(cases: Mapping[HeadCase, ByPeer]) -> Verdict:
    title, required = "no case slower than any peer", "smallest best peer / ours ≥ 1"
    if not all("ours" in records and set(CPU_PEERS) & set(records) for records in cases.values()):
        return Verdict.missing(title, required)
    least = {c.name: fastest(r, CPU_PEERS)["p50"] / r["ours"]["p50"] for c, r in cases.items()}  # type: ignore[index]
    worst = min(least, key=lambda name: least[name])
    return Verdict.of(
        title, required, f"{least[worst]:.2f} ({worst})", least[worst] >= 1.0, _all(cases.values())
    )


def _near_gemms(cases: Mapping[HeadCase, ByPeer]) -> Verdict:
    title, required = (
        f"ours / bare GEMMs where S ≥ {CPU_OF_GEMMS_FROM_S}",
        f"≤ {CPU_OF_GEMMS:g} in each case",
    )
    wide = {case: r for case, r in cases.items() if case.layout.width >= CPU_OF_GEMMS_FROM_S}
    if not all({"ours", "gemms"} <= set(records) for records in wide.values()):
        return Verdict.missing(title, required)
    ratios = {case.name: r["ours"]["p50"] / r["gemms"]["p50"] for case, r in wide.items()}
    shown = ", ".join(f"{ratio:.2f} ({name})" for name, ratio in ratios.items())
    return Verdict.of(title, required, shown, max(ratios.values()) <= CPU_OF_GEMMS, _all(wide.values()))


def _memory(records: ByPeer) -> list[Verdict]:
    case = f"{MEMORY_CASE.name}: {MEMORY_CASE.shape}"
    limit = MEMORY_CASE.required.peak_bytes
    assert limit is not None
    return [
        *_peak(case, records, "ours", lambda b: b <= limit, f"ours ≤ {limit / 1e6:.0f} MB"),
        *_peak(case, records, "eager", lambda b: b > EAGER_MORE_BYTES, f"eager > {EAGER_MORE_BYTES / 1e6:,.0f} MB"),
        _ratio(case, records, ("eager",), ("ours",), 1.0, "eager / ours, time"),
    ]  # fmt: skip


def _all(cases: Iterable[ByPeer]) -> list[Record]:
    return [record for records in cases for record in records.values()]


# --- GPU -------------------------------------------------------------------------------------------------


def gpu_verdicts(found: Sequence[Record]) -> list[Verdict]:
    """Return the verdicts for the GPU."""
    copy = next((r["value"] for r in found if (r["suite"], r["case"]) == ("floors", "copy")), None)
    verdicts = [
        verdict
        for case in GPU_HEAD_CASES
        for verdict in _gpu_heads(case, by_peer(found, "heads", case.name, "forward+backward"), copy)
    ]
    for step_case in GPU_STEP_CASES:
        records = by_peer(found, "step", step_case.name, "step")
        verdicts += [
            _ratio(step_case.name, records, (peer,), ("ours multi, graph",), least, f"{peer} / ours, graph")
            for peer, least in (GPU_STEP_OVER.items() if step_case.name != TREEBANK_TAGGER else ())
        ]
    names = tuple(case.name for case in GPU_STEP_CASES)
    return verdicts + _after_switch(found, names, ("after switch", "after switch, graph"))


def _gpu_heads(case: HeadCase, records: ByPeer, copy: float | None) -> list[Verdict]:
    required, name = case.required, f"{case.name}: {case.shape}"
    ours = ("ours", "ours_graph")
    verdicts = []
    if required.over_eager is not None:
        verdicts.append(_ratio(name, records, ("eager",), ("ours",), required.over_eager, "eager / ours"))
    if required.over_best is not None:
        # Graphs are compared with graphs: the benefit of the graph itself is not the kernel's.
        verdicts.append(_ratio(name, records, GPU_PEERS, ours, required.over_best, "best peer / ours"))
        if "eager_graph" in records:
            graphs = ("eager_graph",), ("ours_graph",)
            title = "eager / ours, both in a graph"
            verdicts.append(_ratio(name, records, *graphs, required.over_best, title))
    for peer, least in required.over:
        # A peer that supports no bias is compared with ours without one.
        mine = "ours" if records.get(peer, {}).get("bias", True) else "ours_no_bias"
        verdicts.append(_ratio(name, records, (peer,), (mine,), least, f"{peer} / {mine}"))
    if required.of_gemms is not None:
        verdicts.append(_at_most(name, records, "gemms", required.of_gemms))
    if required.of_bytes is not None:
        verdicts.append(_bytes_floor(case, name, records, copy, required.of_bytes))
    verdicts += [_within(name, records, peer, limit) for peer, limit in required.within_us]
    if required.peak_bytes is not None:
        limit = required.peak_bytes
        verdicts += _peak(name, records, "ours", lambda b: b <= limit, f"peak ≤ {limit / 1e9:g} GB")
    return verdicts


def _within(case: str, records: ByPeer, peer: str, limit_us: float) -> Verdict:
    required, record = f"{peer} ≤ {limit_us:,.0f} µs", records.get(peer)
    if record is None:
        return Verdict.missing(case, required)
    return Verdict.of(case, required, f"{record['p50']:,.1f} µs", record["p50"] <= limit_us, (record,))


def _bytes_floor(case: HeadCase, name: str, records: ByPeer, copy: float | None, limit: float) -> Verdict:
    title = f"ours (cold) / bytes floor ≤ {limit:g}"
    cold = [records[peer] for peer in ("ours", "ours_graph") if "cold_us" in records.get(peer, {})]
    if copy is None or not cold:
        return Verdict.missing(name, title)
    fastest_cold = min(record["cold_us"] for record in cold)
    floor_us = (case.input_bytes + case.gradient_bytes) / copy * 1e6
    shown = f"{fastest_cold / floor_us:.2f} ({fastest_cold:.1f} of {floor_us:.1f} µs)"
    return Verdict.of(name, title, shown, fastest_cold <= limit * floor_us, cold)


# --- both ------------------------------------------------------------------------------------------------


def _ratio(
    case: str, records: ByPeer, peers: Iterable[str], ours: Iterable[str], least: float, of: str
) -> Verdict:
    required = f"{of} ≥ {least:g}"
    theirs, mine = fastest(records, peers), fastest(records, ours)
    if theirs is None or mine is None:
        return Verdict.missing(case, required)
    ratio = theirs["p50"] / mine["p50"]
    shown = f"{ratio:.2f} ({theirs['peer']} / {mine['peer']})"
    return Verdict.of(case, required, shown, ratio >= least, (theirs, mine))


def _at_most(case: str, records: ByPeer, floor: str, limit: float) -> Verdict:
    required = f"ours / {floor} ≤ {limit:g}"
    mine = fastest(records, ("ours", "ours_graph"))
    if mine is None or floor not in records:
        return Verdict.missing(case, required)
    ratio = mine["p50"] / records[floor]["p50"]
    return Verdict.of(case, required, f"{ratio:.2f}", ratio <= limit, (mine, records[floor]))


def _peak(
    case: str, records: ByPeer, peer: str, meets: Callable[[float], bool], required: str
) -> list[Verdict]:
    title = f"{required} more than inputs and gradients"
    record = records.get(peer)
    if record is None or "peak_extra_bytes" not in record:
        return [Verdict.missing(case, title)]
    peak = record["peak_extra_bytes"]
    # Other work on the machine does not change how much memory a process uses.
    return [Verdict(case, title, f"{peak / 1e6:,.0f} MB", decided(meets(peak), []))]


def _after_switch(found: Sequence[Record], cases: Iterable[str], peers: Iterable[str]) -> list[Verdict]:
    verdicts = []
    for case in cases:
        records = by_peer(found, "step", case, "step")
        for peer in peers:
            record = records.get(peer)
            title = f"{peer} / stl ≤ {SWITCHED_LIMIT:g}"
            if record is None or record["ratio"] is None:
                verdicts.append(Verdict.missing(case, title))
            else:
                ratio = record["ratio"]["of_medians"]
                verdicts.append(Verdict.of(case, title, f"{ratio:.3f}", ratio <= SWITCHED_LIMIT, (record,)))
    return verdicts
