"""Capturing a step as a CUDA graph, and replaying it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

SYNCHRONIZES = "called a synchronizing CUDA operation"  # the text of torch's debug mode

Step = Callable[[], Tensor]


class Capturer(Protocol):
    """Makes graphs; tests substitute their own."""

    def warm_up(self, run: Step) -> Tensor:
        """Run a step eagerly in the place where captures will happen."""
        ...

    def probe(self, run: Step) -> tuple[Tensor, str | None]:
        """Run a step eagerly; also return why it could not be captured, as far as running it shows."""
        ...

    def capture(self, run: Step) -> Step:
        """Record a step without running it; the result replays it and returns a new tensor of losses."""
        ...

    def release(self) -> None:
        """Wait for the replays under way: no graph captured so far will be replayed again."""
        ...


@contextmanager
def own_workspaces(clear: Callable[[], None]) -> Iterator[None]:
    """Have cuBLAS make new workspaces within the block, in the graph's own pool, and drop them afterwards.

    A graph holds only the address of a workspace that existed before: whoever then clears the workspaces
    (another graph, torch.compile's) frees memory that every replay writes to.
    """
    clear()
    try:
        yield
    finally:
        clear()


class CudaCapturer:
    """CUDA graphs that share one memory pool; warm-up and capture use one side stream.

    The results of a replay are copied out at once, so graphs that share memory may be replayed in any
    order, one after another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._anchor: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def warm_up(self, run: Step) -> Tensor:
        """Run on the side stream: cuBLAS makes a workspace per stream, and must not make it in a capture."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = run()
        current.wait_stream(self._stream)
        losses.record_stream(current)
        return losses

    def probe(self, run: Step) -> tuple[Tensor, str | None]:
        """Run while torch reports anything that waits for the device.

        A capture that fails in CUDA itself is hard to recover from; this finds nearly all such cases before.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                losses = self.warm_up(run)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [w for w in caught if SYNCHRONIZES in str(w.message)]
        for other in caught:
            if other not in waits and "ynchronization debug mode" not in str(other.message):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        if not waits:
            return losses, None
        return losses, f"the step waits for the device at {waits[0].filename}:{waits[0].lineno}"

    def capture(self, run: Step) -> Step:
        """Record a step into the shared pool. Raises what the step or CUDA raises, with the state restored."""
        current = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[self._index]
        random_state = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            self._open_pool()
            with own_workspaces(torch._C._cuda_clearCublasWorkspaces), self._capturing(graph):
                losses = run()
        except Exception as error:
            torch.cuda.set_stream(current)  # torch stays on the side stream if CUDA broke the capture off
            self._give_up_pool()
            generator.graphsafe_set_state(random_state)
            # Ending a broken capture raises too, and hides the original error.
            if "captur" in str(error).lower() and isinstance(error.__context__, Exception):
                raise error.__context__ from None
            raise

        def replay() -> Tensor:
            graph.replay()
            return losses.clone()

        return replay

    def release(self) -> None:
        """Wait for the replays under way: a graph must not be destroyed during a replay."""
        torch.cuda.synchronize(self._device)

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Any:
        # Other threads (such as a loader's, which pins memory) continue meanwhile.
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )

    def _open_pool(self) -> None:
        """Open the pool with a small graph that keeps it from phase to phase: a pool lives as long as a graph in it."""
        if self._anchor is not None:
            return
        self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self._capturing(graph):
            held = torch.zeros(1, dtype=torch.float32, device=self._device)
        self._anchor = (graph, held)

    def _give_up_pool(self) -> None:
        # torch would still count a capture that CUDA has broken off as under way.
        with suppress(RuntimeError, AttributeError, TypeError):
            torch._C._cuda_endAllocateToPool(self._index, self._pool)
        self._pool, self._anchor = None, None
