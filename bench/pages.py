"""Tables of measurements in pages, generated from the newest records: no number in them is typed.

`python -m bench.report` writes them between the marks `<!-- measured: NAME -->` and `<!-- end -->` of a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench import claims
from bench.cases import HEAD_CASES
from bench.environment import ROOT
from bench.ledger import Record
from bench.markdown import table
from bench.step_cases import TAGGER, TREEBANK_TAGGER
from bench.step_peers import LIBRARIES
from bench.verdicts import is_disturbed

PAGES = (ROOT / "README.md", ROOT / "docs" / "claims.md")
_BLOCK = re.compile(r"(<!-- measured: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
STEP, HEADS, DOCUMENTS = "step", "forward+backward", "whole call, 5 epochs"


class Row(NamedTuple):
    """A line of a table: what is measured, our candidate and the other one, by their names in the records."""

    what: str
    of: tuple[str, str, str]  # suite, case, direction
    ours: str
    other: str
    said: str  # the displayed name of the other


_shape = {case.name: case.shape for case in HEAD_CASES}
_tagger = ("step", TAGGER, STEP)
_bags = ("step", "embedding model", STEP)
_mlp = ("step", "two linear layers", STEP)
_libraries = ("step", "two linear layers", LIBRARIES)
_documents = ("bags", "documents", DOCUMENTS)

CPU_ROWS = (
    Row(
        "step of an EWT tagger with 9 heads, 512 rows",
        _tagger,
        "ours multi",
        "eager multi",
        "torch eager, fused AdamW",
    ),
    Row("", _tagger, "ours multi", "compiled multi", "the same under `torch.compile`"),
    Row(
        "",
        _tagger,
        "ours multi",
        "eager multi, row-sparse",
        "separate heads on our row-sparse encoder and optimizer",
    ),
    Row("its step with the main head alone", _tagger, "ours single", "eager single", "torch eager"),
    Row("its step after a switch", _tagger, "after switch", "stl", "our run that never had another task"),
    Row(
        "step of an MLP of two layers with 8 heads, 128 rows",
        _mlp,
        "ours multi",
        "eager multi",
        "torch eager, fused AdamW",
    ),
    Row("", _mlp, "ours multi", "compiled multi", "the same under `torch.compile`"),
    Row("", _libraries, "ours", "LibMTL", "LibMTL's `Trainer`, equal weights"),
    Row("", _libraries, "ours", "TorchJD, Sum", "TorchJD, sum of the tasks' gradients"),
    Row("its step with the main head alone", _mlp, "ours single", "eager single", "torch eager"),
    Row(
        "step of a plain `nn.EmbeddingBag` with 8 heads, 2,048 rows",
        _bags,
        "ours multi",
        "eager multi",
        "torch eager, SGD",
    ),
    Row("its step with the main head alone", _bags, "ours single", "eager single", "torch eager, SGD"),
    *(
        Row(what, ("heads", name, HEADS), "heads_module", other, said)
        for name in ("16 binary heads", "tagger", "10,000 classes", "small batch")
        for what, other, said in (
            (f"`MultiTaskHeads`, loss and gradients, {_shape[name]}", "eager", "torch eager"),
            ("", "compiled", "`torch.compile`"),
        )
    ),
    Row(
        "`train_supervised`, 50,000 documents, 5 epochs, file included",
        _documents,
        "ours, one head",
        "fasttext, one run",
        "fastText",
    ),
    Row(
        "the same with five label families",
        _documents,
        "ours, five heads",
        "fasttext, five runs",
        "five runs of fastText",
    ),
)

GPU_ROWS = (
    Row(
        "step of a tagger with 5 heads, 512 rows, as `Trainer` takes it (CUDA graph)",
        ("step", TREEBANK_TAGGER, STEP),
        "ours multi, graph",
        "eager multi",
        "torch eager, no graph",
    ),
    Row(
        "the same without a graph",
        ("step", TREEBANK_TAGGER, STEP),
        "ours multi",
        "eager multi",
        "torch eager, no graph",
    ),
    *(
        row
        for name, what in (
            ("5 heads, bfloat16", "5 heads, 45 outputs, N=8192 D=768, bfloat16"),
            ("8 heads, large batch, bfloat16", "8 heads, 256 outputs, N=16384 D=1024, bfloat16"),
            ("1,000 classes and 4 heads, bfloat16", "1,000 classes and 4 heads, N=8192 D=1024, bfloat16"),
        )
        for row in (
            Row(
                f"heads in a graph: {what}",
                ("heads", name, HEADS),
                "ours_graph",
                "eager_graph",
                "torch eager in a graph",
            ),
            Row("the same without a graph", ("heads", name, HEADS), "ours", "eager", "torch eager"),
        )
    ),
    *(
        Row(what, ("heads", "vocabulary and 4 heads", HEADS), "ours", other, said)
        for what, other, said in (
            ("151,936 classes and 4 heads, N=8192 D=4096, bfloat16", "eager", "torch eager"),
            ("", "liger", "Liger-Kernel"),
        )
    ),
)

WORD_ROWS = (
    ("CBOW, 205 thousand words of EWT, repeated to 5 million", "treebank, cbow"),
    ("skip-gram, the same", "treebank, skipgram"),
    ("CBOW, 453 thousand words of Wikipedia", "Wikipedia, cbow"),
    ("skip-gram, the same", "Wikipedia, skipgram"),
)


def written(page: str, found: Sequence[Record]) -> str:
    """Return the text of a page with its tables made from these records and those of the claims."""

    def lines_of(name: str) -> list[str]:
        return claims.TABLES[name]() if name in claims.TABLES else TABLES[name](found)

    return _BLOCK.sub(lambda m: m[1] + "\n" + "\n".join(lines_of(m[2])) + "\n\n" + m[4], page)


def _of_newest(found: Sequence[Record], kind: str, suite: str) -> tuple[str, list[Record]]:
    """Return the device that a suite was last measured on, and all its records."""
    newest = max(
        (r for r in found if r["device"]["kind"] == kind and r["suite"] == suite), key=lambda r: r["date"]
    )
    device = newest["device"]
    return device["name"], [r for r in found if r["device"] == device]


def _rows(kind: str, rows: Sequence[Row]) -> Callable[[Sequence[Record]], list[str]]:
    def of_records(found: Sequence[Record]) -> list[str]:
        name, records = _of_newest(found, kind, "step")
        by = {(r["suite"], r["case"], r["direction"], r["peer"]): r for r in records}
        cells = [
            _cells(row, by[*row.of, row.ours], by[*row.of, row.other], kind)
            for row in rows
            # Libraries are optional where steps are measured; without a record, a row would have no number.
            if row.of[2] != LIBRARIES or (*row.of, row.other) in by
        ]
        memory = ["memory, ours and theirs"] if kind == "cuda" else []
        return table([f"on {name}", "ours", "against", "theirs", "theirs / ours", *memory], cells)

    return of_records


def _cells(row: Row, ours: Record, other: Record, kind: str) -> list[str]:
    ratio = other["p50"] / ours["p50"]
    # Numbers that were disturbed by other processes must not be quoted.
    shown = "disturbed" if is_disturbed(ours) else f"**{ratio:.2f}**" if ratio > 1.1 else f"{ratio:.2f}"
    cells = [row.what, _time(ours["p50"]), row.said, _time(other["p50"]), shown]
    if kind == "cuda":
        peaks = [r.get("peak_extra_bytes") for r in (ours, other)]
        cells.append(
            ", ".join("–" if p is None else f"{p / 1e6:,.0f} MB" for p in peaks) if any(peaks) else ""
        )
    return cells


def _words(found: Sequence[Record]) -> list[str]:
    name, records = _of_newest(found, "cpu", "words")
    by = {
        (r["case"], r["peer"]): r for r in records if r["suite"] == "words" and r["direction"] == "whole call"
    }
    rows = []
    for what, case in WORD_ROWS:
        ours, theirs = by[case, "ours"], by[case, "gensim"]
        speeds = [f"{r['words_per_second'] / 1e6:.2f} M" for r in (ours, theirs)]
        scores = [
            f"{ours['quality_median'][of]:.3f}, {theirs['quality_median'][of]:.3f}"
            for of in ("WordSim-353", "SimLex-999")
        ]
        rows.append([what, *speeds, f"{theirs['p50'] / ours['p50']:.2f}", *scores])
    return table([f"on {name}", "words/s", "gensim's", "ratio", "WordSim-353", "SimLex-999"], rows)


def _time(us: float) -> str:
    """Format a time with three digits and a unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.0f} µs"


TABLES: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    "cpu": _rows("cpu", CPU_ROWS),
    "gpu": _rows("cuda", GPU_ROWS),
    "words": _words,
}
