"""Launches by the handle of what was compiled before, and by Triton's own launcher where nobody knows the handles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mt2st_fast.kernels.machine import launch


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True
    device = SimpleNamespace(index=0)


class Kernel:
    def __init__(self):
        self.by_door, self.by_handle = [], []

    def __getitem__(self, grid):
        def compile_and_run(*args, **options):
            self.by_door.append((grid, args, options))
            return SimpleNamespace(
                run=lambda *args: self.by_handle.append(args), function=7, packed_metadata=None
            )

        return compile_and_run


def test_types_are_read_from_declarations():
    found = launch.types_of("*bf16 p_x p_w", "i32:16 D", "i64 address_0")
    assert found == {"p_x": "*bf16", "p_w": "*bf16", "D": "i32:16", "address_0": "i64"}


@pytest.mark.parametrize(
    ("backend", "architecture", "family"),
    [
        ("cuda", 80, "ampere"),
        ("cuda", 89, "ampere"),
        ("cuda", 90, "hopper"),
        ("cuda", 100, "blackwell"),
        ("cuda", 120, "blackwell"),
        ("hip", "gfx942", "amd"),
    ],
)
def test_families_are_told_apart(backend, architecture, family):
    assert launch.family_of(backend, architecture) == family
    assert family in launch.FAMILIES
    assert ("maxnreg" in launch.roomy_options(4, family)) == (family == "blackwell")


@pytest.mark.parametrize(
    ("found", "hip", "by_handle"),
    [
        ("3.6.0", None, 2),
        ("3.7.1", None, 2),
        ("3.8.0", None, 0),
        ("4.0.0+git", None, 0),
        ("3.7.1", "7.0", 0),  # AMD's launcher is another
    ],
)
def test_only_known_handles_are_used(found, hip, by_handle, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", found)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 3, raising=False)
    launch.has_known_handles.cache_clear()
    kernel = Kernel()
    variant = launch.Variant(kernel, {"BLOCK": 8}, {"num_warps": 4})
    tensor = torch.zeros(64).as_subclass(OnDevice)
    for n in (1, 2, 3):
        variant.launch(n, [tensor], [n])
    launch.has_known_handles.cache_clear()
    assert len(kernel.by_handle) == by_handle
    assert len(kernel.by_door) == 3 - by_handle
    if by_handle:
        assert kernel.by_handle[-1][:5] == (3, 1, 1, 3, 7)
        assert kernel.by_handle[-1][-3:] == (tensor.data_ptr(), 3, 8)
