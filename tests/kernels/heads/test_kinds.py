"""Kinds of heads: an open set of records, whose element functions say what their oracles say."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, row_losses, task_of_column
from mt2st_fast.kernels.heads.kind import MAX_NUMBERS, column_weights_on, elementwise_kinds
from mt2st_fast.kernels.heads.kinds.binary import MultiLabel
from mt2st_fast.kernels.heads.kinds.softmax import Classification

ELEMENTWISE = elementwise_kinds()


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=repr)
def test_the_element_function_is_the_oracle_and_its_gradient(kind):
    generator = torch.Generator().manual_seed(0)
    z = (4 * torch.randn(200, 1, generator=generator, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, 2, (200, 1), generator=generator).double()
    head = HeadSpec(kind, 1)
    numbers = (*head.options.numbers, *[0.0] * MAX_NUMBERS)[:MAX_NUMBERS]
    loss, dz = kind.element(z.detach(), y, 1.0, numbers)
    expected = kind.loss(z, y, head)
    (gradient,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(loss.mean(), expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(dz / len(z), gradient, rtol=1e-10, atol=1e-14)


def test_a_kind_that_there_is_not_is_named():
    with pytest.raises(AttributeError, match=r"unknown kind RANKING; available: BINARY, HUBER, .*SQUARED"):
        _ = Kind.RANKING


def test_codes_tell_kinds_apart():
    assert len({kind.code for kind in Kind}) == len(list(Kind)) >= 4


def test_a_copy_of_a_spec_is_the_same_kind():
    head = HeadSpec(Kind.HUBER, 3, delta=0.5)
    for again in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert again == head
        assert again.kind is Kind.HUBER
        assert again.delta == 0.5


def test_a_layout_comes_back_from_its_key():
    layout = HeadLayout(
        (
            HeadSpec(Kind.SOFTMAX, 3, class_weights=[1, 2, 0], label_smoothing=0.1),
            HeadSpec(Kind.HUBER, 2, delta=0.5),
        ),
        ("a", "b"),
    )
    assert HeadLayout.from_key(layout.key) == layout


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Kind.SQUARED, {"delta": 1.0}, "delta belongs to HUBER heads, but this one is SQUARED"),
        (Kind.BINARY, {"label_smoothing": 0.1}, "label_smoothing belongs to SOFTMAX heads"),
        (Kind.SOFTMAX, {"temperature": 2.0}, "no kind of head has an option temperature"),
    ],
)
def test_no_option_is_dropped(kind, options, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(kind, 2, **options)


def test_every_column_of_labels_has_its_task():
    assert {column: task_of_column(column, 3).head.kind for column in ("classes", "labels", "values")} == {
        "classes": Kind.SOFTMAX,
        "labels": Kind.BINARY,
        "values": Kind.SQUARED,
    }
    with pytest.raises(
        ValueError,
        match="0 kinds of head fit a column of ranks, but there must be exactly one; columns are of classes, labels",
    ):
        task_of_column("ranks", 3)


WEIGHTED = {
    "classes": lambda last: HeadSpec(Kind.SOFTMAX, 3, class_weights=(1.0, 2.0, last)),
    "values": lambda last: HeadSpec(Kind.BINARY, 3, pos_weight=(1.0, 2.0, last)),
}


def losses_of(head, logits):
    target = torch.tensor([0, 1]) if head.kind.takes_classes else torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    return row_losses(logits, target, head)[0]


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_weights_that_a_prediction_has_made_serve_training(make):
    """torch refuses to save for a backward pass what was made within torch.inference_mode."""
    head, logits = make(0.25), torch.randn(2, 3, requires_grad=True)
    with torch.inference_mode():
        expected = losses_of(head, logits)
    losses = losses_of(head, logits)
    losses.sum().backward()
    assert torch.equal(losses.detach(), expected)


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_weights_stay_where_a_graph_reads_them(make):
    """However many other heads there are: a CUDA graph keeps only an address."""
    of_graph = column_weights_on(make(0.5), torch.float32, torch.device("cpu"))
    losses_of(make(0.5), torch.randn(2, 3))
    for i in range(300):
        losses_of(make(1.0 + i), torch.randn(2, 3))
    assert column_weights_on(make(0.5), torch.float32, torch.device("cpu")) is of_graph


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_a_step_copies_no_weights_to_its_device(make, monkeypatch):
    """A host waits for such a copy."""
    logits, head = torch.randn(2, 3), make(0.75)
    losses_of(head, logits)
    monkeypatch.setattr(torch, "tensor", None)
    row_losses(
        logits, torch.zeros(2, dtype=torch.long) if head.kind.takes_classes else torch.zeros(2, 3), head
    )


@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_weights_of_a_transformation_are_not_kept(make):
    head = make(1.25)
    torch.func.grad(lambda logits: losses_of(head, logits).sum())(torch.randn(2, 3))
    kept = column_weights_on(head, torch.float32, torch.device("cpu"))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)


def test_weights_of_classes_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="class_weights are all 0, so no label would count"):
        Classification(3, class_weights=[0, 0.0, 0])
    assert Classification(3, class_weights=[0, 1, 0]).class_weights == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("one", [2.0, 3, torch.tensor(2.0)])
def test_one_number_for_all_labels_is_named(one):
    with pytest.raises(ValueError, match="pos_weight must be a list with one number per output"):
        MultiLabel(3, pos_weight=one)
