"""Kinds of heads: an open set of records, whose element functions say what their oracles say."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, task_of_column
from mt2st_fast.kernels.heads.kind import MAX_NUMBERS, elementwise_kinds

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
