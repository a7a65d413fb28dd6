"""What a stack of layers is made of, and the memory of its LayerNorms."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast.kernels import Dense, HeadLayout, HeadSpec, Kind, Layer, Norm, RowState, StackModel
from mt2st_fast.kernels.step.on_numba.stack_memory import memory_of

LAYOUT = HeadLayout((HeadSpec(Kind.SOFTMAX, 3),))


def dense(*shape):
    return Dense(torch.ones(shape, dtype=torch.float32), RowState(), 0, True)


def model(*layers):
    return StackModel(layers, [(dense(3, 5), None)], LAYOUT)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer(None, None, "relu"), "a weight, a LayerNorm, or both"),
        (Layer(dense(5, 4), None, "none", Norm(4, 1e-5, None, None)), "over 4 numbers, and its layer has 5"),
        (Layer(dense(5, 4), None, "none", Norm(5, 1e-5, dense(1), None)), r"parameter of shape \(1,\)"),
        (Layer(None, None, "none", Norm(5, 1e-5, dense(5), dense(6))), r"parameter of shape \(6,\)"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        model(layer)


def test_a_model_without_layernorm_has_no_memory_for_it():
    assert memory_of(model(Layer(dense(5, 4), dense(5), "relu")), 10).norms is None


def test_gradients_before_a_layernorm_without_weight_are_where_those_after_it_were():
    norm = Norm(5, 1e-5, None, None)
    memory = memory_of(model(Layer(dense(5, 4), None, "relu"), Layer(None, None, "none", norm)), 10)
    before, after = memory.dense.layers
    assert before["d_outputs"] == after["d_outputs"]
    assert list(memory.norms["here"]) == [0, 1]
