"""Graphs without a GPU: a capturer that records a step and runs it again on the graph's inputs, as a replay would."""

from __future__ import annotations

import torch

from mt2st_fast import Trainer
from mt2st_fast.training.run_options import RunOptions

RATE = 2.0**-7  # the same in float32, so that a rate on the device is the same number


class Recorder:
    """A capturer that counts, and may be told to fail."""

    def __init__(self, obstacle=None, error=None):
        self.obstacle, self.error = obstacle, error
        self.warmed_up = self.probed = self.captured = self.replayed = self.released = 0

    def warm_up(self, run):
        self.warmed_up += 1
        return run()

    def probe(self, run):
        self.probed += 1
        return run(), self.obstacle

    def capture(self, run):
        self.captured += 1
        if self.error is not None:
            raise self.error

        def replay():
            self.replayed += 1
            return run().clone()

        return replay

    def release(self):
        self.released += 1


class CapturingOnCpu(RunOptions):
    captures = True


class EagerOnCpu(Trainer):
    """Takes the steps of a small encoder as a graph captures them, not in one kernel call."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{"backward": "autograd"} | options)


class GraphedOnCpu(EagerOnCpu):
    def __init__(self, *args, capturer=None, **options):
        super().__init__(*args, **options)
        self.options = CapturingOnCpu(**vars(self.options))
        self.capturer = capturer or Recorder()

    def _make_capturer(self):
        return self.capturer


def both(toy, batches, *, epochs=4, **options):
    """The same training without graphs and with them: (history, weights) of each, and the second trainer."""
    results = []
    for kind in (EagerOnCpu, GraphedOnCpu):
        torch.manual_seed(3)
        made = {key: value() if key == "callbacks" else value for key, value in options.items()}
        trainer = kind(toy.encoder(dropout=0.1), toy.heads(), **{"lr": RATE, "log_every": 4, **made})
        history = trainer.fit(batches, val=toy.batches(2, seed=7), epochs=epochs)
        modules = (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
        results.append((history, [value.clone() for value in modules]))
    return *results, trainer


def assert_same(eager, graphed):
    assert graphed[0] == eager[0]
    for ours, theirs in zip(graphed[1], eager[1], strict=True):
        assert torch.equal(ours, theirs)
