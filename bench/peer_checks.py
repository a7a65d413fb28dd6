"""Check against the float64 reference that a peer computes the heads, and that ours is as accurate as torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.accuracy import OUR_RULE, check_as_accurate_as_torch, check_same_computation, peer_rule
from bench.cases import Direction, HeadInputs
from bench.peers import OURS, Peer, eager, leaf
from mt2st_fast.kernels.heads import reference

TRUTH_BYTES = 4 << 30  # of float64 logits per chunk


class Check:
    """Checks our code by the accuracy rule, and peers for computing the same thing, on one case.

    Called with a peer, it returns the rule that the peer has passed, None for the bare GEMMs, which have no result.
    Raises InaccurateError.
    """

    def __init__(self, inputs: HeadInputs, direction: Direction) -> None:
        self._inputs, self._direction = inputs, direction
        self._truth = truth(inputs, direction)
        by_torch = eager(inputs, direction)
        self._by_torch = {key: value.clone() for key, value in by_torch.results().items()}
        self._without_bias: Check | None = None

    def __call__(self, peer: Peer) -> str | None:
        """Check one peer."""
        if peer.name == "gemms":
            return None
        if not peer.biases and self._inputs.bias_s is not None:
            if self._without_bias is None:
                self._without_bias = Check(self._inputs.without_bias(), self._direction)
            return self._without_bias(peer)
        if peer.name in OURS:
            rule = OUR_RULE
            check_as_accurate_as_torch(peer.name, peer.results(), self._by_torch, self._truth)
        else:
            rule, dtype = peer_rule(peer.features_nd.dtype), peer.features_nd.dtype
            check_same_computation(peer.name, peer.results(), self._truth, dtype)
        peer.clear()
        return rule


def check(peer: Peer, inputs: HeadInputs, direction: Direction) -> None:
    """`Check` for a single peer."""
    Check(inputs, direction)(peer)


def truth(inputs: HeadInputs, direction: Direction) -> dict[str, Tensor]:
    """Return the expected `Peer.results`, by the reference in float64, in chunks of rows.

    No target is missing, so the mean over all rows is the mean of the chunks', weighted by their rows.
    """
    N = len(inputs.features_nd)
    rows = max(1, min(N, TRUTH_BYTES // (8 * inputs.layout.width)))
    weight_sd = leaf(inputs.weight_sd.double())
    bias_s = None if inputs.bias_s is None else leaf(inputs.bias_s.double())
    task_weights_k = torch.ones(len(inputs.layout), dtype=torch.float64, device=weight_sd.device)
    total, d_features = torch.zeros((), dtype=torch.float64, device=weight_sd.device), []
    for first in range(0, N, rows):
        features_nd = leaf(inputs.features_nd[first : first + rows].double())
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
        results.update(d_features=torch.cat(d_features), d_weight=weight_sd.grad)  # type: ignore[arg-type]
        if bias_s is not None:
            assert bias_s.grad is not None
            results["d_bias"] = bias_s.grad
    return results
