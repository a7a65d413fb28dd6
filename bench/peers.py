"""Who computes the heads: each peer runs all of them, from gradients that are None to gradients that are set.

The speed of `ours` is compared with `eager`; `gemms` is no peer but the floor that none can go under.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.accuracy import check_as_accurate_as_torch, check_same_computation
from bench.cases import Direction, HeadInputs
from bench.interleaved import Candidate
from mt2st_fast import Classification, MultiTaskHeads
from mt2st_fast.kernels import choose_backend, multitask_loss, reference


@dataclass(frozen=True)
class Peer:
    """One way to compute the heads, ready to run; weights and biases are whole or one a head."""

    name: str
    run: Callable[[], Tensor]
    features_nd: Tensor
    weights: Sequence[Tensor] = ()
    biases: Sequence[Tensor] = ()

    def clear(self) -> None:
        """Forget all gradients."""
        for tensor in (self.features_nd, *self.weights, *self.biases):
            tensor.grad = None

    def candidate(self) -> Candidate:
        """What is timed: the clearing is not, for it is the optimizer's."""
        return Candidate(self.run, self.clear)

    def results(self) -> dict[str, Tensor]:
        """The total of a fresh run and, where it ran backward, the gradients in the packed layout."""
        self.clear()
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
    task_weights_k = torch.ones(len(inputs.layout))

    def total() -> Tensor:
        out = multitask_loss(features_nd, weight_sd, bias_s, inputs.targets, task_weights_k, inputs.layout)
        return out.total

    return Peer("ours", _in(direction, total), features_nd, [weight_sd], [bias_s])


def heads_module(inputs: HeadInputs, direction: Direction) -> Peer:
    """MultiTaskHeads: the fused op on one nn.Linear a task, packed in every step."""
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)
    names = inputs.layout.names
    tasks = {name: Classification(spec.size) for name, spec in zip(names, inputs.layout.heads, strict=True)}
    heads = MultiTaskHeads.from_modules(dict(zip(names, linears, strict=True)), tasks, names[0])
    targets = dict(zip(names, inputs.targets, strict=True))
    weights_k = torch.ones(len(names))

    def total() -> Tensor:
        return heads(features_nd, targets, weights_k).total

    return _with_linears("heads_module", _in(direction, total), features_nd, linears)


def eager(inputs: HeadInputs, direction: Direction) -> Peer:
    """One nn.Linear and one F.cross_entropy a task, summed: the loop that most people have."""
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return _sum_of_losses(features_nd, linears, inputs.targets)

    return _with_linears("eager", _in(direction, total), features_nd, linears)


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
    features_nd, linears = _leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return sum(  # type: ignore[return-value]
            F.linear_cross_entropy(features_nd, linear.weight, target, linear_bias=linear.bias)
            for linear, target in zip(linears, inputs.targets, strict=True)
        )

    return _with_linears("linear_cross_entropy", _in(direction, total), features_nd, linears)


def gemms(inputs: HeadInputs, direction: Direction) -> Peer:
    """The three bare GEMMs of the packed layout (one, forward): no loss, no gradients, the floor."""
    features_nd, weight_sd = inputs.features_nd, inputs.weight_sd
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
    "ours": ours,
    "heads_module": heads_module,
    "gemms": gemms,
}
OURS = ("ours", "heads_module")


def obstacle(name: str) -> str | None:
    """Why a peer cannot run here, or None."""
    if name in OURS:
        choice = choose_backend(torch.device("cpu"), torch.float32)
        return None if choice.name == "numba" else f"the fused op would run as {choice.name}: {choice.reason}"
    if name == "compiled" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "torch.compile needs a C++ compiler; install g++"
    if name == "linear_cross_entropy" and not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy"
    return None


def check(peer: Peer, inputs: HeadInputs, direction: Direction) -> None:
    """Hold our code to the accuracy rule, and a peer to computing the same thing.

    Raises InaccurateError; the bare GEMMs have no result to check.
    """
    if peer.name == "gemms":
        return
    expected = truth(inputs, direction)
    if peer.name in OURS:
        by_torch = eager(inputs, direction).results()
        check_as_accurate_as_torch(peer.name, peer.results(), by_torch, expected)
    else:
        check_same_computation(peer.name, peer.results(), expected)


def truth(inputs: HeadInputs, direction: Direction) -> dict[str, Tensor]:
    """What `Peer.results` should be, by the reference in float64."""
    leaves = [_leaf(t.double()) for t in (inputs.features_nd, inputs.weight_sd, inputs.bias_s)]
    task_weights_k = torch.ones(len(inputs.layout), dtype=torch.float64)
    total, _, _ = reference.multitask_loss(*leaves, inputs.targets, task_weights_k, inputs.layout)  # type: ignore[call-arg, arg-type, misc]
    results = {"total": total.detach()}
    if direction == "forward+backward":
        names = ("d_features", "d_weight", "d_bias")
        results.update(zip(names, torch.autograd.grad(total, leaves), strict=True))
    return results


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _linears(inputs: HeadInputs) -> list[nn.Linear]:
    linears = []
    for first, last, spec in inputs.layout:
        linear = nn.Linear(inputs.features_nd.shape[1], spec.size)
        with torch.no_grad():
            linear.weight.copy_(inputs.weight_sd[first:last])
            linear.bias.copy_(inputs.bias_s[first:last])
        linears.append(linear)
    return linears


def _sum_of_losses(features_nd: Tensor, linears: Sequence[nn.Linear], targets: Sequence[Tensor]) -> Tensor:
    losses = [F.cross_entropy(linear(features_nd), y) for linear, y in zip(linears, targets, strict=True)]
    return sum(losses)  # type: ignore[return-value]


def _with_linears(
    name: str, run: Callable[[], Tensor], features_nd: Tensor, linears: Sequence[nn.Linear]
) -> Peer:
    weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
    return Peer(name, run, features_nd, weights, biases)


def _in(direction: Direction, total: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return total()

    def forward_and_backward() -> Tensor:
        loss = total()
        loss.backward()
        return loss

    return forward if direction == "forward" else forward_and_backward
