"""Time the plans of one small shape in Triton's interpreter: python -m <this> OUT.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from mt2st_fast.kernels.heads import tuning
from mt2st_fast.kernels.heads.on_triton import packed
from mt2st_fast.kernels.heads.on_triton.row_blocks import CHOICES


def main(out: str) -> None:
    os.environ["MT2ST_BACKEND"] = "triton"
    tuning.LEAST_ROUNDS = tuning.MOST_ROUNDS = 1
    used, blocks_of = set(), packed.blocks_of

    def noted(call):
        used.add(blocks_of(call))
        return blocks_of(call)

    packed.blocks_of = noted
    rows = tuning.tune(torch.device("cpu"), grid=(tuning.Trial(48, 8, (40, 50)),))
    assert used == set(CHOICES.values())
    Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
