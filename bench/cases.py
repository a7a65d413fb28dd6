"""The shapes that the heads are measured on, the devices and dtypes, and the required results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind

DeviceKind = Literal["cpu", "cuda"]
Direction = Literal["forward+backward", "forward"]
DIRECTIONS: tuple[Direction, ...] = ("forward+backward", "forward")


@dataclass(frozen=True)
class Required:
    """Requirements for forward+backward of one case; None where nothing is required.

    over_eager, over_best: speed-up over torch eager, and over the best peer. over: speed-ups over peers by name.
    of_gemms, of_bytes: maximum time as a multiple of the bare GEMMs, and of the time of moving each input and output
    once at the copy bandwidth. peak_bytes: maximum memory beyond inputs and gradients. within_us: maximum microseconds,
    by the name of one of our variants.
    """

    over_eager: float | None = None
    over_best: float | None = None
    over: tuple[tuple[str, float], ...] = ()
    of_gemms: float | None = None
    of_bytes: float | None = None
    peak_bytes: float | None = None
    within_us: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class HeadCase:
    """K softmax heads of `sizes` classes over features (N, D) in `dtype`, measured `on` a kind of device.

    weight: of the case's share if the time for all cases is limited.
    """

    name: str
    N: int
    D: int
    sizes: tuple[int, ...]
    on: DeviceKind = "cpu"
    dtype: torch.dtype = torch.float32
    required: Required = Required()
    weight: float = 1.0

    @property
    def width(self) -> int:
        """S, the number of outputs of all heads together."""
        return sum(self.sizes)

    @property
    def layout(self) -> HeadLayout:
        """The packed layout of the heads."""
        return HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in self.sizes))

    @property
    def shape(self) -> str:
        """N, D, the classes of the heads and, except for float32, the dtype as text."""
        counted = [(size, self.sizes.count(size)) for size in dict.fromkeys(self.sizes)]
        repeated = len(set(self.sizes)) == 1 and len(self.sizes) > 1
        heads = f"{counted[0][1]} × {counted[0][0]}" if repeated else ", ".join(map(str, self.sizes))
        dtype = "" if self.dtype is torch.float32 else f" {dtype_name(self.dtype)}"
        return f"N={self.N} D={self.D} C=[{heads}]{dtype}"

    @property
    def input_bytes(self) -> int:
        """The bytes of features, weight, bias and targets."""
        element = self.dtype.itemsize
        return (self.N * self.D + self.width * (self.D + 1)) * element + self.N * len(self.sizes) * 8

    @property
    def gradient_bytes(self) -> int:
        """The bytes of the gradients of features, weight and bias."""
        return (self.N * self.D + self.width * (self.D + 1)) * self.dtype.itemsize

    def inputs(self, seed: int = 1, device: torch.device | None = None) -> HeadInputs:
        """Make random inputs; features and logits have unit variance."""
        device = device or torch.device(self.on)
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator, device=device) * scale).to(self.dtype)

        return HeadInputs(
            features_nd=normal(self.N, self.D),
            weight_sd=normal(self.width, self.D, scale=self.D**-0.5),
            bias_s=normal(self.width),
            targets=[
                torch.randint(size, (self.N,), generator=generator, device=device) for size in self.sizes
            ],
            layout=self.layout,
        )


def dtype_name(dtype: torch.dtype) -> str:
    """Return a name such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


class HeadInputs(NamedTuple):
    """The inputs of every peer; a peer copies what it trains. bias_s: None where the heads have none."""

    features_nd: Tensor
    weight_sd: Tensor
    bias_s: Tensor | None
    targets: list[Tensor]
    layout: HeadLayout

    def without_bias(self) -> HeadInputs:
        """Return the same heads without a bias, for a peer that does not support one."""
        return self._replace(bias_s=None)


TINY = HeadCase("tiny", 60, 20, (5, 3, 2))

HEAD_CASES = (
    HeadCase("tagger", 8192, 256, (17, 50, 49, 30, 2, 2, 4, 3), required=Required(over_eager=3.0)),
    HeadCase("16 binary heads", 8192, 128, (2,) * 16, required=Required(over_eager=8.0)),
    HeadCase("review model", 2048, 100, (2, 17, 12, 9), required=Required(over_eager=2.0)),
    HeadCase("small batch", 512, 64, (10, 5, 5), required=Required(over_eager=5.0)),
    HeadCase("2,000 classes", 8192, 256, (17, 2000)),
    HeadCase("10,000 classes", 1024, 128, (17, 10000)),
    HeadCase("large batch", 32768, 64, (10, 5, 5, 2, 2)),
)
# Required geometric means over all of HEAD_CASES on a CPU, forward+backward, and requirements of each case.
CPU_OVER_EAGER, CPU_OVER_BEST = 3.5, 1.6
CPU_OF_GEMMS, CPU_OF_GEMMS_FROM_S = 1.35, 100

MEMORY_CASE = HeadCase("100,000 classes", 2048, 256, (10, 100_000), required=Required(peak_bytes=150e6))
EAGER_MORE_BYTES = 1.6e9  # what eager needs there beyond inputs and gradients

FEW_HEADS, MANY_HEADS, WIDE_HEADS = (
    (17, 12, 9, 5, 2),
    (64, 48, 40, 32, 28, 20, 16, 8),
    (1000, 100, 50, 20, 10),
)


Bounds = tuple[tuple[str, float], ...]


def _on_gpu(
    name: str, N: int, D: int, sizes: tuple[int, ...], required: Required, bf16: Bounds, float32: Bounds = ()
) -> dict[torch.dtype, HeadCase]:
    """Return the case in both dtypes, which only differ in the required microseconds."""
    return {
        dtype: HeadCase(
            f"{name}, {dtype_name(dtype)}", N, D, sizes, on="cuda", dtype=dtype,
            required=replace(required, within_us=within_us),
        )
        for dtype, within_us in ((torch.bfloat16, bf16), (torch.float32, float32))
    }  # fmt: skip


VOCABULARY = HeadCase(
    "vocabulary and 4 heads", 8192, 4096, (151_936, 17, 9, 5, 2), on="cuda", dtype=torch.bfloat16, weight=5.0,
    required=Required(
        over=(("eager", 1.0), ("liger", 2.5), ("cut_cross_entropy", 1.0), ("linear_cross_entropy", 1.0)),
        of_gemms=1.25,
        peak_bytes=4e9,
        within_us=(("ours", 50_000.0),),
    ),
)  # fmt: skip
_CALL = (("ours", 200.0), ("heads_module", 220.0))  # without a graph, the host's time decides, whatever N
_IN_BOTH_DTYPES = (
    _on_gpu(
        "1,000 classes and 4 heads", 8192, 1024, WIDE_HEADS, Required(2.5, over_best=1.5),
        bf16=(("ours_graph", 200.0),),
    ),
    _on_gpu(
        "8 heads, large batch", 16384, 1024, MANY_HEADS, Required(over_eager=4, over_best=1.5),
        bf16=(("ours_graph", 80.0),),
    ),
    _on_gpu(
        "5 heads", 8192, 768, FEW_HEADS, Required(over_eager=5, over_best=2, of_bytes=1.5),
        bf16=(*_CALL, ("ours_graph", 22.0)), float32=(("ours_graph", 60.0),),
    ),
    _on_gpu(
        "5 heads, small batch", 512, 768, FEW_HEADS, Required(over_eager=5, over_best=2),
        bf16=(*_CALL, ("ours_graph", 12.0)),
    ),
)  # fmt: skip
# A GPU is only available for minutes, so the most informative cases come first.
GPU_HEAD_CASES = (
    VOCABULARY,
    *(cases[torch.bfloat16] for cases in _IN_BOTH_DTYPES),
    *(cases[torch.float32] for cases in reversed(_IN_BOTH_DTYPES)),
)


def head_cases(kind: DeviceKind) -> tuple[HeadCase, ...]:
    """Return the cases that are measured on a kind of device."""
    return HEAD_CASES if kind == "cpu" else GPU_HEAD_CASES
