"""Which file of a folder is of which split."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mt2st_fast.errors import InputError

# A split's word must begin a word of the file name: `latest.txt` is no test file.
_SPLIT_PATTERNS = {
    part: re.compile(rf"(?<![a-z])(?:{words})", re.IGNORECASE)
    for part, words in {"train": "train", "dev": "dev|valid|val(?![a-z])", "test": "test"}.items()
}


def find_splits(path: Path, extensions: Collection[str]) -> dict[str, Path]:
    """The file of each split: {"train": a file}, with "dev" and "test" where a folder has them.

    A file is taken as it is. In a folder, files with one of the extensions (or the same and .gz) are told
    apart by `train`, `dev` or `valid`, and `test` in their names; a single such file is the training file
    whatever its name. Raises InputError where nothing or too much fits.
    """
    if not path.is_dir():
        return {"train": path}
    files = sorted(file for file in path.iterdir() if file.is_file() and _extension(file) in extensions)
    if not files:
        raise InputError(
            f"{path}: no file in the folder ends in {', '.join(sorted(extensions))} (or that and .gz)"
        )
    if len(files) == 1:
        return {"train": files[0]}
    splits = {}
    for file in files:
        _check_one_split(file)
    for part, pattern in _SPLIT_PATTERNS.items():
        matches = [file for file in files if pattern.search(file.name)]
        if len(matches) > 1:
            names = ", ".join(file.name for file in matches)
            raise InputError(f"{path}: several files look like {part} ({names}); leave one, or name one file")
        if matches:
            splits[part] = matches[0]
    if "train" not in splits:
        names = ", ".join(file.name for file in files[:5])
        raise InputError(
            f"{path}: no file has `train` in its name (found {names}); rename one, or name one file"
        )
    return splits


def find_parts(path: Path, extensions: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split, as `find_splits` finds them, of a treebank as it is released.

    The same text may lie there in files of several extensions, of which the first in the order counts; a split may
    come in parts (train-a, train-b), which are read in the order of their names. Where there is no training text, that
    of dev, or else of test, stands for it.
    """
    if not path.is_dir():
        return {"train": [path]}
    files = sorted(file for file in path.iterdir() if file.is_file())
    for extension in extensions:
        if found := [file for file in files if _extension(file) == extension]:
            if len(found) == 1:
                return {"train": found}
            splits = {
                part: [file for file in found if pattern.search(file.name)]
                for part, pattern in _SPLIT_PATTERNS.items()
            }
            if not splits["train"]:  # a treebank for testing alone is text like any other
                splits["train"] = splits.pop("dev" if splits["dev"] else "test")
            if splits["train"]:
                _check_each_in_one(path, found, splits)
                return {part: paths for part, paths in splits.items() if paths}
            break
    return {part: [file] for part, file in find_splits(path, extensions).items()}


def _check_each_in_one(folder: Path, files: Sequence[Path], splits: Mapping[str, Sequence[Path]]) -> None:
    """Raises InputError for a file that would be read as two splits, or as none."""
    for file in files:
        _check_one_split(file)
        if not any(file in paths for paths in splits.values()):
            raise InputError(
                f"{folder}: {file.name} is neither train, dev nor test by its name; take it out or rename it"
            )


def split_of(file: Path) -> str | None:
    """The split that a file's name says."""
    return next((part for part, pattern in _SPLIT_PATTERNS.items() if pattern.search(file.name)), None)


def _check_one_split(file: Path) -> None:
    parts = [part for part, pattern in _SPLIT_PATTERNS.items() if pattern.search(file.name)]
    if len(parts) > 1:
        raise InputError(f"{file}: looks like {' and '.join(parts)} by its name; rename it")


def _extension(file: Path) -> str:
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower()
