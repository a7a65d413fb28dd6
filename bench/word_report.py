"""The tables of bench.bags and bench.words in bench/RESULTS.md: speed, its requirements, and quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.ledger import Record, ratio_text
from bench.markdown import table
from bench.required import (
    ALLOWED_LOSS,
    BAGS_OVER_PEER,
    GPU_OVER_CPU,
    JOBS_ON_GPU,
    MOST_LONGER,
    POLARITY_OF_FASTTEXT,
    UPDATE_OF_FLOOR,
    WORDS_OVER_GENSIM,
)
from bench.verdicts import MISSING, decided

TEXTS = ("treebank", "Wikipedia")


def gpu_word_section(found: Sequence[Record]) -> list[str]:
    """Return Markdown lines on bags of words on a GPU."""
    lines = ["**Bags of words: passes over documents**", ""]
    lines += _gpu_table(
        found, "a pass", "million tokens/s", lambda r: f"{r['tokens_per_second'] / 1e6:,.1f}", _pass_verdict
    )
    lines += ["", "**Updates of rows, and a copy of their bytes**", ""]
    lines += _gpu_table(found, "update", "floor, µs", lambda r: f"{r['floor_us']:,.1f}", _update_verdict)
    return [*lines, ""]


def job_section(found: Sequence[Record]) -> list[str]:
    """Return Markdown lines on whole jobs: the rate of training, the time of the whole call, and the quality."""
    records = [r for r in found if r["suite"] == "jobs"]
    if not records:
        return [f"{MISSING.capitalize()}."]
    rows = [
        [
            f"{record['case']}: {record['shape']}",
            record["peer"],
            f"{record['value']:,.0f} {record['unit']}",
            f"{record['call_seconds']:.2f} s",
            f"{record['quality']:.4f}" if record.get("quality") is not None else "",
            "; ".join(
                f"{len(phase['active'])} tasks: {phase.get('engine')}, {phase.get('graph') or 'no graph'}"
                for phase in record.get("phases", ())
            ),
            job_verdict(record),
        ]
        for record in records
    ]
    return table(["job", "", "training", "whole call", "quality", "steps taken by", "required"], rows)


def job_verdict(record: Record) -> str:
    """Return the required rate of a job on a GPU and whether it is met; empty for a CPU."""
    least = JOBS_ON_GPU.get(record["case"])
    if least is None or record["peer"] != "ours on cuda":
        return ""
    return f"≥ {least:,.0f}, {decided(record['value'] >= least, [record])}"


def _gpu_table(
    found: Sequence[Record],
    direction: str,
    heading: str,
    shown: Callable[[Record], str],
    verdict: Callable[[Record, float], str],
) -> list[str]:
    records = [r for r in found if (r["suite"], r["direction"]) == ("bags", direction)]
    if not records:
        return [f"{MISSING.capitalize()}."]
    rows = []
    for record in records:
        ratio = record["ratio"]
        rows.append(
            [
                f"{record['case']}: {record['shape']}",
                record["peer"],
                _duration(record["p50"]),
                shown(record),
                ratio_text(record),
                ratio["of"] if ratio else "",
                verdict(record, ratio["of_medians"]) if ratio else "",
            ]
        )
    return table(["case", "", "median", heading, "ratio", "of", "required"], rows)


def _pass_verdict(record: Record, ratio: float) -> str:
    return f"≥ {GPU_OVER_CPU:g}, {decided(ratio >= GPU_OVER_CPU, [record])}"


def _update_verdict(record: Record, ratio: float) -> str:
    return f"≤ {UPDATE_OF_FLOOR:g}, {decided(ratio <= UPDATE_OF_FLOOR, [record])}"


def word_sections(found: Sequence[Record]) -> list[str]:
    """Return Markdown lines; a heading with "not yet measured" if there is nothing."""
    lines = ["**Bags of words**", "", *_bags(found), ""]
    return [*lines, "**Word2Vec against gensim**", "", *_words(found), ""]


def _bags(found: Sequence[Record]) -> list[str]:
    records = [record for record in found if record["suite"] == "bags"]
    if not records:
        return [f"{MISSING.capitalize()}."]
    timed = [record for record in records if "p50" in record]
    rows = [
        [
            f"{record['case']}: {record['shape']}",
            record["direction"],
            record["peer"],
            _duration(record["p50"]),
            ratio_text(record),
            f"{record['accuracy']:.4f}" if "accuracy" in record else "",
            _bag_verdict(record),
        ]
        for record in timed
    ]
    heading = ["case", "of", "", "median", "ratio to its peer", "accuracy", "required"]
    return [*table(heading, rows), "", *_values(records)]


def _bag_verdict(record: Record) -> str:
    least = BAGS_OVER_PEER.get((record["case"], record["direction"], record["peer"]))
    if record["case"] == "length of the table" and record["ratio"] is not None:
        return f"≤ {MOST_LONGER:g}, {decided(record['ratio']['of_medians'] <= MOST_LONGER, [record])}"
    if least is None or record["ratio"] is None:
        return ""
    return f"≥ {least:g}, {decided(record['ratio']['of_medians'] >= least, [record])}"


def _values(records: Sequence[Record]) -> list[str]:
    lines = [
        f"- {record['case']}, {record['shape']}: {record['peer']} needs {record['value'] / 1e6:,.1f} MB at the peak, "
        "beyond the table and the batch"
        for record in records
        if record["unit"] == "bytes"
    ]
    polarity = {r["peer"]: r for r in records if r["case"] == "sentence polarity"}
    for peer, record in polarity.items():
        epochs, rate = record["setting"]
        lines.append(
            f"- sentence polarity, {record['shape']} test accuracy: {peer} takes {record['value']:.3f} s "
            f"({epochs} epochs, lr {rate}; {record['accuracy']:.4f}, its best {record['best']:.4f}; medians of 5 seeds)"
        )
    if {"ours", "fasttext"} <= set(polarity):
        share = polarity["ours"]["value"] / polarity["fasttext"]["value"]
        better = polarity["ours"]["accuracy"] >= polarity["fasttext"]["accuracy"]
        met = decided(share <= POLARITY_OF_FASTTEXT and better, polarity.values())
        lines.append(
            f"- sentence polarity: {share:.2f} of fastText's time, required ≤ {POLARITY_OF_FASTTEXT:g}: {met}"
        )
    return lines


def _words(found: Sequence[Record]) -> list[str]:
    # Records of other texts are from an older bench.words.
    records = [r for r in found if r["suite"] == "words" and r["case"].split(",")[0] in TEXTS]
    if not records:
        return [f"{MISSING.capitalize()}."]
    tasks = list(records[0]["quality_median"])
    theirs = {(r["case"], r["direction"]): r for r in records if r["peer"] == "gensim"}
    rows = [
        [
            f"{record['case']}: {record['shape'].split(',')[0]}",
            record["direction"],
            record["peer"],
            f"{record['words_per_second']:,}",
            ratio_text(record),
            *(f"{record['quality_median'][task]:.3f}" for task in tasks),
            _words_verdict(record, theirs.get((record["case"], record["direction"]))),
        ]
        for record in records
    ]
    lines = table(["text", "of", "", "words/s", "gensim / ours", *tasks, "required"], rows)
    mapped = [r for r in found if r["suite"] == "words" and r["peer"] == "mapped"]
    return [
        *lines,
        "",
        *(
            f"- {r['case']}, {r['shape']}: mapped, {ratio_text(r)} times the speed of the same text in memory"
            for r in mapped
        ),
    ]


def _words_verdict(record: Record, theirs: Record | None) -> str:
    if record["peer"] != "ours" or theirs is None:
        return ""
    least = WORDS_OVER_GENSIM[record["direction"]]
    fast = record["ratio"]["of_medians"] >= least
    worse = [
        task
        for task, score in record["quality_median"].items()
        if score < theirs["quality_median"][task] - ALLOWED_LOSS
    ]
    quality = f"quality missed ({', '.join(worse)})" if worse else "quality met"
    return f"≥ {least:g}, {decided(fast, [record])}; {quality}"


def _duration(us: float) -> str:
    return f"{us / 1e6:.3f} s" if us >= 1e5 else f"{us:,.0f} µs"
