"""A backend is a folder: found without another line, chosen with a reason, never in silence."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from mt2st_fast.kernels import OPS
from mt2st_fast.kernels.machine.registry import Op


@pytest.fixture
def op(tmp_path, monkeypatch):
    """An op of its own with a backend for the meta device, whose kernels must not be loaded to choose."""
    package = tmp_path / "somewhere"
    (package / "on_stub").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "on_stub" / "__init__.py").write_text(
        textwrap.dedent("""
            import torch
            from mt2st_fast.kernels.machine.registry import Backend
            BACKEND = Backend("stub", package="torch", devices=("meta",), dtypes=(torch.float32,))
        """)
    )
    (package / "on_stub" / "part.py").write_text("ANSWER = 42")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mt2st_fast.kernels.machine.registry.OPS", {})
    yield Op("stub op", "somewhere")
    for name in [name for name in sys.modules if name.startswith("somewhere")]:
        del sys.modules[name]


def test_a_folder_is_a_backend(op):
    assert op.backend_names == ("reference", "stub")
    assert op.choose("meta", torch.float32).name == "stub"
    assert "somewhere.on_stub.part" not in sys.modules
    assert op.load("stub", "part").ANSWER == 42


@pytest.mark.parametrize(("value", "stops"), [("1", True), ("0", False), ("", False)])
def test_kernels_that_run_only_compiled_are_not_chosen_where_nothing_compiles(value, stops, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    for op in OPS.values():
        obstacle = op.backends["numba"].obstacle("cpu", torch.float32)
        assert obstacle == ("NUMBA_DISABLE_JIT is set, and its kernels run only compiled" if stops else None)


def test_it_says_what_it_cannot_serve(op):
    assert op.choose("cpu", torch.float32).reason == "no kernels of stub op run on cpu"
    other = op.choose("meta", torch.float64)
    assert (other.name, other.reason) == ("reference", "stub cannot run: it has no kernel for torch.float64")
    with pytest.raises(
        RuntimeError, match="backend=stub cannot be honoured: it runs on meta, but the tensors"
    ):
        op.choose("cpu", torch.float32, "stub")
    with pytest.raises(ValueError, match="backend=metal is unknown; available: auto, reference, stub"):
        op.choose("cpu", torch.float32, "metal")


def test_every_op_has_its_room():
    assert set(OPS) == {"heads", "bags", "context", "convolution", "recurrent", "step"}
    assert all({"numba"} <= set(op.backends) <= {"numba", "triton"} for op in OPS.values())
