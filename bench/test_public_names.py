"""The benchmarks only use the library's public names."""

from __future__ import annotations

import ast

import pytest

from bench.environment import ROOT

# Public methods of NamedTuples in spite of the underscore.
OF_NAMED_TUPLES = {"_asdict", "_replace", "_fields", "_make"}
# torch has no public name for clearing cuBLAS's workspaces, which frees memory that a graph uses.
OF_TORCH = {"_C", "_cuda_clearCublasWorkspaces"}
FILES = sorted((ROOT / "bench").rglob("*.py"))


def privates_of(code: str) -> list[str]:
    """Return private attributes of other objects (not self or cls), and private names imported from the library."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.Attribute)
            and _is_private(node.attr)
            and node.attr not in OF_NAMED_TUPLES | OF_TORCH
        ):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mt2st_fast":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"line {node.lineno}: {name}" for name in names if _is_private(name)]
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_private_names_are_seen():
    code = "from mt2st_fast.training.trainer import _run\ntrainer._train()\nself._own\npoint._replace(x=1)"
    assert privates_of(code) == ["line 1: _run", "line 2: ._train"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_benchmarks_use_public_names(path):
    assert privates_of(path.read_text("utf-8")) == []
