"""Choose the graph for a model, and describe its texts and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.line_bags import LineBags
from mt2st_fast.data.subwords import SubwordTable
from mt2st_fast.data.text.tokenizers import WORD
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.exporting.graphs import AnyEncoder, IdBags, TypeBags, TypeWindows, WordBags, WordTagger
from mt2st_fast.exporting.inputs import TextInputs
from mt2st_fast.exporting.writing import Exported, Graph, Trial, output_of, write_graph
from mt2st_fast.model.encoders import NO_ROW, BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import evaluating
from mt2st_fast.model.module_state import uncompiled
from mt2st_fast.model.sharded import check_whole
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression

# How a line is split into words, by the names that readers of training data use.
CUTS = {
    "words": {"pattern": WORD, "lower": False},
    "lowered words": {"pattern": WORD, "lower": True},
    "blanks": {"pattern": r"\S+", "lower": False},
}

TRIAL_WORDS = 1500  # from the vocabulary, evenly spaced
_TRIAL_SIZES = (5, 0, 1, 40, 2, 0, 13, 3)  # sizes of units, repeated
# Words that training has probably not seen, so that their parts are compared, too.
_UNSEEN = ("Unseenword", "ZÜRICH-2031", "don’t", "x", "…", "日本語", "a1b2", "Ünseen's", "ǅungla", "😀")

_KINDS: dict[type, str] = {Classification: "classes", MultiLabel: "labels", Regression: "values"}


class Outputs(NamedTuple):
    """The outputs of a task: "classes", "labels" or "values", and their names, if they have any."""

    kind: str
    names: Sequence[str] = ()


Tasks = Mapping[str, Outputs]


@dataclass(frozen=True, eq=False)
class WordModel:
    """An encoder over words made of hashed parts, and how text is split into words (see `CUTS`)."""

    encoder: WindowEncoder | BagEncoder
    heads: MultiTaskHeads
    vocabulary: Vocabulary
    table: SubwordTable
    tokenizer: str


def export_words(
    model: WordModel,
    tasks: Tasks,
    logits: Callable[[Sequence[Sequence[str]]], Mapping[str, Tensor]],
    file: str | Path,
    wanted: str | None = None,
) -> Exported:
    """Write the graph of a tagger or classifier of words; logits: the model's own logits of units, by task.

    Raises InputError as `write_graph` does.
    """
    is_tagger = isinstance(model.encoder, WindowEncoder)
    description = {
        "text": "words",
        "rows_of_logits": "words" if is_tagger else "units",
        "tasks": _described(tasks),
        "cut": CUTS[model.tokenizer],
        "rows": {
            word: row
            for word, row in zip(model.vocabulary.words, model.table.rows[:, 0].tolist(), strict=True)
            if row != model.table.unk_row
        },
        "unknown_row": model.table.unk_row,
    } | asdict(model.table.parts)
    made = WordTagger if is_tagger else WordBags
    axes = {"rows": ("rows",), "rows_per_word": ("words",), "words_per_unit": ("units",)}
    return write_graph(
        Graph(
            made(model.encoder, model.heads, list(tasks)),  # type: ignore[arg-type]
            axes,
            "words" if is_tagger else "units",
            _trials(description, _units(model.vocabulary.words), logits),
        ),
        file,
        wanted,
        description,
    )


def export_bags(
    encoder: BagEncoder,
    heads: MultiTaskHeads,
    features: BagFeatures,
    prefix: str,
    tasks: Tasks,
    file: str | Path,
    wanted: str | None = None,
) -> Exported:
    """Write the graph of a classifier of bags of words and n-grams. Raises InputError as `write_graph` does."""
    description = {
        "text": "lines",
        "rows_of_logits": "units",
        "tasks": _described(tasks),
        "words": features.vocabulary.words,
        "word_ngrams": features.word_ngrams,
        "buckets": features.buckets,
        "minn": features.minn,
        "maxn": features.maxn,
        "prefix": prefix,
    }
    device = encoder.table.device

    @torch.no_grad()
    def logits(lines: Sequence[str]) -> dict[str, Tensor]:
        ids, bounds = map(torch.from_numpy, LineBags(features, prefix)(lines))
        found = encoder.eval()((ids.to(device), bounds.to(device)))
        return {task: heads.logits(found, task).cpu() for task in tasks}

    lines = [" ".join(unit) for unit in _units(features.vocabulary.words)]
    lines[0] += f" {prefix}label"
    graph = Graph(
        IdBags(encoder, heads, list(tasks)),
        {"ids": ("ids",), "ids_per_unit": ("units",)},
        "units",
        _trials(description, lines, logits),
    )
    return write_graph(graph, file, wanted, description)


def export_modules(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    file: str | Path,
    format: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
    example: Tensor | Sequence[Tensor] | None = None,
    axes: Sequence[Sequence[str | int]] | None = None,
) -> Exported:
    """Write an encoder and its heads as a graph: ONNX (.onnx) or torch.export's (.pt2), by the file's name or `format`.

    A WindowEncoder takes `windows` (rows, width) of word types, a BagEncoder `types` and `types_per_unit`, all int64.
    Another encoder is traced with `example`, its input or inputs (named input_0, ...). axes: the names of their
    dimensions; those with a name may have any size, by default only the first, "rows". tasks: the main one by default.

    Raises InputError for a task without a fused head, for a custom encoder without an example or one that cannot be
    traced, for parameters that are not float32, and as `write_graph` does.
    """
    encoder = uncompiled(encoder)
    check_whole(encoder)
    names = list(tasks or (heads.main,))
    for name in names:
        if name not in heads.tasks:
            known = ", ".join(heads.tasks) or "none"
            raise InputError(f"the task {name} has no head to export; tasks with a head: {known}")
    other = {p.dtype for module in (encoder, heads) for p in module.parameters()} - {torch.float32}
    if other:
        raise InputError(
            f"parameters are {str(other.pop()).removeprefix('torch.')}, but a graph needs float32; call .float() first"
        )
    graph = _graph_of(encoder, heads, names, example, axes)
    tasks_of = {name: Outputs(_kind(heads.tasks[name])) for name in names}
    return write_graph(
        graph, file, format, {"text": None, "rows_of_logits": graph.rows, "tasks": _described(tasks_of)}
    )


def _graph_of(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    names: Sequence[str],
    example: Tensor | Sequence[Tensor] | None,
    axes: Sequence[Sequence[str | int]] | None,
) -> Graph:
    chance = np.random.default_rng(1)
    if type(encoder) is WindowEncoder:
        windows = _types(chance, encoder, (60, encoder.width))
        trials = [_asked(encoder, heads, names, {"windows": windows[:n]}, windows[:n]) for n in (7, 60, 1, 0)]
        return Graph(TypeWindows(encoder, heads, names), {"windows": ("rows", encoder.width)}, "rows", trials)
    if type(encoder) is BagEncoder:
        trials = []
        for sizes in (_TRIAL_SIZES, (1,), (0, 0), (300,)):
            types, counts = _types(chance, encoder, (sum(sizes),)), torch.tensor(sizes)
            bags = types, torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            trials.append(_asked(encoder, heads, names, {"types": types, "types_per_unit": counts}, bags))
        shapes = {"types": ("types",), "types_per_unit": ("units",)}
        return Graph(TypeBags(encoder, heads, names), shapes, "units", trials)
    example = (example,) if isinstance(example, Tensor) else example
    if not example:
        raise InputError(
            f"a {type(encoder).__name__} must be traced; pass example=, the tensors that it is called with, of at "
            "least 2 rows"
        )
    given = [tensor.detach().cpu() for tensor in example]
    named = axes or [("rows", *tensor.shape[1:]) for tensor in given]
    inputs = {f"input_{i}": tensor for i, tensor in enumerate(given)}
    module = AnyEncoder(encoder, heads, names)
    with torch.no_grad():
        trial = Trial(inputs, module(*given))
    return Graph(module, dict(zip(inputs, named, strict=True)), str(named[0][0]), [trial], takes_any=True)


@torch.no_grad()
def _asked(
    encoder: nn.Module, heads: MultiTaskHeads, names: Sequence[str], inputs: Mapping[str, Tensor], given: Any
) -> Trial:
    """Return the logits of one of our encoders for its own inputs, without dropout."""
    device = next(encoder.parameters()).device
    with evaluating(encoder):
        features = encoder(
            tuple(t.to(device) for t in given) if isinstance(given, tuple) else given.to(device)
        )
    return Trial(inputs, {name: heads.logits(features, name).cpu() for name in names})


def _types(
    chance: np.random.Generator, encoder: WindowEncoder | BagEncoder, shape: tuple[int, ...]
) -> Tensor:
    return torch.from_numpy(chance.integers(NO_ROW, encoder.num_types, shape))


def _kind(task: Any) -> str:
    """Return the kind of a task's outputs; for a custom task, the name of its class."""
    return _KINDS.get(type(task), type(task).__name__)


def _described(tasks: Tasks) -> dict[str, dict[str, Any]]:
    return {
        task: {"kind": outputs.kind, "labels": list(outputs.names), "output": output_of(task)}
        for task, outputs in tasks.items()
    }


def _trials(
    description: dict[str, Any], units: Sequence[Any], logits: Callable[[Sequence[Any]], Mapping[str, Tensor]]
) -> list[Trial]:
    """Return trials of a few units, all, one and none; the inputs are made by the description, as its reader does."""
    made = TextInputs(description)
    trials = []
    for some in (units[: len(_TRIAL_SIZES)], units, units[:1], []):
        inputs = {name: torch.from_numpy(values) for name, values in made(some).items()}
        trials.append(Trial(inputs, logits(some)))
    return trials


def _units(words: Sequence[str]) -> list[list[str]]:
    """Return units of many sizes, with words of a vocabulary and others."""
    known = (
        [words[i] for i in np.linspace(0, len(words) - 1, min(TRIAL_WORDS, len(words))).astype(int)]
        if words
        else []
    )
    left = [*_UNSEEN, *known, *_UNSEEN]
    units: list[list[str]] = []
    while left:
        size = _TRIAL_SIZES[len(units) % len(_TRIAL_SIZES)]
        units.append(left[:size])
        left = left[size:]
    return units
