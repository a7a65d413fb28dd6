"""Configuration files in TOML or, as runs write them, JSON: keys are the flags of a command, without dashes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.files import json_text, reading
from mt2st_fast.numbers import is_whole
from mt2st_fast.runs.options import Option
from mt2st_fast.spelling import meant

MOST_SHOWN = 80  # characters of a value in a message
LARGEST = 2**63 - 1  # the largest integer in TOML and in most JSON readers
PATHS = ("data", "init", "out")


def read_config_file(path: Path, command: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return {name of an option: its value} from a command's file; `known` are the command's options by name.

    Raises InputError in one line that names the file, and the key where it is about one, for a file that cannot be
    read, a key that the command does not have, and a value that its option refuses.
    """
    by_key = {option.key: option for option in known.values()}
    found = {}
    for key, value in _parsed(path).items():
        if key not in by_key:
            hint = (
                meant(key, list(by_key)) or f"; the keys are the flags shown by mt2st-fast {command} --help"
            )
            if isinstance(value, dict):
                hint = "; put keys at the top level, not in a table such as [training]"
            raise InputError(f"{path}: {command} has no option {key!r}{hint}")
        option = by_key[key]
        try:
            found[option.name] = _as_taken(option, value)
            option.check(found[option.name], key)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return found


def _parsed(path: Path) -> dict[str, Any]:
    with reading(path) as file:
        content = file.read()
    kind, parsed = ("JSON", _json) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        # A path need not be UTF-8, neither on the command line nor here.
        return parsed(content.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    except InputError as error:  # of what is valid, but not meant here
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # invalid format, a too long number, or too deep nesting
        raise InputError(f"{path}: is not valid {kind} in UTF-8: {error}") from None


def _json(text: str) -> dict[str, Any]:
    found = json.loads(text, object_pairs_hook=_each_once)
    if not isinstance(found, dict):
        raise InputError(f"expected an object of keys and values, found {_as_written(found)}")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"{key} occurs twice; remove one")
        if value is None:  # JSON only: TOML has no null
            raise InputError(f"{key} is null; leave it out")
        found[key] = value
    return found


def _as_taken(option: Option, value: Any) -> Any:
    """Convert a value of the file to the type of the option. Raises InputError for another type, as the file has it."""
    taken = tuple(value) if option.kind is tuple and isinstance(value, list) else value
    if not option.takes(taken):
        raise InputError(f"{option.key} must be {option.due}, not {_as_written(value)}{_hint(option, value)}")
    if option.kind in (int, float) and abs(value) > LARGEST and is_whole(value):
        raise InputError(f"{option.key} must be at most {LARGEST}, not {value}")
    if option.name not in PATHS and any(map(_is_broken, value if isinstance(value, list) else [value])):
        raise InputError(f"{option.key} is not UTF-8; save the file as UTF-8")
    return float(value) if option.kind is float else taken


def _as_written(value: Any) -> str:
    """Write a value as a file has it, shortened."""
    if isinstance(value, dict):
        return "a table of keys"
    if isinstance(value, list):
        text = f"[{', '.join(map(_as_written, value))}]"
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _hint(option: Option, value: Any) -> str:
    """Say how to write the value that was probably meant; "" if it is unclear."""
    if option.kind in (int, float, bool) and isinstance(value, str):
        with suppress(ValueError):  # JSON has numbers and true as TOML does
            return f"; write {value} without quotes" if option.takes(json.loads(value)) else ""
    if option.kind is str and isinstance(value, bool | int | float):
        try:  # backward = false is not meant as "false"
            option.check(_as_written(value), option.key)
        except InputError as error:
            return f"; {error}"
        return f'; write "{_as_written(value)}"'
    if option.kind is tuple and isinstance(value, str):
        return f"; write {_as_written([name.strip() for name in value.split(',')])}" if value.strip() else ""
    return ""


def _is_broken(value: Any) -> bool:
    return isinstance(value, str) and any("\udc80" <= letter <= "\udcff" for letter in value)


def config_file(options: Mapping[str, Option], values: Mapping[str, Any]) -> bytes:
    """Return a file of values by the names of their options, in JSON; None is left out."""
    by_key = {each.key: values[name] for name, each in options.items() if values.get(name) is not None}
    return (json_text(by_key, indent=2) + "\n").encode("ascii")
