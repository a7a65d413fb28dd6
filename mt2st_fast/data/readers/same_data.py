"""Whether two specs are the same data, however their paths are spelled."""

from pathlib import Path

from mt2st_fast.data.readers.files import files_like, parts_by_name
from mt2st_fast.files import at_home


def located(spec: str) -> str:
    """Return `KIND:PATH` with the whole path, which is the same from any folder; a spec without a path as it is."""
    kind, separator, path = spec.partition(":")
    return f"{kind}:{at_home(path).resolve()}" if separator and path else spec


def same_data(spec: str, other: str) -> bool:
    """Whether two specs are one file or one folder for the same reader, or a folder and the only file of its kind in
    it.
    """
    (kind, _, path), (other_kind, _, other_path) = spec.partition(":"), other.partition(":")
    if kind != other_kind or not path or not other_path:
        return spec == other
    one, two = at_home(path), at_home(other_path)
    return _same(one, two) or _same(_alone(one, two), two) or _same(one, _alone(two, one))


def is_training_file_of(spec: str, folder_spec: str) -> bool:
    """Whether a spec is a file in the folder of another spec, and training text by its name."""
    (kind, _, path), (folder_kind, _, folder) = spec.partition(":"), folder_spec.partition(":")
    if kind != folder_kind or not path or not folder or "train" not in parts_by_name(Path(path).name):
        return False
    return at_home(path).is_file() and _same(at_home(path).parent, at_home(folder))


def _same(one: Path, two: Path) -> bool:
    """Whether both paths lead to one place, by links, too."""
    try:
        return one.samefile(two)
    except OSError:  # one of them is gone
        return one.resolve() == two.resolve()


def _alone(folder: Path, file: Path) -> Path:
    """Return the only file in a folder that has the same ending as a file, else the path as it is."""
    if not folder.is_dir() or not file.is_file():
        return folder
    files = files_like(file.resolve(), folder)
    return files[0] if len(files) == 1 else folder
