"""The shapes that the heads are measured on, and the speed-up over torch eager that each must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind

Direction = Literal["forward+backward", "forward"]
DIRECTIONS: tuple[Direction, ...] = ("forward+backward", "forward")


@dataclass(frozen=True)
class HeadCase:
    """K softmax heads of `sizes` classes over features (N, D).

    floor: times faster than torch eager that forward+backward must be, None where nothing is required.
    group: "many" small heads, a "large" vocabulary or batch, or the "tiny" case that CI runs.
    """

    name: str
    N: int
    D: int
    sizes: tuple[int, ...]
    floor: float | None = None
    group: Literal["many", "large", "tiny"] = "many"

    @property
    def layout(self) -> HeadLayout:
        """The packed layout of the heads."""
        return HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in self.sizes))

    @property
    def shape(self) -> str:
        """N, D and the classes of the heads as text."""
        counted = [(size, self.sizes.count(size)) for size in dict.fromkeys(self.sizes)]
        repeated = len(set(self.sizes)) == 1 and len(self.sizes) > 1
        heads = f"{counted[0][1]} × {counted[0][0]}" if repeated else ", ".join(map(str, self.sizes))
        return f"N={self.N} D={self.D} C=[{heads}]"

    def inputs(self, seed: int = 1) -> HeadInputs:
        """Random inputs; the features have unit variance and so have the logits."""
        generator = torch.Generator().manual_seed(seed)
        S = sum(self.sizes)
        return HeadInputs(
            features_nd=torch.randn(self.N, self.D, generator=generator),
            weight_sd=torch.randn(S, self.D, generator=generator) / self.D**0.5,
            bias_s=torch.randn(S, generator=generator),
            targets=[torch.randint(size, (self.N,), generator=generator) for size in self.sizes],
            layout=self.layout,
        )


class HeadInputs(NamedTuple):
    """What every peer starts from; a peer copies what it trains."""

    features_nd: Tensor
    weight_sd: Tensor
    bias_s: Tensor
    targets: list[Tensor]
    layout: HeadLayout


TINY = HeadCase("tiny", 60, 20, (5, 3, 2), group="tiny")

HEAD_CASES = (
    HeadCase("tagger", 8192, 256, (17, 50, 49, 30, 2, 2, 4, 3), floor=3.0),
    HeadCase("16 binary heads", 8192, 128, (2,) * 16, floor=8.0),
    HeadCase("review model", 2048, 100, (2, 17, 12, 9), floor=2.0),
    HeadCase("small batch", 512, 64, (10, 5, 5), floor=5.0),
    HeadCase("2,000 classes", 8192, 256, (17, 2000), group="large"),
    HeadCase("10,000 classes", 1024, 128, (17, 10000), group="large"),
    HeadCase("large batch", 32768, 64, (10, 5, 5, 2, 2), group="large"),
)
