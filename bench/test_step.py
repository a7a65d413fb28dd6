"""A whole training step with many heads and with one, and the step after the switch."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import nn

from bench.interleaved import Candidate, interleave
from bench.step_cases import (
    STEP_CASES,
    SWITCHED_LIMIT,
    TINY_STEP,
    StepCase,
    StepModel,
    check_step,
    multi_and_single,
    switched_and_stl,
)
from bench.step_models import (
    convolution_model,
    layered_mlp_model,
    mlp_model,
    recurrent_model,
    text_convolution_model,
)


def _layer_norm() -> tuple[nn.Module, ...]:
    return nn.LayerNorm(128), nn.ReLU()


def _batch_norm() -> tuple[nn.Module, ...]:
    return nn.BatchNorm1d(128), nn.SiLU()


MULTI_AND_SINGLE = ("ours multi", "ours single", "eager multi", "eager single")
SWITCHED_AND_STL = ("after switch", "stl")
TINY = (
    TINY_STEP,
    StepCase("tiny, of features", lambda device: mlp_model(2, 20, device)),
    StepCase("tiny, with LayerNorm", lambda device: layered_mlp_model(_layer_norm, 2, 20, device)),
    StepCase("tiny, with BatchNorm1d", lambda device: layered_mlp_model(_batch_norm, 2, 20, device)),
    StepCase("tiny, with a Conv1d", lambda device: convolution_model(2, 20, device)),
    StepCase("tiny, a TextCNN", lambda device: text_convolution_model(2, 20, device, L=12, C=16)),
    StepCase("tiny, with a GRU", lambda device: recurrent_model(2, 20, device)),
)
CASES = [
    *(pytest.param(case, marks=pytest.mark.tried, id=case.name) for case in TINY),
    *(pytest.param(case, marks=pytest.mark.timed, id=case.name) for case in STEP_CASES),
]


@lru_cache(maxsize=1)
def checked_model(case: StepCase) -> StepModel:
    if reason := case.obstacle():
        pytest.skip(reason)
    model = case.build(torch.device("cpu"))
    check_step(model)
    return model


@pytest.mark.parametrize("peer", MULTI_AND_SINGLE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_step(benchmark, case, peer):
    step = multi_and_single(checked_model(case))[peer]
    benchmark.group = f"{case.name}: training step"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(step, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("peer", SWITCHED_AND_STL)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_step_after_switch(benchmark, case, peer):
    step = switched_and_stl(checked_model(case))[peer]
    benchmark.group = f"{case.name}: step after the switch"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(step, rounds=30, warmup_rounds=3)


@pytest.mark.long
@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_step_after_switch_is_the_single_task_step(case):
    steps = switched_and_stl(checked_model(case))
    timings = interleave({name: Candidate(step) for name, step in steps.items()}, rounds=300)
    assert timings.ratio("after switch", "stl").of_medians <= SWITCHED_LIMIT
