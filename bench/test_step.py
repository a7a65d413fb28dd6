"""Whole training steps, with many heads and with one, and after the switch, at a size that CI can bear."""

from __future__ import annotations

import pytest
import torch

from bench.step_cases import TINY_STEP, StepCase, check_step, multi_and_single, switched_and_stl
from bench.step_models import mlp_model

CASES = (TINY_STEP, StepCase("tiny, of features", lambda device: mlp_model(2, 20, device)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_are_right_and_can_be_repeated(case):
    model = case.build(torch.device("cpu"))
    check_step(model)
    steps = multi_and_single(model, compiled=lambda: False) | switched_and_stl(model)
    assert {"ours multi", "ours single", "eager multi", "eager single", "after switch", "stl"} <= set(steps)
    for step in steps.values():
        for _ in range(3):
            step()
