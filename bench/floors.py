"""The device's own limits: bytes per second of a large copy, operations per second of a large GEMM."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.interleaved import Candidate, interleave

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # several times any cache
GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
ROUNDS = 20


def copy_bytes_per_second(device: torch.device) -> float:
    """Measure a copy within the device's memory, counting bytes read and bytes written."""
    source = torch.randint(256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(lambda: target.copy_(source), device)
    return 2 * source.numel() / seconds


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a square GEMM of random numbers; with zeros it would be faster than with real data."""
    side = GEMM_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = _median_seconds(lambda: torch.mm(left, right, out=out), device)
    return 2 * side**3 / seconds


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    timings = interleave({"run": Candidate(run)}, rounds=ROUNDS, limit_seconds=5.0, device=device)
    return timings.median_us("run") / 1e6
