"""The peers that compute the heads: each runs all of them, from gradients that are None to gradients that are set.

The speed of `ours` is compared with `eager`; `gemms` is not a peer: it is only torch's matrix products.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import Direction, HeadInputs
from bench.device import captured
from bench.interleaved import Candidate
from mt2st_fast import Classification, MultiTaskHeads
from mt2st_fast.kernels import choose_backend, multitask_loss


@dataclass(frozen=True)
class Peer:
    """One way to compute the heads, ready to run; weights and biases are whole or one per head.

    own_gradients: its gradients are where a CUDA graph writes them, and must stay there. Without biases its heads have
    none, and are checked against the truth of such heads.
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
        """Drop all gradients."""
        if not self.own_gradients:
            for tensor in self.leaves:
                tensor.grad = None

    def candidate(self) -> Candidate:
        """Return what is timed; clearing the gradients is not timed, as that is the optimizer's work."""
        return Candidate(self.run, self.clear)

    def results(self) -> dict[str, Tensor]:
        """Return the total of a fresh run and, if it ran backward, the gradients in the packed layout."""
        self.clear()
        if self.own_gradients:
            for tensor in self.leaves:
                tensor.grad.fill_(float("nan"))  # type: ignore[union-attr]
        results = {"total": self.run().detach()}
        if self.features_nd.grad is not None:
            results["d_features"] = self.features_nd.grad
            results["d_weight"] = torch.cat([weight.grad for weight in self.weights])  # type: ignore[misc]
            if self.biases:
                results["d_bias"] = torch.cat([bias.grad for bias in self.biases])  # type: ignore[misc]
        return results


Builder = Callable[[HeadInputs, Direction], Peer]
ALIGNED_OUTPUTS = 8  # 16 bytes in 16 bits


def ours(inputs: HeadInputs, direction: Direction) -> Peer:
    """The fused op on packed parameters."""
    features_nd, weight_sd = leaf(inputs.features_nd), leaf(inputs.weight_sd)
    bias_s = None if inputs.bias_s is None else leaf(inputs.bias_s)
    task_weights_k = torch.ones(len(inputs.layout), dtype=torch.float32, device=features_nd.device)

    def total() -> Tensor:
        out = multitask_loss(features_nd, weight_sd, bias_s, inputs.targets, task_weights_k, inputs.layout)
        return out.total

    return Peer("ours", _in(direction, total), features_nd, [weight_sd], [] if bias_s is None else [bias_s])


def ours_no_bias(inputs: HeadInputs, direction: Direction) -> Peer:
    """`ours` on heads without a bias, for the comparison with a peer that does not support one."""
    return replace(ours(inputs.without_bias(), direction), name="ours_no_bias")


def ours_graph(inputs: HeadInputs, direction: Direction) -> Peer:
    """`ours`, captured in a CUDA graph and replayed."""
    return _graphed("ours_graph", ours(inputs, direction))


def heads_module(inputs: HeadInputs, direction: Direction) -> Peer:
    """MultiTaskHeads as models use them: the fused op on heads whose layers are views of one matrix."""
    features_nd, linears = leaf(inputs.features_nd), _linears(inputs)
    names = inputs.layout.names
    tasks = {name: Classification(spec.size) for name, spec in zip(names, inputs.layout.heads, strict=True)}
    heads = MultiTaskHeads(features_nd.shape[1], tasks, names[0]).to(features_nd.device, features_nd.dtype)
    for name, linear in zip(names, linears, strict=True):
        heads.linear(name).load_state_dict(linear.state_dict())
    linears = [heads.linear(name) for name in names]  # the module's own layers, which get the gradients
    targets = dict(zip(names, inputs.targets, strict=True))
    weights_k = torch.ones(len(names), device=features_nd.device)

    def total() -> Tensor:
        return heads(features_nd, targets, weights_k).total

    return _with_linears("heads_module", _in(direction, total), features_nd, linears)


def eager(inputs: HeadInputs, direction: Direction) -> Peer:
    """One nn.Linear and one F.cross_entropy per task, summed: the usual loop."""
    features_nd, linears = leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return _sum_of_losses(features_nd, linears, inputs.targets)

    return _with_linears("eager", _in(direction, total), features_nd, linears)


def eager_graph(inputs: HeadInputs, direction: Direction) -> Peer:
    """`eager`, captured in a CUDA graph and replayed: the benefit of the graph alone."""
    return _graphed("eager_graph", eager(inputs, direction))


def compiled(inputs: HeadInputs, direction: Direction) -> Peer:
    """torch.compile of what `eager` does."""
    # Compiled code is cached by code object: without this, the next case would find the shapes of the last one,
    # switch to dynamic shapes, and after eight of them fall back to eager.
    torch.compiler.reset()
    features_nd, linears = leaf(inputs.features_nd), _linears(inputs)
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
    """Apple's cut-cross-entropy for every head, summed; without a bias if the installed release has none."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    if not cut_cross_entropy_takes_bias():
        inputs = inputs.without_bias()

    def of_head(x: Tensor, linear: nn.Linear, y: Tensor) -> Tensor:
        bias = {} if linear.bias is None else {"bias": linear.bias}
        return loss(x, linear.weight, y, **bias)

    return _a_head("cut_cross_entropy", inputs, direction, of_head)


def cut_cross_entropy_takes_bias() -> bool:
    """Whether it supports a bias, which 25.1.1 does not; True if it is not installed, as nothing is compared then."""
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return True
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return "bias" in inspect.signature(loss).parameters


def gemms(inputs: HeadInputs, direction: Direction) -> Peer:
    """The three bare GEMMs of the packed layout (one for forward only): no loss, no gradients."""
    features_nd, weight_sd = inputs.features_nd, inputs.weight_sd
    if features_nd.is_cuda:
        weight_sd = aligned(weight_sd)
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


def aligned(weight_sd: Tensor) -> Tensor:
    """Return the weight with rows of 0 added for a floor on a GPU: without, cuBLAS is up to eight times as slow."""
    return F.pad(weight_sd, (0, 0, 0, -len(weight_sd) % ALIGNED_OUTPUTS))


BUILDERS: dict[str, Builder] = {
    "eager": eager,
    "compiled": compiled,
    "linear_cross_entropy": linear_cross_entropy,
    "liger": liger,
    "cut_cross_entropy": cut_cross_entropy,
    "eager_graph": eager_graph,
    "ours": ours,
    "ours_graph": ours_graph,
    "ours_no_bias": ours_no_bias,
    "heads_module": heads_module,
    "gemms": gemms,
}
OURS = ("ours", "ours_graph", "ours_no_bias", "heads_module")
# A case is meaningless without these; the others are built in this order while there is time.
FIRST = ("ours", "ours_graph", "eager", "eager_graph", "heads_module", "gemms")
LATER = ("liger", "ours_no_bias", "cut_cross_entropy", "linear_cross_entropy", "compiled")
ON_GPU_ONLY = {
    "liger": "liger_kernel",
    "cut_cross_entropy": "cut_cross_entropy",
    "eager_graph": None,
    "ours_graph": None,
    "ours_no_bias": None,
}


def builders(device: torch.device) -> dict[str, Builder]:
    """Return the peers for a kind of device, including the floor."""
    return {
        name: build for name, build in BUILDERS.items() if device.type == "cuda" or name not in ON_GPU_ONLY
    }


def obstacle(name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why a peer cannot run here, or None."""
    device = device or torch.device("cpu")
    if name == "ours_no_bias" and cut_cross_entropy_takes_bias():
        return "no peer here needs heads without a bias"
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


def leaf(tensor: Tensor) -> Tensor:
    """Return a copy that takes a gradient."""
    return tensor.detach().clone().requires_grad_()


def _linears(inputs: HeadInputs) -> list[nn.Linear]:
    features_nd, linears = inputs.features_nd, []
    for first, last, spec in inputs.layout:
        linear = nn.Linear(
            features_nd.shape[1],
            spec.size,
            bias=inputs.bias_s is not None,
            device=features_nd.device,
            dtype=features_nd.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(inputs.weight_sd[first:last])
            if inputs.bias_s is not None:
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
    features_nd, linears = leaf(inputs.features_nd), _linears(inputs)

    def total() -> Tensor:
        return sum(  # type: ignore[return-value]
            loss(features_nd, linear, target) for linear, target in zip(linears, inputs.targets, strict=True)
        )

    return _with_linears(name, _in(direction, total), features_nd, linears)


def _with_linears(
    name: str, run: Callable[[], Tensor], features_nd: Tensor, linears: Sequence[nn.Linear]
) -> Peer:
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Peer(name, run, features_nd, weights, biases)


def _graphed(name: str, peer: Peer) -> Peer:
    """Return a peer's run as a replay; its gradients are in the graph's own memory."""
    replay = captured(lambda: peer.run().detach(), peer.features_nd.device, prepare=peer.clear)

    def run() -> Tensor:
        replay()
        return replay.result  # type: ignore[no-any-return]

    own_gradients = peer.features_nd.grad is not None
    return replace(peer, name=name, run=run, own_gradients=own_gradients)


def _in(direction: Direction, total: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            return total()

    def forward_and_backward() -> Tensor:
        loss = total()
        loss.backward()
        return loss

    return forward if direction == "forward" else forward_and_backward
