"""The measured device, the one-line message without a GPU, and runs as CUDA graphs that own their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mt2st_fast.training.engines.graphs.capturer import own_workspaces

NO_GPU = "no GPU: torch finds no CUDA device, so nothing was {done}"
WARM_UPS = 3


def find(requested: str) -> torch.device:
    """Return the device by name; "auto" takes CUDA where it is available.

    Where it is missing, print so and end the program: with exit code 0 if there is no GPU, 2 for an unknown name.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested not in ("cpu", "cuda"):
        print(f"device {requested} is unknown; available: auto, cpu, cuda")
        raise SystemExit(2)
    if requested == "cuda" and not torch.cuda.is_available():
        print(NO_GPU.format(done="measured"))
        raise SystemExit(0)
    return torch.device(requested)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear_workspaces() -> None:
    """Free cuBLAS's workspaces, as other graphs and those of torch.compile do."""
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 (torch has no public name for it)


class Replay:
    """A captured graph; a call replays it. `result` is what the captured run returned, overwritten by every replay.

    It keeps the run alive, and with it every tensor that the graph reads or writes.
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
    """Capture `run` as a CUDA graph in its own memory pool, after some warm-up runs on the same stream.

    prepare: called before every run and not captured. The graph owns cuBLAS's workspaces: earlier ones could be freed
    by any code that clears them, and the replays would then write into memory of others. Raises what the run or CUDA
    raises.
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
