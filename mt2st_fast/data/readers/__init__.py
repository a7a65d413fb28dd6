"""The readers by name, and `open_data`, which turns `stdlib` or `KIND:PATH` into Splits.

A reader is a module in this folder that has a `READER` (see `Reader`); it is found without being registered elsewhere.
"""

import gc
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mt2st_fast.data.corpus import Splits, check_main, hide_labels
from mt2st_fast.data.readers.files import extension_of, parts_by_name, unread_in
from mt2st_fast.data.readers.request import Progress, Reader, ReadRequest, make_request
from mt2st_fast.data.record import alike_classes, repeated_texts, unseen_classes
from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home
from mt2st_fast.spelling import listed

MOST_FILES_NAMED = 5


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, whose searches for cycles take a third of the time of reading.

    A corpus is read as very many lists of text, which contain no cycles, and each search visits all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _find_readers() -> dict[str, Reader]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [module.READER for module in modules if hasattr(module, "READER")]
    names = [reader.name for reader in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two readers are named {', '.join(sorted(twice))}; rename one of them")
    return {reader.name: reader for reader in sorted(found, key=_place)}


def _place(reader: Reader) -> tuple[bool, str]:
    return reader.needs_path, reader.name


# By name; readers without a path come first.
READERS: dict[str, Reader] = _find_readers()


def open_data(
    spec: str,
    main: str | None = None,
    auxiliary: Sequence[str] | None = None,
    label_fraction: float | None = None,
    seed: int = 1,
    progress: Progress | None = None,
    text_column: str | None = None,
    delimiter: str | None = None,
    measured: Sequence[str] | None = None,
) -> Splits:
    """Read a corpus: `stdlib` or KIND:PATH, such as `csv:PATH`; READERS has the kinds and what their paths are.

        main            main task; None for the reader's default. csv and jsonl take a kind: `rating:regression`,
                        `tags:multilabel`
        auxiliary       auxiliary tasks; None for the reader's default, () for none
        label_fraction  share of the training units (stdlib: files) that keep their main labels, in (0, 1]; None
                        for the reader's default (stdlib: 0.01, the others: all). Development and test labels are never
                        hidden
        seed            decides which units keep their labels; the splits themselves never depend on it
        text_column     the text column of a table (csv, jsonl); None for text, sentence, review or content, in any case
        delimiter       of a csv table, one character; None for the most frequent one in the header, tabs in .tsv
        progress        called with (files done, files in total) while stdlib is read
        measured        for evaluation without training, the parts (train, dev, test) that are needed: text is only
                        split if one of them has to be taken from it; else it stays whole, and parts without a file are
                        empty

    Raises InputError for any part of the corpus or request that cannot be used.
    """
    kind, path = parse_spec(spec)
    reader = READERS[kind]
    request = replace(
        make_request(path, main, auxiliary, progress),
        text_column=text_column,
        delimiter=delimiter,
        measured=None if measured is None else tuple(measured),
    )
    for option, given in (("text_column", text_column), ("delimiter", delimiter)):
        if given and option not in reader.options:
            able = _specs(name for name, other in READERS.items() if option in other.options)
            raise InputError(f"{spec}: --{option.replace('_', '-')} applies to {able} only; leave it out")
    _check_kinds(spec, reader, request)
    with _collector_paused():
        splits = reader.read(request)
    if reader.needs_path:
        splits = replace(splits, notes=(*splits.notes, *_unread(path, splits)))
    main_task = splits.main
    if measured is not None:
        _check_measured(spec, splits, measured)
        return splits
    splits = _with_parts_told(splits)
    if main_task is None:
        return splits
    check_main(splits.train, main_task)
    _check_has_classes(splits)
    fraction = reader.label_fraction if label_fraction is None else label_fraction
    train = hide_labels(splits.train, main_task, fraction, seed)
    notes = splits.notes
    if fraction < 1:
        unit = "units" if train.groups is None else "files"
        notes += (f"{fraction:g} of the training {unit} keep their labels for {main_task!r}",)
    splits = replace(splits, train=train)
    told = (*_without_labels(splits, main_task), *_nothing_to_learn(splits))
    notes += (*told, *alike_classes(splits), *(unseen.line() for unseen in unseen_classes(splits)))
    notes += repeated_texts(splits)
    return replace(splits, notes=notes)


def _unread(path: Path, splits: Splits) -> tuple[str, ...]:
    """Return a note on files of a folder that are not read, though they are of the same kind as those that are."""
    names = unread_in(path, {extension_of(Path(file.path)) for file in splits.record.files})
    why = "not read, because train, dev or test is not in the name"
    return (f"{why}: {listed(names, MOST_FILES_NAMED)}",) if names else ()


def _check_measured(spec: str, splits: Splits, measured: Sequence[str]) -> None:
    """Raise InputError where nothing can be measured: no row of these parts has a label of the main task."""
    main = splits.main
    if main is not None and not any(splits.parts[part].column(main).labelled().any() for part in measured):
        rows = "row" if len(measured) == len(splits.parts) else f"{' or '.join(measured)} row"
        raise InputError(
            f"{spec}: no {rows} has a label for {main!r}; label some rows or choose another task"
        )


def _with_parts_told(splits: Splits) -> Splits:
    """Add notes on parts that have no file, and on a file that is split although its name says what it is."""
    record = splits.record
    parts = {part for file in record.files for part in file.part.split(", ")}
    missing = [part for part in ("dev", "test") if part not in parts]
    if not parts or not missing:
        return splits
    told = {" and ".join(missing): "a tenth of the training text each, the same in every run"}
    notes = tuple(
        f"{name} is named like a {by_name[0]} file but is the only file, so it is split into train, dev and test"
        for name in (Path(file.path).name for file in record.files)
        if (by_name := parts_by_name(name)) and "train" not in by_name and len(missing) == 2
    )
    record = replace(record, understood={**record.understood, **told})
    return replace(splits, notes=(*splits.notes, *notes), record=record)


def _without_labels(splits: Splits, main: str) -> tuple[str, ...]:
    """Return a note on a test set without labels of the main task, on which nothing can be measured."""
    if splits.test.column(main).labelled().any():
        return ()
    return (f"{main}: no test row has a label for the main task, so there is no test result",)


def _nothing_to_learn(splits: Splits) -> Iterator[str]:
    """Yield a note for each task whose training rows have no label, or all the same."""
    for task in splits.tasks:
        column = splits.train.column(task)
        labelled = column.values[column.labelled()]
        if not len(labelled):
            yield f"{task}: no training row has a label, so no step trains it; label some rows or leave it out"
        elif column.kind != "labels" and len(seen := np.unique(labelled)) == 1:
            only, others = (
                (str(seen[0]), "with other numbers")  # format() would write 0.1 with 17 digits
                if column.kind == "values"
                else (repr(column.class_names[seen[0]]), "of other classes")
            )
            instead = "choose another main task" if task == splits.main else "leave it out"
            yield (
                f"{task}: every training label is {only}, so there is nothing to learn; add rows {others} or {instead}"
            )


def _check_has_classes(splits: Splits) -> None:
    """Raise InputError for a task without a label in any part: there is nothing that it could predict."""
    for task in splits.tasks:
        if not splits.train.column(task).size:
            raise InputError(
                f"{splits.name}: no row has a label for the task {task!r}; label some or leave it out"
            )


def parse_spec(spec: str, shown: str = "data") -> tuple[str, Path]:
    """Return (reader, path) of `KIND` or `KIND:PATH`; the path need not exist.

    Raises InputError for anything else; `shown` is the name of the option in the message.
    """
    kind, separator, path = spec.partition(":")
    if kind not in READERS:
        raise InputError(
            f"{shown} {spec!r}: unknown reader {kind!r}; available: {_specs(READERS)}{_kind_meant(spec)}"
        )
    if READERS[kind].needs_path and not path:
        raise InputError(f"{shown} {spec!r}: the reader {kind} needs a path: {kind}:PATH")
    if not READERS[kind].needs_path and separator:
        raise InputError(f"{shown} {spec!r}: the reader {kind} takes no path; write {kind} alone")
    if path == "-":
        raise InputError(
            f"{shown} {spec!r}: - is no file here; for standard input, use {kind}:/dev/stdin, or save it in a file"
        )
    return kind, at_home(path)


def _kind_meant(spec: str) -> str:
    """Return a suggestion for a path without its kind, by its name, or ""."""
    ending = extension_of(Path(spec))
    kinds = [name for name, reader in READERS.items() if ending and ending in reader.extensions]
    if spec.partition(":")[0].lower() in READERS:
        return f" (did you mean {spec.partition(':')[0].lower()}:?)"
    return f" (did you mean {' or '.join(f'{name}:{spec}' for name in kinds)}?)" if kinds else ""


def takes(spec: str, option: str) -> bool:
    """Return whether the reader of `KIND:PATH` uses an option of requests ("text_column", "delimiter")."""
    reader = READERS.get(spec.partition(":")[0])
    return reader is not None and option in reader.options


def _check_kinds(spec: str, reader: Reader, request: ReadRequest) -> None:
    for task in request.requested:
        if not reader.kinds:
            able = _specs(name for name, other in READERS.items() if other.kinds)
            raise InputError(f"{spec} has no labels for task {task.name!r}; use a reader with labels: {able}")
        if task.kind not in reader.kinds:
            able = _specs(name for name, other in READERS.items() if task.kind in other.kinds)
            raise InputError(
                f"task {task.name!r}: {reader.name} supports {' and '.join(reader.kinds)} only; for other kinds use "
                f"{able}"
            )


def _specs(names: Iterable[str]) -> str:
    return ", ".join(READERS[name].spec for name in names)
