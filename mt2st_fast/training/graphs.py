"""Training steps as CUDA graphs: which step is captured, replayed or run eagerly, and why.

A step is a function from micro-steps (batches in any nesting) to the losses (K,). Steps whose inputs agree in
shape, dtype and place share one graph; inputs of a replay are copied into the buffers that the graph was
captured on. Whatever cannot be replayed exactly runs eagerly and says why.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mt2st_fast.training.sources import map_tensors

log = logging.getLogger("mt2st_fast")

WARM_UP_STEPS = 3  # eager steps of a signature before its capture; lazy state is made in them
MOST_GRAPHS = 8  # a phase's; each holds its inputs, and the driver's copy of its kernels
MOST_SIGNATURES = 256  # counted in a phase; batches of ever new shapes are not worth counting
ALIGNMENT_BYTES = 256
STAGES = 4  # steps that the host may run ahead of the copies to the device
SYNCHRONIZES = "called a synchronizing CUDA operation"  # what torch's debug mode says

Run = Callable[[], Tensor]


class UncapturableError(Exception):
    """A step cannot be captured; the message says why."""


class Capturer(Protocol):
    """What makes graphs; tests put their own in its place."""

    def warm_up(self, run: Run) -> Tensor:
        """Run a step eagerly where captures will happen."""
        ...

    def probe(self, run: Run) -> tuple[Tensor, str | None]:
        """Run a step eagerly; also why it could not be captured, as far as running it shows."""
        ...

    def capture(self, run: Run) -> Run:
        """Record a step without running it; the result replays it and returns losses of its own."""
        ...

    def release(self) -> None:
        """Wait for the replays under way: no graph that was captured so far will be replayed again."""
        ...


# --- what tells one graph from another -------------------------------------------------------------------


def signature(value: Any) -> Hashable:
    """Everything that a graph over `value` depends on, but for what the tensors hold.

    Raises UncapturableError for something that can be neither copied into a buffer nor compared.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise UncapturableError(f"inputs hold a tensor of layout {value.layout}")
        return ("tensor", tuple(value.shape), value.dtype, value.device.type, value.requires_grad)
    if isinstance(value, Mapping):
        return (type(value), tuple((key, signature(item)) for key, item in value.items()))
    if isinstance(value, tuple | list):
        return (type(value), tuple(map(signature, value)))
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return (type(value), value)
    raise UncapturableError(f"inputs hold {type(value).__name__}, which no buffer can stand for")


def optimizer_obstacle(
    optimizer: torch.optim.Optimizer, *, lr_changes: bool, loss_scaling: bool
) -> str | None:
    """Why a step with this optimizer cannot be captured, or None.

    A graph repeats the numbers that it was captured with: what changes from step to step has to be on the
    device. SGD without a changing learning rate has nothing that changes.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD and not all(group.get("capturable") for group in groups):
        advice = (
            "build it with capturable=True" if "capturable" in groups[0] else "take AdamW(capturable=True)"
        )
        return f"the optimizer {name} is not capturable: {advice}"
    if lr_changes and not all(isinstance(group["lr"], Tensor) for group in groups):
        return f"lr_decay changes the learning rate, which {name} holds as a number: give it lr=tensor on the device"
    if loss_scaling and not getattr(optimizer, "_step_supports_amp_scaling", False):
        return f"float16 loss scaling waits for the device with this {name}: build it with fused=True"
    return None


def optimizer_constants(optimizer: torch.optim.Optimizer) -> Hashable:
    """The numbers that a capture of `optimizer.step()` would freeze."""
    return tuple(
        (len(group["params"]), *(value for value in group.values() if isinstance(value, int | float | tuple)))
        for group in optimizer.param_groups
    )


# --- the inputs of a graph -------------------------------------------------------------------------------


class StaticInputs:
    """Tensors on `device`, nested like `value`, into which batches of the same signature are copied.

    What lies in host memory is gathered in one pinned stage and crosses in one transfer, however many
    targets a batch has. A stage is written again only when its last transfer is over.
    """

    def __init__(self, value: Any, device: torch.device) -> None:
        self._from_host: list[bool] = []
        host: list[Tensor] = []
        _each_tensor(value, lambda t: self._from_host.append(t.device.type == "cpu"))
        _each_tensor(value, lambda t: host.append(t) if t.device.type == "cpu" else None)
        spans, n_bytes = _spans(host)
        pinned = device.type == "cuda"
        self._block = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self._stages = [
            _Stage.make(torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned), host, spans)
            for _ in range(STAGES if pinned else 1)
            if host
        ]
        self._next = 0
        views = iter(_views(self._block, host, spans))
        self._device_buffers: list[Tensor] = []
        self.value = map_tensors(value, lambda t: self._buffer(t, views, device))

    def _buffer(self, like: Tensor, views: Iterator[Tensor], device: torch.device) -> Tensor:
        if like.device.type == "cpu":
            return next(views)
        buffer = torch.empty(like.shape, dtype=like.dtype, device=device)
        self._device_buffers.append(buffer)
        return buffer

    def copy_from(self, value: Any) -> None:
        """Take over the numbers of a batch of the same signature, without waiting for the device."""
        tensors: list[Tensor] = []
        _each_tensor(value, tensors.append)
        host = [t for t, from_host in zip(tensors, self._from_host, strict=True) if from_host]
        on_device = [t for t, from_host in zip(tensors, self._from_host, strict=True) if not from_host]
        if host:
            stage = self._stages[self._next]
            self._next = (self._next + 1) % len(self._stages)
            stage.fill(host)
            self._block.copy_(stage.block, non_blocking=True)
            stage.transferring(self._block.device)
        if on_device:
            torch._foreach_copy_(self._device_buffers, on_device, non_blocking=True)


class _Stage:
    """Host memory for one step's inputs on their way to the device."""

    def __init__(self, block: Tensor, views: list[Tensor]) -> None:
        self.block, self._views = block, views
        self._transferred: torch.cuda.Event | None = None

    @classmethod
    def make(cls, block: Tensor, like: list[Tensor], spans: list[tuple[int, int]]) -> _Stage:
        return cls(block, _views(block, like, spans))

    def fill(self, tensors: list[Tensor]) -> None:
        if self._transferred is not None:
            self._transferred.synchronize()
        for view, tensor in zip(self._views, tensors, strict=True):
            view.copy_(tensor)

    def transferring(self, device: torch.device) -> None:
        if device.type == "cuda":
            self._transferred = self._transferred or torch.cuda.Event()
            self._transferred.record(torch.cuda.current_stream(device))


def _each_tensor(value: Any, visit: Callable[[Tensor], object]) -> None:
    def visited(tensor: Tensor) -> Tensor:
        visit(tensor)
        return tensor

    map_tensors(value, visited)


def _spans(tensors: list[Tensor]) -> tuple[list[tuple[int, int]], int]:
    """(first byte, one past the last) of each tensor in one block, and the size of the block."""
    spans, end = [], 0
    for tensor in tensors:
        first = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end = first + tensor.numel() * tensor.element_size()
        spans.append((first, end))
    return spans, end


def _views(block: Tensor, like: list[Tensor], spans: list[tuple[int, int]]) -> list[Tensor]:
    return [
        block[first:last].view(tensor.dtype).view(tensor.shape)
        for tensor, (first, last) in zip(like, spans, strict=True)
    ]


# --- which step is captured ------------------------------------------------------------------------------


class _Graph(NamedTuple):
    inputs: StaticInputs
    replay: Run


class GraphedSteps:
    """Runs the steps of one phase after another, as replays where that gives what the eager step gives.

    step: the eager step. fingerprint: what a graph depends on beside the inputs (numbers of the optimizer,
    frozen parameters); where it changes, another graph is made. after_failure: puts back what a capture that
    was broken off has touched.
    `verdict` says how the phase runs: "captured", "captured, except where ..." or "not captured: ...".
    """

    def __init__(
        self,
        step: Callable[[Any], Tensor],
        device: torch.device,
        capturer: Capturer,
        fingerprint: Callable[[], Hashable],
        after_failure: Callable[[], None],
    ) -> None:
        self._step, self._device, self._capturer = step, device, capturer
        self._fingerprint, self._after_failure = fingerprint, after_failure
        self._logged: set[str] = set()
        self.enter_phase(None)

    def enter_phase(self, obstacle: str | None) -> None:
        """Let go of all graphs; with an `obstacle` every step of the phase is eager."""
        self._capturer.release()
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: Counter[Hashable] = Counter()
        self._declined: set[Hashable] = set()
        self._reasons: list[str] = []
        self._obstacle = obstacle
        self.verdict = f"not captured: no batch shape has come more than {WARM_UP_STEPS} times"
        if obstacle is not None:
            self._give_reason(obstacle)

    def __call__(self, micro_steps: Any) -> Tensor:
        """Losses (K,) of one step."""
        if self._obstacle is not None:
            return self._step(micro_steps)
        try:
            key = (signature(micro_steps), self._fingerprint())
        except UncapturableError as error:
            self._give_reason(str(error))
            return self._step(micro_steps)
        graph = self._graphs.get(key)
        if graph is not None:
            graph.inputs.copy_from(micro_steps)
            return graph.replay()
        if key in self._declined or not self._has_room(key):
            return self._step(micro_steps)
        self._seen[key] += 1
        if self._seen[key] > WARM_UP_STEPS:
            return self._captured(key, micro_steps)
        if self._seen[key] < WARM_UP_STEPS:
            return self._capturer.warm_up(lambda: self._step(micro_steps))
        losses, obstacle = self._capturer.probe(lambda: self._step(micro_steps))
        if obstacle is not None:
            self._decline(key, obstacle)
        return losses

    def _has_room(self, key: Hashable) -> bool:
        if len(self._graphs) >= MOST_GRAPHS:
            self._give_reason(f"a phase holds {MOST_GRAPHS} graphs at most")
            return False
        return key in self._seen or len(self._seen) < MOST_SIGNATURES

    def _captured(self, key: Hashable, micro_steps: Any) -> Tensor:
        inputs = StaticInputs(micro_steps, self._device)
        inputs.copy_from(micro_steps)
        try:
            replay = self._capturer.capture(lambda: self._step(inputs.value))
        # Any error: an encoder is the user's code. If it is no matter of capturing, the eager step raises it.
        except Exception as error:
            # Random numbers go on from a fresh state, which the graphs so far do not share: make them again.
            self._capturer.release()
            self._graphs.clear()
            self._after_failure()
            self._decline(key, f"{type(error).__name__}: {_first_line(error)}")
            return self._step(micro_steps)
        self._graphs[key] = _Graph(inputs, replay)
        self._update_verdict()
        return replay()

    def _decline(self, key: Hashable, reason: str) -> None:
        self._declined.add(key)
        self._give_reason(reason)

    def _give_reason(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)
            self._update_verdict()
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("a training step is not captured as a CUDA graph: %s", reason)

    def _update_verdict(self) -> None:
        why = "; ".join(self._reasons)
        if not self._graphs:
            self.verdict = f"not captured: {why}"
        else:
            self.verdict = f"captured, except where: {why}" if why else "captured"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


# --- capturing on a GPU ----------------------------------------------------------------------------------


class CudaCapturer:
    """CUDA graphs that share one memory pool; warm-up and capture on one side stream.

    Whatever a replay leaves behind is copied out at once, so graphs that share memory may be replayed in any
    order, one after another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._anchor: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def warm_up(self, run: Run) -> Tensor:
        """Run on the side stream: cuBLAS makes a workspace a stream, and must not make it in a capture."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = run()
        current.wait_stream(self._stream)
        losses.record_stream(current)
        return losses

    def probe(self, run: Run) -> tuple[Tensor, str | None]:
        """Run with torch's eye on whatever waits for the device.

        A capture that fails in CUDA itself is hard to recover from; this finds nearly all of those before.
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

    def capture(self, run: Run) -> Run:
        """Record a step into the shared pool. Raises what the step or CUDA raises; all is as before then."""
        current = torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[self._index]
        random_state = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            self._open_pool()
            with self._capturing(graph):
                losses = run()
        except Exception as error:
            torch.cuda.set_stream(current)  # torch stays on the side stream where CUDA broke the capture off
            self._give_up_pool()
            generator.graphsafe_set_state(random_state)
            # Ending a broken capture raises as well, and hides what broke it.
            if "captur" in str(error).lower() and isinstance(error.__context__, Exception):
                raise error.__context__ from None
            raise

        def replay() -> Tensor:
            graph.replay()
            return losses.clone()

        return replay

    def release(self) -> None:
        """Wait for the replays under way: a graph must not be destroyed under them."""
        torch.cuda.synchronize(self._device)

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Any:
        # Other threads (a loader's, that pins memory) go on meanwhile.
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )

    def _open_pool(self) -> None:
        """A pool lives as long as a graph in it: a small one holds it from phase to phase."""
        if self._anchor is not None:
            return
        self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self._capturing(graph):
            held = torch.zeros(1, dtype=torch.float32, device=self._device)
        self._anchor = (graph, held)

    def _give_up_pool(self) -> None:
        # torch goes on counting a capture that CUDA has broken off as under way.
        with suppress(RuntimeError, AttributeError, TypeError):
            torch._C._cuda_endAllocateToPool(self._index, self._pool)
        self._pool, self._anchor = None, None
