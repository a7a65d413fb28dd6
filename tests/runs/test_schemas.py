"""report.json, facts.json, against.json and compare.json have the keys and types that their schemas declare."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from mt2st_fast.runs.comparison_schema import Comparison
from mt2st_fast.runs.run_schema import Against, RunFacts, RunReport
from tests.cli.running import QUICK, run


def mistakes(value: Any, hint: Any, where: str = "") -> list[str]:
    """What a value of a JSON file has that its type does not allow, by place."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return []
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        required = {key for key, of_key in hints.items() if get_origin(of_key) is not NotRequired}
        keys = set(value) if isinstance(value, dict) else None
        if keys is None or not required <= keys <= set(hints):
            return [f"{where}: {sorted(keys or ())}, not {sorted(hints)}"]
        return [m for key in keys for m in mistakes(value[key], hints[key], f"{where}/{key}")]
    if origin is NotRequired:
        return mistakes(value, arguments[0], where)
    if origin in (Union, types.UnionType):
        each = [mistakes(value, argument, where) for argument in arguments]
        return [] if [] in each else each[0]
    if origin in (list, dict, Mapping) and not isinstance(value, dict if origin is not list else list):
        return [f"{where}: {value!r} is no {hint}"]
    if origin is list:
        return [m for i, item in enumerate(value) for m in mistakes(item, arguments[0], f"{where}/{i}")]
    if origin in (dict, Mapping):
        values = [m for key, item in value.items() for m in mistakes(item, arguments[1], f"{where}/{key}")]
        return values + [m for key in value for m in mistakes(key, arguments[0], f"{where}, the key {key}")]
    if origin is Literal:
        allowed = [a for argument in arguments for a in (get_args(argument) or (argument,))]
        return [] if value in allowed else [f"{where}: {value!r} is none of {allowed}"]
    kinds = (int, float) if hint is float else hint
    is_right = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    return [] if is_right else [f"{where}: {value!r} is no {hint}"]


def of_file(path: Path, schema: Any) -> dict[str, Any]:
    """The content of a file, which has exactly the keys and the types of its schema."""
    content: dict[str, Any] = json.loads(path.read_text())
    assert mistakes(content, schema) == []
    return content


def test_the_files_of_a_run_have_the_keys_of_their_schemas(treebank: str, tmp_path: Path) -> None:
    options = ["--data", treebank, *QUICK, "--aux", "xpos", "--against", "stl", "--out", str(tmp_path)]
    run("train", *options, "--strategy", "selector")
    report = of_file(tmp_path / "report.json", RunReport)
    assert report["chosen_parts"] is not None  # or its schema has not been checked
    of_file(tmp_path / "facts.json", RunFacts)
    of_file(tmp_path / "against.json", Against)


def test_the_file_of_a_comparison_has_the_keys_of_its_schema(treebank: str, tmp_path: Path) -> None:
    tuned = ["--tune", "2", "--engine", "fused,torch", "--strategies", "stl,switch", "--seeds", "1"]
    run("compare", "--data", treebank, *QUICK, *tuned, "--out", str(tmp_path))
    found = of_file(tmp_path / "compare.json", Comparison)
    assert found["tuning"]
    assert found["joint_differences"]


@pytest.mark.parametrize(
    "value",
    [
        {"q1": 1.0, "median": 2.0},
        {"q1": 1.0, "median": 2.0, "q3": "3"},
        {"q1": 1, "median": 2, "q3": 3, "q4": 4},
    ],
)
def test_a_missing_key_a_wrong_type_and_a_key_too_many_are_found(value: dict[str, Any]) -> None:
    from mt2st_fast.runs.comparison_schema import Spread

    assert mistakes(value, Spread)
    assert not mistakes({"q1": 1.0, "median": None, "q3": 3}, Spread)
