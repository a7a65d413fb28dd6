"""Self-training: when the main task's phase begins, the model labels the rows that have no label of it.

The tasks that have just retired taught the encoder what is in those rows, and in that phase nothing else would read
them. The labels stay as they were given (Lee, "Pseudo-Label", ICML workshop 2013, gives them anew in every step).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.compiling import stopwatch
from mt2st_fast.model.modes import evaluating
from mt2st_fast.model.sharded import let_go_of_gathered
from mt2st_fast.model.task_features import features_and_mask
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.evaluation import Shortcuts
from mt2st_fast.training.inputs.batch import to_device
from mt2st_fast.training.inputs.encoding import encode
from mt2st_fast.training.inputs.sources import Source


class SelfTraining:
    """The self-training of a run: `due` says when, `label` labels. shortcuts: an engine that may be faster than the
    encoder.
    """

    def __init__(self, parts: StepParts, source: Source, shortcuts: Shortcuts) -> None:
        self._parts, self._source, self._shortcuts = parts, source, shortcuts

    def due(self, before: Sequence[str], active: Sequence[str]) -> bool:
        """Return whether a phase of the tasks `active`, after one of `before`, is one of the main task alone."""
        return len(active) == 1 < len(before) and self._source.self_training

    def label(self, steps: int) -> tuple[str, float]:
        """Return labels for `Source.take_own_labels`, of as many rows as these steps can draw, and the seconds that it
        took. Several processes take those of process 0.
        """
        seconds = stopwatch()
        dtype, device = self._parts.options.autocast_dtype, self._parts.device
        try:
            with (
                torch.no_grad(),
                evaluating(self._parts.encoder),
                torch.autocast(device.type, dtype, enabled=dtype is not None),
            ):
                labels = self._source.own_labels(self._logits, steps)
        finally:
            let_go_of_gathered(self._parts.encoder)
        if self._parts.processes.are_several and not self._parts.own_data:
            labels = self._parts.processes.from_first(labels)
        return labels, seconds()

    def _logits(self, inputs: Any) -> Tensor:
        heads, inputs = self._parts.heads, to_device(inputs, self._parts.device)
        known = self._shortcuts.features(inputs)
        features, mask = encode(self._parts.encoder, inputs) if known is None else features_and_mask(known)
        return heads.logits(features, heads.main, mask).float()
