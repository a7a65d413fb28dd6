"""Turn what a reader found (words, and label cells as text) into Splits: missing splits, vocabulary, classes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mt2st_fast.data.corpus import MISSING, NOTHING_RECORDED, Corpus, ReadRecord, Splits, TargetColumn
from mt2st_fast.data.readers.narrowing import merged_targets
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import counted, listed, one_number_each

PARTS = ("train", "dev", "test")
_MOST_ALIKE_NAMED = 5
_SPLIT_SEED = 0  # not the run's seed: the test set must be the same for every run


@dataclass(eq=False)
class Section:
    """Text as read: units of words, and the label cells of each unit (one per word, or one for the document).

    A cell is a string (classes), a tuple of strings (labels), a float (values), or None where there is no label.
    """

    units: list[list[str]]
    cells: dict[str, list[list]]  # task -> one list of cells per unit

    def take(self, chosen: np.ndarray) -> "Section":
        """Return the units of these numbers, in this order."""
        return Section(
            [self.units[u] for u in chosen],
            {task: [cells[u] for u in chosen] for task, cells in self.cells.items()},
        )


def complete_splits(
    found: Mapping[str, Section], where: str, measured: Collection[str] | None = None
) -> dict[str, Section]:
    """Return train, dev and test: without dev and test, training text is split 80/10/10; a missing one takes 10 %.

    Deterministic, by unit. measured: for evaluation without training, the parts that are needed; if these are available
    without a split, text stays whole, and parts without a file are empty. Raises InputError if there are too few units
    to split, or no training text.
    """
    if measured is not None and _need_no_split(found, measured):
        nothing = next(iter(found.values())).take(np.arange(0))
        return {part: found.get(part, nothing) for part in PARTS}
    missing = [part for part in ("dev", "test") if part not in found]
    if "train" not in found:
        lacking = [part for part in measured or () if part not in found]
        raise InputError(
            f"{where}: has no {' and '.join(lacking)} rows, because its files are named as {' and '.join(found)} "
            "only; choose another part, or all"
        )
    sections = dict(found)
    n_units = len(found["train"].units)
    share = max(1, n_units // 10)
    if missing and n_units < 3:
        fix = (
            "provide separate train, dev and test files"
            if measured is None
            else "use --part all to measure all of them"
        )
        raise InputError(f"{where}: too few sentences or documents to split ({n_units}); {fix}")
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(n_units)
    for i, part in enumerate(missing):
        sections[part] = found["train"].take(np.sort(order[i * share : (i + 1) * share]))
    if missing:
        sections["train"] = found["train"].take(np.sort(order[len(missing) * share :]))
    return {part: sections[part] for part in PARTS}


def _need_no_split(found: Mapping[str, Section], measured: Collection[str]) -> bool:
    """Whether the measured parts have the same rows without a split, which would take some from the training text."""
    return set(measured) == set(PARTS) or ("train" not in measured and set(measured) <= found.keys())


def assemble(
    name: str,
    sections: Mapping[str, Section],
    kinds: Mapping[str, str],
    level: str,
    main: str | None,
    auxiliary: Sequence[str],
    notes: Sequence[str] = (),
    record: ReadRecord = NOTHING_RECORDED,
) -> Splits:
    """Build the Splits of the sections' tasks.

    The classes of a task are those of all splits: one that the training text lacks can never be predicted, and counts
    as wrong where the test text has it, as it should. Classes that are whole numbers are the same class whether written
    1 or 1.0, and a note says so. Raises InputError for numbers that are all one in float32.
    """
    words = {part: chain.from_iterable(section.units) for part, section in sections.items()}
    vocabulary = Vocabulary.build(*(words[part] for part in PARTS))
    tokens = {part: Tokens.of(section.units, vocabulary) for part, section in sections.items()}
    cells = {
        part: {task: [cell for unit in units for cell in unit] for task, units in section.cells.items()}
        for part, section in sections.items()
    }
    alike_notes = [
        note
        for task, kind in kinds.items()
        if (note := _read_alike(kind, task, [cells[p][task] for p in cells]))
    ]
    merged_notes = [
        note
        for task, kind in kinds.items()
        if kind == "values"
        and (note := merged_targets(name, task, chain.from_iterable(cells[p][task] for p in cells)))
    ]
    names = {
        task: class_names(kind, task, [cells[part][task] for part in cells]) for task, kind in kinds.items()
    }
    corpora = {
        part: Corpus(
            tokens=tokens[part].ids,
            bounds=tokens[part].bounds,
            targets={task: encode(kind, names[task], cells[part][task]) for task, kind in kinds.items()},
            level=level,
        )
        for part, section in sections.items()
    }
    return Splits(
        **corpora,
        vocabulary=vocabulary,
        name=name,
        main=main,
        auxiliary=tuple(auxiliary),
        notes=(*notes, *alike_notes, *merged_notes),
        record=record,
    )


def _read_alike(kind: str, task: str, columns: Sequence[list]) -> str:
    """Rewrite 1.0 as 1 in the columns of cells where both stand for one class; return a note on this, or ""."""
    names = () if kind == "values" else class_names(kind, task, columns)
    whole = one_number_each(names)
    if not whole:
        twins = [(name, name.partition(".")[0]) for name in names if name.endswith(".0")]
        twice = [f"{one} and {other}" for one, other in twins if other in names]
        fix = (
            "are treated as different classes, because some class names are not whole numbers; spell them alike if "
            "they are the same"
        )
        return f"{task}: {listed(twice, _MOST_ALIKE_NAMED)} {fix}" if twice else ""
    n_cells = 0
    for cells in columns:
        for i, cell in enumerate(cells):
            if isinstance(cell, tuple):
                written = tuple(whole.get(label, label) for label in cell)
            else:
                written = whole.get(cell, cell)
            n_cells += written != cell
            cells[i] = written
    pairs = listed((f"{name} and {other}" for name, other in whole.items()), _MOST_ALIKE_NAMED)
    return (
        f"{task}: treated as one class, because the whole numbers are equal: {pairs} "
        f"({counted(n_cells, 'cell ends', 'cells end')} in .0, as columns with empty cells are often written)"
    )


def class_names(kind: str, task: str, columns: Sequence[list]) -> tuple[str, ...]:
    """Return the sorted classes or labels of all columns of cells; for values, the name of the task."""
    if kind == "values":
        return (task,)
    seen = set().union(*columns) - {None}
    return tuple(sorted(seen if kind == "classes" else {label for cell in seen for label in cell}))


def encode(kind: str, names: tuple[str, ...], cells: list) -> TargetColumn:
    """Convert cells to a TargetColumn of N rows."""
    index_of: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    if kind == "classes":
        index_of[None] = MISSING
        return TargetColumn(
            kind, names, np.fromiter((index_of[cell] for cell in cells), np.int64, len(cells))
        )
    values = np.zeros((len(cells), len(names)), dtype=np.float32)
    for row, cell in zip(values, cells, strict=True):
        if cell is None:
            row[:] = np.nan
        elif kind == "values":
            row[0] = cell
        else:
            row[[index_of[label] for label in cell]] = 1
    return TargetColumn(kind, names, values)
