"""The norms of torch that one kernel call computes, and what kernels are told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from mt2st_fast.kernels import BatchNorm, Dense, Norm, Running

AnyNorm = nn.LayerNorm | nn.RMSNorm | nn.BatchNorm1d
NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)


def width_of(norm: AnyNorm) -> int:
    """Return how many numbers of a row it normalises."""
    return norm.num_features if isinstance(norm, nn.BatchNorm1d) else norm.normalized_shape[0]


def norm_obstacle(norm: AnyNorm) -> str | None:
    """Return why kernels do not compute this norm, or None."""
    name = type(norm).__name__
    if not isinstance(norm, nn.BatchNorm1d) and len(norm.normalized_shape) != 1:
        return f"its kernel takes a {name} over the last axis, not over {len(norm.normalized_shape)} axes"
    width = width_of(norm)
    if any(p.shape != (width,) for p in norm.parameters()):  # torch raises an error
        return f"a parameter of a {name} over {width} numbers has another shape"
    return _batch_norm_obstacle(norm) if isinstance(norm, nn.BatchNorm1d) else None


def _batch_norm_obstacle(norm: nn.BatchNorm1d) -> str | None:
    if not norm.eps > 0:  # torch raises an error, at least in training
        return f"its kernel takes a positive eps of a BatchNorm1d, not {norm.eps!r}"
    return _statistics_obstacle(norm)


def _statistics_obstacle(norm: nn.BatchNorm1d) -> str | None:
    if norm.running_mean is None and norm.running_var is None:
        counts = norm.track_running_stats and norm.num_batches_tracked is not None
        return "a BatchNorm1d counts batches, but has no running statistics" if counts else None
    if norm.momentum is not None and not (isinstance(norm.momentum, float | int) and isfinite(norm.momentum)):
        return f"its kernel takes a momentum of a BatchNorm1d that is a finite number, not {norm.momentum!r}"
    if norm.momentum is not None and norm.momentum < 0:
        return f"its kernel takes no negative momentum of a BatchNorm1d, which is {norm.momentum}"
    shape, batches = (norm.num_features,), norm.num_batches_tracked
    if not all(_is_plain(each, torch.float32, shape) for each in (norm.running_mean, norm.running_var)):
        return f"its kernel takes running statistics of a BatchNorm1d that are {shape} of float32 on the CPU"
    if batches is None:
        return "a BatchNorm1d counts no batches" if norm.momentum is None else None
    if not _is_plain(batches, torch.int64, ()):
        return "its kernel takes a num_batches_tracked of a BatchNorm1d that is one number of int64"
    return None


def _is_plain(tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return (
        tensor is not None
        and tensor.device.type == "cpu"
        and tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
    )


def takes_batch(norm: nn.BatchNorm1d) -> bool:
    """Whether it normalises by the statistics of the batch, in its present mode."""
    return norm.training or norm.running_mean is None


def made_norm(norm: AnyNorm, found: Callable[[Tensor | None], Dense | None]) -> Norm | BatchNorm:
    """Return the norm in the form for kernels; found: makes that of a parameter."""
    weight, bias = found(norm.weight), found(getattr(norm, "bias", None))  # an RMSNorm has none
    if isinstance(norm, nn.BatchNorm1d):
        return BatchNorm(norm.num_features, norm.eps, weight, bias, takes_batch(norm), _running(norm))
    if isinstance(norm, nn.RMSNorm):
        eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        return Norm(norm.normalized_shape[0], eps, weight, bias, centred=False)
    return Norm(norm.normalized_shape[0], norm.eps, weight, bias)


def _running(norm: nn.BatchNorm1d) -> Running | None:
    """Return the running statistics that it takes, or that follow its batches, or None."""
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or (norm.training and not norm.track_running_stats):
        return None
    return Running(
        mean.detach(), variance.detach(), None if batches is None else batches.detach(), norm.momentum
    )


def statistics_of(norms: Sequence[nn.BatchNorm1d]) -> list[Tensor]:
    """Return the running statistics of these norms, where kernels read and write them."""
    found = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    return [statistic for of_norm in found for statistic in of_norm if statistic is not None]
