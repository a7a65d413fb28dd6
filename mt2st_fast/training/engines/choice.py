"""Which engine takes a phase, which one takes a single step of it, and what the history says about that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mt2st_fast.training.engines.engine import Engine
from mt2st_fast.training.engines.graphs.cuda_graph import CudaGraphSteps
from mt2st_fast.training.history import PhaseRecord


class ChosenEngine:
    """The engines of a run in order of preference, and the first of them that takes the current phase.

    What is found out about the choice is stored in the last of `phases`, the phase records of the run's history.
    """

    def __init__(self, engines: list[Engine]) -> None:
        self._engines = engines
        self._engine: Engine = engines[-1]
        self._graphs = next((e for e in engines if isinstance(e, CudaGraphSteps)), None)
        self.phases: list[PhaseRecord] = []

    def choose(self, phases: list[PhaseRecord]) -> None:
        """Choose the first engine without an obstacle for the last of these phases; its record says why."""
        self.phases = phases
        passed_over: dict[str, str] = {}
        for engine in self._engines:
            engine.enter_phase()
        for engine in self._engines:
            obstacle = engine.obstacle()
            if obstacle is None:
                break
            passed_over[engine.name] = obstacle
        self._engine = engine
        self._note(engine=engine.name, passed_over=passed_over)
        self._note_graph()

    def __call__(self, micro_steps: Any) -> Tensor:
        """Take a step; returns the losses (K,) of the active tasks, on the device."""
        engine = self._engine_for(micro_steps)
        losses = engine(micro_steps)
        self._note_graph()
        if engine.does_without:
            self._note_without(engine.does_without)
        return losses

    def features(self, inputs: Any) -> Tensor | None:
        """Return the features of held-out inputs, if the phase's engine can compute them itself."""
        return self._engine.features(inputs) if self.phases else None

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(3,) for each of these tasks: held-out targets that are correct, all, and out of range; None if unable."""
        return self._engine.count_correct(inputs, targets) if self.phases else None

    def _engine_for(self, micro_steps: Any) -> Engine:
        """Return the phase's engine, or if it declines the step, the next one in the order that takes it."""
        if self._engine.declines(micro_steps) is None:
            return self._engine
        for engine in self._engines[self._engines.index(self._engine) :]:
            if engine.obstacle() is not None:
                continue
            if (reason := engine.declines(micro_steps)) is None:
                return engine
            self._note_decline(engine, reason)
        raise RuntimeError("no engine takes this step")  # the last one takes every step

    def _note_decline(self, engine: Engine, reason: str) -> None:
        passed_over = self.phases[-1].passed_over
        if engine.name not in passed_over:
            self._note(passed_over={**passed_over, engine.name: f"in some steps: {reason}"})

    def _note_without(self, does_without: Mapping[str, str]) -> None:
        passed_over = self.phases[-1].passed_over
        if not does_without.keys() <= passed_over.keys():
            self._note(passed_over={**passed_over, **does_without})

    def _note_graph(self) -> None:
        if self._graphs is not None and self.phases[-1].graph != self._graphs.verdict:
            self._note(graph=self._graphs.verdict)

    def _note(self, **known: Any) -> None:
        self.phases[-1] = replace(self.phases[-1], **known)
