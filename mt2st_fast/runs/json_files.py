"""Read and write the JSON files of runs and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text, reading, write_atomically


def json_bytes(content: Mapping[str, object]) -> bytes:
    """Return the content of a JSON file; numbers that are not finite become null."""
    return json_text(content, indent=2).encode()


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Replace a JSON file, whole or not at all."""
    write_atomically(path, json_bytes(content))


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file. Raises InputError where it cannot be read, or is no JSON: then `remedy` says what to do."""
    with reading(path) as file:
        content = file.read()
    try:
        return json.loads(content)
    except ValueError:
        raise InputError(f"{path}: is damaged; {remedy}") from None
