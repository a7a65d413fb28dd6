"""Find out which file of a folder belongs to which split."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mt2st_fast.errors import InputError
from mt2st_fast.spelling import listed

# The name of a split must begin a word of the file name: `latest.txt` is no test file.
_SPLIT_PATTERNS = {
    part: re.compile(rf"(?<![a-z])(?:{words})", re.IGNORECASE)
    for part, words in {"train": "train", "dev": "dev|valid|val(?![a-z])", "test": "test"}.items()
}


def find_splits(
    path: Path, extensions: Collection[str], measured: Collection[str] | None = None
) -> dict[str, Path]:
    """Return the file of each split: {"train": a file}, with "dev" and "test" if a folder has them.

    A path to a file is used as it is. In a folder, files with one of the extensions (or with .gz after it) are
    distinguished by `train`, `dev` or `valid`, and `test` in their names; a single such file is the training file
    whatever its name. measured: for evaluation without training, the splits that are needed: a single file is then dev
    or test if its name says so, and a training file may be missing. Raises InputError if nothing or too much matches.
    """
    if not path.is_dir():
        return {_part_of_single(path, measured): path}
    files = [file for file in _files_in(path) if extension_of(file) in extensions]
    if not files:
        raise _no_files(path, extensions)
    if len(files) == 1:
        return {_part_of_single(files[0], measured): files[0]}
    splits = {}
    for file in files:
        _check_one_split(file)
    for part in _SPLIT_PATTERNS:
        matches = [file for file in files if part in parts_by_name(file.name)]
        if len(matches) > 1:
            names = ", ".join(file.name for file in matches)
            raise InputError(
                f"{path}: several files look like {part} ({names}); keep only one, or give a single file"
            )
        if matches:
            splits[part] = matches[0]
    if "train" not in splits and (measured is None or not splits):
        raise _no_training_file(path, files)
    return splits


def find_parts(
    path: Path, extensions: Sequence[str], measured: Collection[str] | None = None
) -> dict[str, list[Path]]:
    """Return the files of each split, as `find_splits` finds them, for treebanks in their released form.

    The same text may be there in files of several extensions, of which the first in `extensions` is used. A split may
    come in parts (train-a, train-b), which are read in the order of their names. Raises InputError as `find_splits`
    does.
    """
    if not path.is_dir():
        return {_part_of_single(path, measured): [path]}
    files = _files_in(path)
    found = next(
        (same for e in extensions if (same := [file for file in files if extension_of(file) == e])), []
    )
    if not found:
        raise _no_files(path, extensions)
    if len(found) == 1:
        return {_part_of_single(found[0], measured): found}
    splits = {part: [file for file in found if part in parts_by_name(file.name)] for part in _SPLIT_PATTERNS}
    if not splits["train"] and measured is None:
        raise _no_training_file(path, found)
    _check_each_in_one(path, found, splits)
    return {part: paths for part, paths in splits.items() if paths}


def parts_by_name(name: str) -> list[str]:
    """Return the splits (train, dev, test) that the name of a file indicates."""
    return [part for part, pattern in _SPLIT_PATTERNS.items() if pattern.search(name)]


def unread_in(folder: Path, extensions: Collection[str]) -> list[str]:
    """Return the names of the files with these extensions that belong to no split; none if there is only one file."""
    if not folder.is_dir():
        return []
    files = [file for file in _files_in(folder) if extension_of(file) in extensions]
    return [file.name for file in files if len(files) > 1 and not parts_by_name(file.name)]


def files_like(file: Path, folder: Path) -> list[Path]:
    """Return the files of a folder that have the same ending as a file, packed or not, in order."""
    return [other for other in _files_in(folder) if extension_of(other) == extension_of(file)]


def _part_of_single(file: Path, measured: Collection[str] | None) -> str:
    """Return what a single file is: training text, to be split, or, if that is measured, what its name says."""
    by_name = parts_by_name(file.name)
    return by_name[0] if measured is not None and len(by_name) == 1 else "train"


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder in order, without hidden ones, which some systems put beside each file."""
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _no_files(folder: Path, extensions: Collection[str]) -> InputError:
    inside = sorted(
        below.name
        for below in folder.iterdir()
        if below.is_dir() and any(extension_of(file) in extensions for file in _files_in(below))
    )
    files = [file.name for file in _files_in(folder)]
    fix = f"; it has {listed(files, 3)}: rename what is data, or pass one file" if files else ""
    if inside:
        fix = f"; subfolders contain such files: use one of {listed(inside, 3)}"
    return InputError(
        f"{folder}: no file in the folder ends in {', '.join(sorted(extensions))} (or the same with .gz){fix}"
    )


def _no_training_file(folder: Path, files: Sequence[Path]) -> InputError:
    names = listed((file.name for file in files), 5)
    return InputError(
        f"{folder}: no file has `train` in its name (found {names}); add or rename one, or give a single file such "
        f"as {folder / files[0].name}, which is then split into train, dev and test"
    )


def _check_each_in_one(folder: Path, files: Sequence[Path], splits: Mapping[str, Sequence[Path]]) -> None:
    """Raise InputError for a file that would be read as two splits, or as none."""
    for file in files:
        _check_one_split(file)
        if not any(file in paths for paths in splits.values()):
            raise InputError(f"{folder}: {file.name} is not named as train, dev or test; remove or rename it")


def _check_one_split(file: Path) -> None:
    parts = parts_by_name(file.name)
    if len(parts) > 1:
        raise InputError(f"{file}: looks like {' and '.join(parts)} by its name; rename the file")


def extension_of(file: Path) -> str:
    """Return the ending of a file's name in small letters, without .gz: ".csv" of Tickets.CSV.gz."""
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower()
