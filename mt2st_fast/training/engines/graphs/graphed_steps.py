"""Steps as replays of captured ones: which step is captured, replayed or run eagerly, and why.

A step is a function from micro-steps (batches in any nesting) to the losses (K,). A step that cannot be replayed
exactly runs eagerly, with a reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mt2st_fast.compiling import counted_as_compiling
from mt2st_fast.training.engines.graphs.capturer import Capturer, Step
from mt2st_fast.training.engines.graphs.static_inputs import StaticInputs, UncapturableError, signature

log = logging.getLogger("mt2st_fast")

WARM_UP_STEPS = 3  # eager steps of a signature before its capture, which create lazy state
MOST_GRAPHS = 8  # per phase; each holds its inputs, and the driver's copy of its kernels
# Counted per phase, with the times that memory moved; batches with ever new shapes are not worth counting.
MOST_SIGNATURES = 256


class _Graph(NamedTuple):
    inputs: StaticInputs
    replay: Step


class GraphedSteps:
    """Runs the steps of one phase after another, as replays if those give what the eager step gives.

    step: the eager step. fingerprint: what a graph depends on beside the inputs (numbers of the optimizer,
    frozen parameters); another graph is made when it changes. after_failure: restores what a broken-off capture
    has touched.
    `verdict` says how the phase runs: "captured", "captured, except where ..." or "not captured: ...".
    """

    def __init__(
        self,
        step: Callable[[Any], Tensor],
        device: torch.device,
        capturer: Capturer,
        fingerprint: Callable[[], Hashable],
        after_failure: Callable[[], None],
    ) -> None:
        self._step, self._device, self._capturer = step, device, capturer
        self._fingerprint, self._after_failure = fingerprint, after_failure
        self._logged: set[str] = set()
        self.enter_phase(None)

    def enter_phase(self, obstacle: str | None) -> None:
        """Drop all graphs; with an `obstacle`, every step of the phase is eager."""
        self._capturer.release()
        self._clear()
        self._forgotten = 0
        self._reasons: list[str] = []
        self._obstacle = obstacle
        self.verdict = f"not captured: no batch shape occurred more than {WARM_UP_STEPS} times"
        if obstacle is not None:
            self._give_reason(obstacle)

    def forget(self) -> None:
        """Drop all graphs within a phase, as the memory that they read and write is no longer the model's."""
        if self._graphs:
            self._capturer.release()
        self._clear()
        self._forgotten += 1

    def _clear(self) -> None:
        self._graphs: dict[Hashable, _Graph] = {}
        self._inputs: dict[Hashable, StaticInputs] = {}  # of signatures whose next step is captured
        self._seen: Counter[Hashable] = Counter()
        self._declined: set[Hashable] = set()

    def __call__(self, micro_steps: Any) -> Tensor:
        """Take one step; returns the losses (K,)."""
        if self._obstacle is not None:
            return self._step(micro_steps)
        try:
            key = (signature(micro_steps), self._fingerprint())
        except UncapturableError as error:
            self._give_reason(str(error))
            return self._step(micro_steps)
        graph = self._graphs.get(key)
        if graph is not None:
            graph.inputs.copy_from(micro_steps)
            return graph.replay()
        if key in self._declined or not self._has_room(key):
            return self._step(micro_steps)
        self._seen[key] += 1
        if self._seen[key] > WARM_UP_STEPS:
            return self._captured(key, micro_steps)
        if self._seen[key] == 1:
            # Triton compiles for the sizes of a step, so it does so in the first step with these sizes.
            with counted_as_compiling("a step on the GPU"):
                return self._capturer.warm_up(lambda: self._step(micro_steps))
        if self._seen[key] < WARM_UP_STEPS:
            return self._capturer.warm_up(lambda: self._step(micro_steps))
        return self._probed(key, micro_steps)

    def _has_room(self, key: Hashable) -> bool:
        if len(self._graphs) >= MOST_GRAPHS:
            self._give_reason(f"a phase keeps at most {MOST_GRAPHS} graphs")
            return False
        return key in self._seen or len(self._seen) + self._forgotten < MOST_SIGNATURES

    def _probed(self, key: Hashable, micro_steps: Any) -> Tensor:
        """Take the last eager step on the memory that the graph will read.

        Triton compiles for the alignment of that memory, which a batch's own may not have, and must not in a capture.
        """
        inputs = StaticInputs(micro_steps, self._device)
        inputs.copy_from(micro_steps)
        losses, obstacle = self._capturer.probe(lambda: self._step(inputs.value))
        if obstacle is not None:
            self._decline(key, obstacle)
        elif len(self._graphs) + len(self._inputs) < MOST_GRAPHS:
            self._inputs[key] = inputs
        return losses

    def _captured(self, key: Hashable, micro_steps: Any) -> Tensor:
        inputs = self._inputs.pop(key, None) or StaticInputs(micro_steps, self._device)
        inputs.copy_from(micro_steps)
        try:
            replay = self._capturer.capture(lambda: self._step(inputs.value))
        # Any error, as an encoder is user code. If it has nothing to do with capturing, the eager step raises it.
        except Exception as error:
            # Random numbers continue from a fresh state, which the earlier graphs do not share: make them again.
            self._capturer.release()
            self._graphs.clear()
            self._after_failure()
            self._decline(key, f"{type(error).__name__}: {_first_line(error)}")
            return self._step(micro_steps)
        self._graphs[key] = _Graph(inputs, replay)
        self._update_verdict()
        return replay()

    def _decline(self, key: Hashable, reason: str) -> None:
        self._declined.add(key)
        self._give_reason(reason)

    def _give_reason(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)
            self._update_verdict()
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("a training step is not captured as a CUDA graph: %s", reason)

    def _update_verdict(self) -> None:
        why = "; ".join(self._reasons)
        if not self._graphs:
            self.verdict = f"not captured: {why}"
        else:
            self.verdict = f"captured, except where: {why}" if why else "captured"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
