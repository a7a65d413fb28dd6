"""How time and memory grow with the outputs S, the heads K and the rows N, each varied alone from one base case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bench.cases import DeviceKind, HeadCase

Axis = Literal["S", "K", "N"]
AXES: tuple[Axis, ...] = ("S", "K", "N")
PEERS = {
    "cpu": ("eager", "linear_cross_entropy", "ours", "gemms"),
    "cuda": ("eager", "compiled", "linear_cross_entropy", "liger", "cut_cross_entropy", "ours", "gemms"),
}


@dataclass(frozen=True)
class Point:
    """One case of a sweep."""

    axis: Axis
    value: int
    case: HeadCase


@dataclass(frozen=True)
class _Sweeps:
    N: int
    D: int
    K: int
    S: int
    head_size: int  # size of every head where K varies
    dtype: torch.dtype
    values: dict[Axis, tuple[int, ...]]


_SWEEPS: dict[DeviceKind, _Sweeps] = {
    "cpu": _Sweeps(
        N=4096, D=128, K=4, S=64, head_size=8, dtype=torch.float32,
        values={
            "S": (16, 64, 256, 1024, 4096),
            "K": (1, 2, 4, 8, 16, 32),
            "N": (256, 1024, 4096, 16384),
        },
    ),
    "cuda": _Sweeps(
        N=8192, D=1024, K=4, S=256, head_size=16, dtype=torch.bfloat16,
        values={
            "S": (16, 64, 256, 1024, 4096, 16384, 65536),
            "K": (1, 2, 4, 8, 16, 32),
            "N": (512, 2048, 8192, 32768, 131072),
        },
    ),
}  # fmt: skip


def points(kind: DeviceKind) -> list[Point]:
    """Return all cases of the three sweeps for a kind of device."""
    sweeps = _SWEEPS[kind]

    def case(axis: Axis, value: int) -> HeadCase:
        if axis == "K":
            sizes: tuple[int, ...] = (sweeps.head_size,) * value
        else:
            sizes = ((value if axis == "S" else sweeps.S) // sweeps.K,) * sweeps.K
        N = value if axis == "N" else sweeps.N
        return HeadCase(f"{axis}={value}", N, sweeps.D, sizes, on=kind, dtype=sweeps.dtype)

    return [Point(axis, value, case(axis, value)) for axis in AXES for value in sweeps.values[axis]]
