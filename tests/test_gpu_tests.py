"""Tests that only a GPU runs do not fall behind: every run imports them, and their graphs own their memory."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from bench.summary import REASON
from tests.on_gpu import helpers
from tests.test_imports import ROOT

ON_GPU = sorted((ROOT / "tests" / "on_gpu").glob("*.py"))
CAPTURE = ROOT / "bench" / "device.py"  # clears cuBLAS's workspaces before and after


def uses(code: str, what: str) -> list[int]:
    """The lines that say `what`, a keyword of a call or the end of a dotted name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        keyword = isinstance(node, ast.keyword) and node.arg == what
        if keyword or (isinstance(node, ast.Attribute) and ast.unparse(node).endswith(what)):
            found.append(node.lineno if isinstance(node, ast.Attribute) else node.value.lineno)
    return found


def test_uses_are_seen():
    assert uses("pytest.skip('x', allow_module_level=True)", "allow_module_level") == [1]
    assert uses("a\nwith torch.cuda.graph(g): pass", "torch.cuda.graph") == [2]
    assert uses("'torch.cuda.graph'", "torch.cuda.graph") == []


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.stem)
def test_no_module_skips_itself(path):
    assert not uses(path.read_text("utf-8"), "allow_module_level"), (
        f"{path.name}: leave it out, conftest.py skips each test where there is no GPU"
    )


@pytest.mark.parametrize(
    "path", [*ON_GPU, *sorted((ROOT / "bench").glob("[!t]*.py"))], ids=lambda path: path.stem
)
def test_graphs_are_captured_in_one_place(path):
    assert path == CAPTURE or not uses(path.read_text("utf-8"), "torch.cuda.graph"), (
        f"{path.name}: take `captured` of bench/device.py, whose graphs own their workspaces"
    )


# Its own fixture takes the place of the one that skips where there is no GPU.
FAILS = """
import pytest

@pytest.fixture(autouse=True)
def _on_a_gpu():
    pass

def test_a():
    a = 1
    assert a == 2, "too small"
"""


def test_a_failure_is_explained_at_once(tmp_path):
    """A run that is stopped at its time limit prints no tracebacks at its end."""
    failing = tmp_path / "test_fails.py"
    failing.write_text(FAILS, "utf-8")
    options = ["-p", "tests.on_gpu.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, "-W", "default", "-v", str(failing)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    at_once, failures, _ = run.stdout.partition("= FAILURES =")
    assert failures, run.stdout + run.stderr
    assert f"{REASON}test_fails.py::test_a: AssertionError: too small" in at_once.splitlines()
    assert helpers.reason_of("worker gw3 crashed") == "worker gw3 crashed"
