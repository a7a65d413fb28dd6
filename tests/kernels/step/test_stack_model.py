"""What a stack of layers is made of, and the memory of its norms."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast.kernels import (
    BatchNorm,
    Dense,
    HeadLayout,
    HeadSpec,
    Kind,
    Layer,
    Norm,
    RowState,
    Running,
    StackModel,
)
from mt2st_fast.kernels.step.on_numba.stack_memory import memory_of

LAYOUT = HeadLayout((HeadSpec(Kind.SOFTMAX, 3),))

STATISTICS = Running(torch.zeros(5, dtype=torch.float32), torch.ones(4, dtype=torch.float32), None, 0.1)


def dense(*shape):
    return Dense(torch.ones(shape, dtype=torch.float32), RowState(), 0, True)


def model(*layers):
    return StackModel(layers, [(dense(3, 5), None)], LAYOUT)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer(None, None, "relu"), "a weight, a norm, or both"),
        (Layer(dense(5, 4), None, "none", Norm(4, 1e-5, None, None)), "over 4 numbers, and its layer has 5"),
        (Layer(dense(5, 4), None, "none", Norm(5, 1e-5, dense(1), None)), r"parameter of shape \(1,\)"),
        (Layer(None, None, "none", Norm(5, 1e-5, dense(5), dense(6))), r"parameter of shape \(6,\)"),
        (Layer(None, None, "none", BatchNorm(5, 1e-5, None, None, False, None)), "needs those of the batch"),
        (
            Layer(None, None, "none", BatchNorm(5, 1e-5, None, None, False, STATISTICS)),
            r"parameter of shape \(4,\)",
        ),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        model(layer)


def test_a_model_has_no_memory_for_what_it_lacks():
    memory = memory_of(model(Layer(dense(5, 4), dense(5), "relu")), 10)
    assert memory.norms is None
    assert memory.batch_norms is None
    assert memory.options is None
    other = memory_of(
        model(Layer(dense(5, 4), None, "elu", BatchNorm(5, 0.1, None, None, True, None), (0.5,))), 10
    )
    assert other.norms is None
    assert list(other.batch_norms["here"]) == [1]
    assert other.options.tolist() == [[0.5, 0.0]]


def test_gradients_before_a_layernorm_without_weight_are_where_those_after_it_were():
    norm = Norm(5, 1e-5, None, None)
    memory = memory_of(model(Layer(dense(5, 4), None, "relu"), Layer(None, None, "none", norm)), 10)
    before, after = memory.dense.layers
    assert before["d_outputs"] == after["d_outputs"]
    assert list(memory.norms["here"]) == [0, 1]
