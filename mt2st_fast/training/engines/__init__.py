"""The ways to take a training step, in the order of preference: the first without an obstacle takes a phase."""

from __future__ import annotations

from collections.abc import Callable

from mt2st_fast.training.engines.eager import EagerSteps
from mt2st_fast.training.engines.engine import Engine, StepParts, StepState
from mt2st_fast.training.engines.exchanging import ExchangingGradientCalls, ExchangingSteps
from mt2st_fast.training.engines.gradient_calls import GradientCallSteps
from mt2st_fast.training.engines.graphs.capturer import Capturer
from mt2st_fast.training.engines.graphs.cuda_graph import CudaGraphSteps
from mt2st_fast.training.engines.one_call import OneCallSteps
from mt2st_fast.training.engines.taskwise import TaskwiseSteps

__all__ = ["Engine", "StepParts", "StepState", "make_engines"]


def make_engines(parts: StepParts, make_capturer: Callable[[], Capturer]) -> list[Engine]:
    """Return the engines of a run, in order of preference."""
    if parts.processes.are_several:
        exchanging = ExchangingSteps(parts)
        return [
            OneCallSteps(parts), ExchangingGradientCalls(parts), CudaGraphSteps(parts, exchanging, make_capturer),
            exchanging,
        ]  # fmt: skip
    eager = TaskwiseSteps(parts) if parts.by_task else EagerSteps(parts)
    return [
        OneCallSteps(parts), GradientCallSteps(parts), CudaGraphSteps(parts, eager, make_capturer), eager,
    ]  # fmt: skip
