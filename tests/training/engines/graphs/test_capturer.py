"""What makes CUDA graphs, with CUDA itself in its place: tests/on_gpu/test_trainer.py has the real one."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch

from mt2st_fast.training.engines.graphs.capturer import CudaCapturer


@pytest.mark.parametrize("error", [None, RuntimeError("broken off")], ids=["captured", "broken off"])
def test_workspaces_are_cleared_right_before_and_right_after_a_capture(monkeypatch, error):
    """A graph does not own a workspace that was there before, and nobody may keep one that it owns."""
    calls = []

    @contextmanager
    def capturing(*_, **__):
        calls.append("begin")
        try:
            yield
        finally:
            calls.append("end")

    def step():
        calls.append("step")
        if error is not None:
            raise error
        return torch.ones(1)

    for name in ("Stream", "CUDAGraph", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "default_generators", [MagicMock()])
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("clear"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", MagicMock(), raising=False)
    monkeypatch.setattr(CudaCapturer, "_open_pool", lambda capturer: None)  # captures nothing of cuBLAS
    capturer = CudaCapturer(torch.device("cuda:0"))
    if error is None:
        capturer.capture(step)
    else:
        with pytest.raises(RuntimeError, match="broken off"):
            capturer.capture(step)
    assert calls == ["clear", "begin", "step", "end", "clear"]
