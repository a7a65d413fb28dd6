"""Who computes the heads: each peer runs all of them, from gradients that are None to gradients that are set.

The speed of `ours` is compared with `eager`; `gemms` is no peer but the floor that none can go under.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.accuracy import check_as_accurate_as_torch, check_same_computation
from bench.cases import Direction, HeadInputs
from bench.device import synchronize
from bench.interleaved import Candidate
from mt2st_fast import Classification, MultiTaskHeads
from mt2st_fast.kernels import choose_backend, multitask_loss
from mt2st_fast.kernels.heads import reference

TRUTH_BYTES = 4 << 30  # of float64 logits at a time


@dataclass(frozen=True)
class Peer:
    """One way to compute the heads, ready to run; weights and biases are whole or one a head.

    own_gradients: its gradients lie where a CUDA graph writes them, and must stay there.
    """

    name: str
    run: Callable[[], Tensor]
    features_nd: Tensor
    weights: Sequence[Tensor] = ()
    biases: Sequence[Tensor] = ()
    own_gradients: bool = False

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Everything that gets a gradient."""
        return (self.features_nd, *self.weights, *self.biases)

    def clear(self) -> None:
        """Forget all gradients."""
        if not self.own_gradients:
            for tensor in self.leaves:
                tensor.grad = None

    def candidate(self) -> Candidate:
        """What is timed: the clearing is not, for it is the optimizer's."""
        return Candidate(self.run, self.clear)

    def results(self) -> dict[str, Tensor]:
        """The total of a fresh run and, where it ran backward, the gradients in the packed layout."""
        self.clear()
        if self.own_gradients:
            for tensor in self.leaves:
                tensor.grad.fill_(float("nan"))  # type: ignore[union-attr]
        results = {"total": self.run().detach()}
        if self.features_nd.grad is not None:
            results["d_features"] = self.features_nd.grad
            results["d_weight"] = torch.cat([weight.grad for weight in self.weights])  # type: ignore[misc]
            results["d_bias"] = torch.cat([bias.grad for bias in self.biases])  # type: ignore[misc]
        return results


Builder = Callable[[HeadInputs, Direction], Peer]


def ours(inputs: HeadInputs, direction: Direction) -> Peer:
    """The fused op on packed parameters."""
    features_nd, weight_sd, bias_s = map(_leaf, (inputs.features_nd, inputs.weight_sd, inputs.bias_s))
    task_weights_k = torch.ones(len(inputs.layout), device=features_nd.device)

    def total() -> Tensor:
        out = multitask_loss(features_nd, weight_sd, bias_s, inputs.targets, task_weights_k, inputs.layout)
        return out.total

    return Peer("ours", _in(direction, total), features_nd, [weight_sd], [bias_s])


def ours_graph(inputs: HeadInputs, direction: Direction) -> Peer:
    """`ours`, captured in a CUDA graph and replayed."""
    return _graphed("ours_graph", ours(inputs, direction))


def heads_module(inputs: HeadInputs, direction: Direction) -> Peer:
    """MultiTaskHeads: the fused op on one nn.Linear a task, packed in every step."""
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)
    names = inputs.layout.names
    tasks = {name: Classification(spec.size) for name, spec in zip(names, inputs.layout.heads, strict=True)}
    heads = MultiTaskHeads.from_modules(dict(zip(names, linears, strict=True)), tasks, names[0])
    targets = dict(zip(names, inputs.targets, strict=True))
    weights_k = torch.ones(len(names), device=features_nd.device)

    def total() -> Tensor:
        return heads(features_nd, targets, weights_k).total

    return _with_linears("heads_module", _in(direction, total), features_nd, linears)


def eager(inputs: HeadInputs, direction: Direction) -> Peer:
    """One nn.Linear and one F.cross_entropy a task, summed: the loop that most people have."""
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return _sum_of_losses(features_nd, linears, inputs.targets)

    return _with_linears("eager", _in(direction, total), features_nd, linears)


def eager_graph(inputs: HeadInputs, direction: Direction) -> Peer:
    """`eager`, captured in a CUDA graph and replayed: what the graph alone is worth."""
    return _graphed("eager_graph", eager(inputs, direction))


def compiled(inputs: HeadInputs, direction: Direction) -> Peer:
    """torch.compile of what `eager` does."""
    # Compiled code is kept by code object: without this the next case would find shapes of the last one,
    # go over to dynamic shapes, and after eight of them back to eager.
    torch.compiler.reset()
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)
    loss = torch.compile(_sum_of_losses, dynamic=False, fullgraph=True)

    def total() -> Tensor:
        return loss(features_nd, linears, inputs.targets)

    return _with_linears("compiled", _in(direction, total), features_nd, linears)


def linear_cross_entropy(inputs: HeadInputs, direction: Direction) -> Peer:
    """torch.nn.functional.linear_cross_entropy for every head, summed."""
    return _a_head(
        "linear_cross_entropy",
        inputs,
        direction,
        lambda x, linear, y: F.linear_cross_entropy(x, linear.weight, y, linear_bias=linear.bias),
    )


def liger(inputs: HeadInputs, direction: Direction) -> Peer:
    """Liger-Kernel's fused linear cross-entropy for every head, summed."""
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return _a_head("liger", inputs, direction, lambda x, linear, y: loss(linear.weight, x, y, linear.bias))


def cut_cross_entropy(inputs: HeadInputs, direction: Direction) -> Peer:
    """Apple's cut-cross-entropy for every head, summed."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return _a_head(
        "cut_cross_entropy",
        inputs,
        direction,
        lambda x, linear, y: loss(x, linear.weight, y, bias=linear.bias),
    )


def gemms(inputs: HeadInputs, direction: Direction) -> Peer:
    """The three bare GEMMs of the packed layout (one, forward): no loss, no gradients, the floor."""
    features_nd, weight_sd = inputs.features_nd, inputs.weight_sd
    if features_nd.is_cuda:
        weight_ds = weight_sd.t()

        def run() -> Tensor:
            logits_ns = torch.mm(features_nd, weight_ds)
            if direction == "forward+backward":
                torch.mm(logits_ns, weight_sd)
                torch.mm(logits_ns.t(), features_nd)
            return logits_ns

    else:
        features_dn = features_nd.t()

        def run() -> Tensor:
            logits_sn = torch.mm(weight_sd, features_dn)
            if direction == "forward+backward":
                torch.mm(logits_sn.t(), weight_sd)
                torch.mm(logits_sn, features_nd)
            return logits_sn

    return Peer("gemms", run, features_nd)


BUILDERS: dict[str, Builder] = {
    "eager": eager,
    "compiled": compiled,
    "linear_cross_entropy": linear_cross_entropy,
    "liger": liger,
    "cut_cross_entropy": cut_cross_entropy,
    "eager_graph": eager_graph,
    "ours": ours,
    "ours_graph": ours_graph,
    "heads_module": heads_module,
    "gemms": gemms,
}
OURS = ("ours", "ours_graph", "heads_module")
ON_GPU_ONLY = {
    "liger": "liger_kernel",
    "cut_cross_entropy": "cut_cross_entropy",
    "eager_graph": None,
    "ours_graph": None,
}


def builders(device: torch.device) -> dict[str, Builder]:
    """The peers of a kind of device, floor included."""
    return {
        name: build for name, build in BUILDERS.items() if device.type == "cuda" or name not in ON_GPU_ONLY
    }


def obstacle(name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a peer cannot run here, or None."""
    device = device or torch.device("cpu")
    if name in OURS:
        choice = choose_backend(device, dtype)
        fused = "triton" if device.type == "cuda" else "numba"
        return None if choice.name == fused else f"the fused op would run as {choice.name}: {choice.reason}"
    if (
        name == "compiled"
        and device.type == "cpu"
        and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    ):
        return "torch.compile needs a C++ compiler; install g++"
    if name == "linear_cross_entropy" and not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy"
    package = ON_GPU_ONLY.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    return None


class Check:
    """Holds our code to the accuracy rule, and a peer to computing the same thing, on one case."""

    def __init__(self, inputs: HeadInputs, direction: Direction) -> None:
        self._truth = truth(inputs, direction)
        by_torch = eager(inputs, direction)
        self._by_torch = {key: value.clone() for key, value in by_torch.results().items()}

    def __call__(self, peer: Peer) -> None:
        """Raises InaccurateError; the bare GEMMs have no result to check."""
        if peer.name == "gemms":
            return
        if peer.name in OURS:
            check_as_accurate_as_torch(peer.name, peer.results(), self._by_torch, self._truth)
        else:
            check_same_computation(peer.name, peer.results(), self._truth)
        peer.clear()


def check(peer: Peer, inputs: HeadInputs, direction: Direction) -> None:
    """`Check` for a single peer."""
    Check(inputs, direction)(peer)


def truth(inputs: HeadInputs, direction: Direction) -> dict[str, Tensor]:
    """What `Peer.results` should be, by the reference in float64, a chunk of rows at a time.

    No target is missing, so the mean over all rows is the mean of the chunks', by their rows.
    """
    N = len(inputs.features_nd)
    rows = max(1, min(N, TRUTH_BYTES // (8 * inputs.layout.width)))
    weight_sd, bias_s = _leaf(inputs.weight_sd.double()), _leaf(inputs.bias_s.double())
    task_weights_k = torch.ones(len(inputs.layout), dtype=torch.float64, device=weight_sd.device)
    total, d_features = torch.zeros((), dtype=torch.float64, device=weight_sd.device), []
    for first in range(0, N, rows):
        features_nd = _leaf(inputs.features_nd[first : first + rows].double())
        targets = [target[first : first + rows] for target in inputs.targets]
        part, _, _ = reference.multitask_loss(
            features_nd, weight_sd, bias_s, targets, task_weights_k, inputs.layout
        )
        part = part * (len(features_nd) / N)
        total += part.detach()
        if direction == "forward+backward":
            part.backward()
            d_features.append(features_nd.grad)
    results = {"total": total}
    if direction == "forward+backward":
        assert weight_sd.grad is not None
        assert bias_s.grad is not None
        results.update(
            d_features=torch.cat(d_features),  # type: ignore[arg-type]
            d_weight=weight_sd.grad,
            d_bias=bias_s.grad,
        )
    return results


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _linears(inputs: HeadInputs) -> list[nn.Linear]:
    features_nd, linears = inputs.features_nd, []
    for first, last, spec in inputs.layout:
        linear = nn.Linear(
            features_nd.shape[1], spec.size, device=features_nd.device, dtype=features_nd.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(inputs.weight_sd[first:last])
            linear.bias.copy_(inputs.bias_s[first:last])
        linears.append(linear)
    return linears


def _sum_of_losses(features_nd: Tensor, linears: Sequence[nn.Linear], targets: Sequence[Tensor]) -> Tensor:
    losses = [F.cross_entropy(linear(features_nd), y) for linear, y in zip(linears, targets, strict=True)]
    return sum(losses)  # type: ignore[return-value]


def _a_head(
    name: str,
    inputs: HeadInputs,
    direction: Direction,
    loss: Callable[[Tensor, nn.Linear, Tensor], Tensor],
) -> Peer:
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return sum(  # type: ignore[return-value]
            loss(features_nd, linear, target) for linear, target in zip(linears, inputs.targets, strict=True)
        )

    return _with_linears(name, _in(direction, total), features_nd, linears)


def _with_linears(
    name: str, run: Callable[[], Tensor], features_nd: Tensor, linears: Sequence[nn.Linear]
) -> Peer:
    weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
    return Peer(name, run, features_nd, weights, biases)


def _graphed(name: str, peer: Peer) -> Peer:
    """A peer's run as a replay; its gradients are made in the graph's own memory."""
    device = peer.features_nd.device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            peer.clear()
            peer.run()
    synchronize(device)
    peer.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        total = peer.run().detach()

    def run() -> Tensor:
        graph.replay()
        return total

    return Peer(
        name,
        run,
        peer.features_nd,
        peer.weights,
        peer.biases,
        own_gradients=peer.features_nd.grad is not None,
    )


def _in(direction: Direction, total: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return total()

    def forward_and_backward() -> Tensor:
        loss = total()
        loss.backward()
        return loss

    return forward if direction == "forward" else forward_and_backward
