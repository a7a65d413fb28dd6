"""Which device is measured, the one line that says there is no GPU, and a run as a CUDA graph that owns its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mt2st_fast.training.engines.capturer import own_workspaces

NO_GPU = "no GPU: torch sees no CUDA device here, so nothing was {done}"
WARM_UPS = 3


def find(requested: str = "auto") -> torch.device:
    """The device by name; "auto" takes CUDA where there is one. Raises ValueError where it is missing."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested not in ("cpu", "cuda"):
        raise ValueError(f"device {requested} is unknown; there are auto, cpu, cuda")
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError(NO_GPU.format(done="measured"))
    return torch.device(requested)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear_workspaces() -> None:
    """Let go of the memory that cuBLAS works in, as other graphs and torch.compile's do."""
    torch._C._cuda_clearCublasWorkspaces()


class Replay:
    """A call replays the graph; `result` is what the captured run returned, written anew by every replay.

    It keeps the run, and with it every tensor that the graph reads or writes.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, run: Callable[[], Any], result: Any) -> None:
        self.result = result
        self._graph, self._run = graph, run

    def __call__(self) -> None:
        self._graph.replay()


def captured(
    run: Callable[[], Any],
    device: torch.device,
    prepare: Callable[[], object] = lambda: None,
    warm_ups: int = WARM_UPS,
) -> Replay:
    """`run` as a CUDA graph in a pool of its own, after a few runs on the stream that it is captured on.

    prepare: what has to be done before every run and is not captured. cuBLAS's workspaces are the graph's own: one from
    before would be freed by whoever clears them, and the replays would write into somebody else's memory.
    Raises what the run or CUDA raises.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            prepare()
            run()
    synchronize(device)
    prepare()
    graph = torch.cuda.CUDAGraph()
    with own_workspaces(clear_workspaces), torch.cuda.graph(graph, stream=stream):
        result = run()
    return Replay(graph, run, result)
