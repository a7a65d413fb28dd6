"""Held-out targets are looked at as those of training are: a metric of labels that do not fit would say anything."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiLabel, MultiTaskHeads, Regression, Trainer

GENERATOR = torch.Generator().manual_seed(1)
INPUTS = torch.randn(64, 6, generator=GENERATOR)
CLASSES = INPUTS[:, :3].argmax(1)


def trainer(task=None, name="a", **options):
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {name: task or Classification(3)}, main=name)
    return Trainer(nn.Linear(6, 8), heads, device="cpu", **options)


@pytest.mark.parametrize(
    ("targets", "error", "line"),
    [
        ({"a": CLASSES.float()}, TypeError, "targets of a must be integers, not torch.float32"),
        (
            {"a": CLASSES + 1},
            InputError,
            r"held-out targets of a: each of \d+ lies outside \[0, 3\) and is not ignore_index -100",
        ),
        ({"A": CLASSES}, InputError, r"a held-out batch has no target of any task \(a\); it has A"),
        ({"a": CLASSES[:3]}, ValueError, r"targets of a must be \(64,\), not \(3,\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, error, line):
    with pytest.raises(error, match=line):
        trainer().evaluate([(INPUTS, targets)])


def test_the_fix_for_classes_among_which_some_are_nan_keeps_these_missing():
    floats = CLASSES.float()
    floats[::4] = float("nan")
    with pytest.raises(
        TypeError, match=r"pass classes as target\.nan_to_num\(-7\)\.long\(\), in which NaN is"
    ) as said:
        trainer(Classification(3, ignore_index=-7)).evaluate([(INPUTS, {"a": floats})])
    fix = re.search(r"target\.(\S+\(\))", str(said.value))
    fixed = eval(fix[0], {"target": floats})
    assert torch.equal(fixed, CLASSES.where(torch.arange(64) % 4 > 0, -7))
    with pytest.raises(TypeError, match=r"target\.float\(\), with NaN where one is missing"):
        trainer(Regression(1)).evaluate([(INPUTS, {"a": CLASSES[:, None]})])


def test_targets_of_sequences_are_not_turned_around():
    inputs = torch.randn(4, 5, 6, generator=GENERATOR)
    targets = inputs[..., :3].argmax(-1)
    assert 0.0 <= trainer().evaluate([(inputs, {"a": targets})])["a"] <= 1.0
    with pytest.raises(ValueError, match=r"targets of a must be \(4, 5\), not \(5, 4\)"):
        trainer().evaluate([(inputs, {"a": targets.T.contiguous()})])


def test_a_class_that_a_byte_holds_is_there():
    """-100, which a byte holds as 156, says of no byte that a label is missing."""
    targets = torch.full((16,), 156, dtype=torch.uint8)
    found = {}
    for target in (targets, targets.long(), targets.to(torch.uint16)):
        batch = (torch.ones(16, 6), {"a": target})
        training = trainer(Classification(200), accumulate=2, log_every=1, lr=0.1)
        history = training.fit([batch] * 4, val=[batch], epochs=20)
        found[target.dtype] = history.steps[-1].losses, history.evaluations[-1].metrics
        assert training.heads.label_counts({"a": target})["a"] == 16
    assert found[torch.uint8] == found[torch.int64] == found[torch.uint16]
    assert found[torch.uint8][1] == {"a": 1.0}


def test_r2_is_the_mean_of_the_outputs():
    heads = MultiTaskHeads(6, {"a": Regression(3)}, main="a")
    values = torch.randn(200, 3, generator=GENERATOR) + torch.tensor([0.0, 1000.0, 5.0])
    values[:, 2] = 5.0  # which does not vary, and says nothing
    values[::7, 0] = math.nan
    with torch.no_grad():
        heads.linear("a").weight.zero_()
        heads.linear("a").bias.copy_(torch.tensor([0.1, 1000.0, 4.0]))
    found = Trainer(nn.Identity(), heads, device="cpu").evaluate([(torch.zeros(200, 6), {"a": values})])["a"]
    by_output = []
    for output, said in ((0, 0.1), (1, 1000.0)):
        known = values[:, output][~values[:, output].isnan()].double()
        by_output.append(1 - ((known - said) ** 2).sum() / ((known - known.mean()) ** 2).sum())
    assert found == pytest.approx(float(sum(by_output)) / 2, rel=1e-3)


def test_a_metric_of_ones_own_sees_soft_labels_as_f1_does():
    seen = []
    data = [(INPUTS, {"a": torch.tensor([0.9, 0.2]).expand(64, 2)})]
    training = trainer(MultiLabel(2), metrics={"a": lambda predicted, target: seen.append(target) or 0.0})
    training.evaluate(data)
    assert seen[0][0].tolist() == [1, 0]
