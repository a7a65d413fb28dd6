"""A backend is a folder: found without another line, chosen with a reason, never in silence."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from mt2st_fast.kernels import ROOMS
from mt2st_fast.kernels.machine.registry import Room


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A room of its own with a backend for the meta device, whose kernels must not be loaded to choose."""
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
    monkeypatch.setattr("mt2st_fast.kernels.machine.registry.ROOMS", {})
    yield Room("stub op", "somewhere")
    for name in [name for name in sys.modules if name.startswith("somewhere")]:
        del sys.modules[name]


def test_a_folder_is_a_backend(room):
    assert room.names == ("reference", "stub")
    assert room.choose("meta", torch.float32).name == "stub"
    assert "somewhere.on_stub.part" not in sys.modules
    assert room.load("stub", "part").ANSWER == 42


def test_it_says_what_it_cannot_serve(room):
    assert room.choose("cpu", torch.float32).reason == "no kernels of stub op run on cpu"
    other = room.choose("meta", torch.float64)
    assert (other.name, other.reason) == ("reference", "stub cannot run: it has no kernel for torch.float64")
    with pytest.raises(
        RuntimeError, match="backend=stub cannot be honoured: it runs on meta, but the tensors"
    ):
        room.choose("cpu", torch.float32, "stub")
    with pytest.raises(ValueError, match="backend=metal is unknown; available: auto, reference, stub"):
        room.choose("cpu", torch.float32, "metal")


def test_every_op_has_its_room():
    assert set(ROOMS) == {"heads", "bags", "context", "step"}
    assert all({"numba"} <= set(room.backends) <= {"numba", "triton"} for room in ROOMS.values())
