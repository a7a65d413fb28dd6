"""The accuracy rule: as close to the float64 truth as torch is in the same dtype, up to a small margin."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# A factor on torch's own error, plus units in the last place, as torch is sometimes exact by luck.
FACTOR = 1.5
ULPS = 2.0
# A peer only has to compute the same thing: torch.compile is ten times less exact than eager here, and
# excluding it for that would hide a fast competitor.
PEER_ERROR = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# For a peer's float32 result from shorter inputs: Liger-Kernel's total in bfloat16 is off by 2.6e-5 to 7.6e-5, as it
# rounds logits on the way; that is a matter of its accuracy, and not another computation.
PEER_ERROR_OF_SHORT_INPUTS = 1e-3
OUR_RULE = f"at most {FACTOR:g} times torch's own error and {ULPS:g} units in the last place"


class InaccurateError(AssertionError):
    """A result is further from the truth than the rule allows, so its speed does not count."""


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Return the root mean square of the error over that of the float64 truth."""
    return float((result.double() - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny))


def allowed_of_peer(result: torch.dtype, inputs: torch.dtype) -> float:
    """Return the relative error that a peer's result may have."""
    short = result is torch.float32 and inputs is not torch.float32
    return PEER_ERROR_OF_SHORT_INPUTS if short else PEER_ERROR[result]


def peer_rule(inputs: torch.dtype) -> str:
    """Describe the rule of `check_same_computation` for a peer's records."""
    limits = {dtype: allowed_of_peer(dtype, inputs) for dtype in dict.fromkeys((torch.float32, inputs))}
    shown = ", ".join(f"{limit:g} in {str(dtype).removeprefix('torch.')}" for dtype, limit in limits.items())
    return f"a peer's own: relative error at most {shown}"


def check_same_computation(
    name: str,
    results: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    inputs: torch.dtype = torch.float32,
) -> None:
    """Check a peer (never our own code) on `inputs` of a dtype. Raises InaccurateError."""
    _check_shapes(name, results, truth)
    for key, result in results.items():
        error = relative_error(result, truth[key])
        allowed = allowed_of_peer(result.dtype, inputs)
        if not error <= allowed:
            raise InaccurateError(f"{name}: relative error of {key} is {error:.3g}, allowed are {allowed:g}")


def check_as_accurate_as_torch(
    name: str, results: Mapping[str, Tensor], by_torch: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> None:
    """Check every tensor of `results` against the rule. Raises InaccurateError naming the first that breaks it."""
    _check_shapes(name, results, truth)
    for key, result in results.items():
        error, torch_error = relative_error(result, truth[key]), relative_error(by_torch[key], truth[key])
        allowed = FACTOR * torch_error + ULPS * torch.finfo(by_torch[key].dtype).eps
        if not error <= allowed:  # NaN must fail
            raise InaccurateError(
                f"{name}: relative error of {key} is {error:.3g}; torch's is {torch_error:.3g}, "
                f"allowed are {allowed:.3g}"
            )


def _check_shapes(name: str, results: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    if results.keys() != truth.keys():
        raise InaccurateError(f"{name} gave {', '.join(results)}; expected {', '.join(truth)}")
    for key, result in results.items():
        if result.shape != truth[key].shape:
            raise InaccurateError(
                f"{name}: {key} is {tuple(result.shape)}, the truth is {tuple(truth[key].shape)}"
            )
