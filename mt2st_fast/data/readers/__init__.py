"""The readers by name, and `open_data`, which turns `stdlib` or `KIND:PATH` into Splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mt2st_fast.data.corpus import Splits, check_main, hide_labels
from mt2st_fast.data.readers import columns, conllu, delimited, plain, stdlib
from mt2st_fast.data.readers.request import Progress, ReadRequest, make_request
from mt2st_fast.errors import InputError


@dataclass(frozen=True)
class Reader:
    """How one kind of corpus is read, and the fraction of main labels it keeps unless told otherwise."""

    read: Callable[[ReadRequest], Splits]
    needs_path: bool = True
    label_fraction: float = 1.0


READERS = {
    "stdlib": Reader(stdlib.read, needs_path=False, label_fraction=stdlib.DEFAULT_LABEL_FRACTION),
    "conllu": Reader(conllu.read),
    "columns": Reader(columns.read),
    "csv": Reader(delimited.read),
    "text": Reader(plain.read),
}


def open_data(
    spec: str,
    main: str | None = None,
    auxiliary: Sequence[str] | None = None,
    label_fraction: float | None = None,
    seed: int = 1,
    progress: Progress | None = None,
) -> Splits:
    """Read a corpus: `stdlib`, `conllu:PATH`, `columns:PATH`, `csv:PATH` or `text:PATH`.

    main            main task; None for the reader's default. csv takes a kind: `rating:regression`,
                    `tags:multilabel`
    auxiliary       auxiliary tasks; None for the reader's default, () for none
    label_fraction  part of the training units (stdlib: files) that keep their main labels, in (0, 1]; None
                    for the
                    reader's default (stdlib: 0.05, the others: all). Development and test labels are never
                    hidden
    seed            decides which units keep their labels; the splits themselves never depend on it
    progress        called with (files done, files in all) while stdlib is read

    Raises InputError for anything in it that cannot be used.
    """
    kind, path = _parse_spec(spec)
    reader = READERS[kind]
    splits = reader.read(make_request(path, main, auxiliary, progress))
    if splits.main is None:
        return splits
    check_main(splits.train, splits.main)
    fraction = reader.label_fraction if label_fraction is None else label_fraction
    train = hide_labels(splits.train, splits.main, fraction, seed)
    notes = splits.notes
    if fraction < 1:
        unit = "units" if train.groups is None else "files"
        notes += (f"{fraction:g} of the training {unit} keep their labels of {splits.main!r}",)
    return replace(splits, train=train, notes=notes)


def _parse_spec(spec: str) -> tuple[str, Path]:
    kind, separator, path = spec.partition(":")
    known = ", ".join(f"{name}:PATH" if reader.needs_path else name for name, reader in READERS.items())
    if kind not in READERS:
        raise InputError(f"data {spec!r}: there is no reader {kind!r}; the readers are {known}")
    if READERS[kind].needs_path and not path:
        raise InputError(f"data {spec!r}: the reader {kind} needs a path, as in {kind}:PATH")
    if not READERS[kind].needs_path and separator:
        raise InputError(f"data {spec!r}: the reader {kind} takes no path; write {kind} alone")
    return kind, Path(path).expanduser()
