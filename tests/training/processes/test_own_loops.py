"""FSDP2 and DDP around encoder and heads: processes learn what one learns, over a switch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.processes.together import run_together


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_wrapped_by_torch_processes_learn_what_one_learns(count: int, tmp_path: Path) -> None:
    for name, found in run_together("own_loops", ["fsdp2", "ddp"], tmp_path, count).items():
        for one in found:
            assert "error" not in one, (name, one)
            alone, together = one["alone"], one["together"]
            torch.testing.assert_close(together["losses"], alone["losses"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together["weights"], alone["weights"], rtol=1e-5, atol=1e-5)
            assert together["moments"] == alone["moments"], name
            assert not together["moments"]["heads.linears.b.weight"], "a retired head keeps no moments"
        for other in found[1:]:
            for weight, value in found[0]["together"]["weights"].items():
                assert torch.equal(value, other["together"]["weights"][weight]), (name, weight)
