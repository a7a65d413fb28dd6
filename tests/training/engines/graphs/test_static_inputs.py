"""The inputs of a graph: what tells two of them apart, what no buffer can stand for, how they are copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import MultiTask
from mt2st_fast.training.engines.graphs.static_inputs import (
    ALIGNMENT_BYTES,
    StaticInputs,
    UncapturableError,
    signature,
)
from tests.training.graphs_on_cpu import GraphedOnCpu


def test_a_signature_tells_shapes_dtypes_and_constants_apart():
    like = [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 3])]
    same = [({"a": torch.ones(2, 3)}, [torch.ones(4, dtype=torch.int64), None, 3])]
    assert signature(like) == signature(same)
    assert hash(signature(like)) == hash(signature(same))
    others = [
        [({"a": torch.zeros(3, 2)}, [torch.zeros(4, dtype=torch.int64), None, 3])],
        [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int32), None, 3])],
        [({"a": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 4])],
        [({"b": torch.zeros(2, 3)}, [torch.zeros(4, dtype=torch.int64), None, 3])],
        [({"a": torch.zeros(2, 3)}, (torch.zeros(4, dtype=torch.int64), None, 3))],
        [({"a": torch.zeros(2, 3, device="meta")}, [torch.zeros(4, dtype=torch.int64), None, 3])],
    ]
    for other in others:
        assert signature(other) != signature(like)


@pytest.mark.parametrize(
    "value", [{1, 2}, torch.eye(2).to_sparse(), [object()]], ids=["set", "sparse", "object"]
)
def test_inputs_that_no_buffer_can_stand_for_are_named(value):
    with pytest.raises(UncapturableError, match="inputs contain"):
        signature((value, {}))


def test_such_inputs_run_eagerly(toy):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.encoder()

        def forward(self, inputs):
            return self.inner(inputs[0])

    batches = [((x, {1}), y) for x, y in toy.batches(6)]
    trainer = GraphedOnCpu(Forgetful(), toy.heads(), schedule=MultiTask())
    history = trainer.fit(batches, epochs=1)
    assert (
        history.phases[0].graph
        == "not captured: inputs contain set, which cannot be copied into a static buffer"
    )


def test_inputs_are_copied_into_one_block():
    def batch(seed):
        torch.manual_seed(seed)
        return {
            "words": torch.randint(1000, (5, 3)),
            "mask": [torch.rand(7) > 0.5, torch.randn(4, 6, dtype=torch.float64).t()],
            "none": torch.empty(0, 3),
            "half": torch.randn(3).to(torch.bfloat16),
            "constant": "text",
        }

    inputs = StaticInputs(batch(0), torch.device("cpu"))
    addresses = [inputs.value[key].data_ptr() for key in ("words", "half")]
    for seed in range(3):
        inputs.copy_from(batch(seed))
        expected = batch(seed)
        for key in ("words", "none", "half"):
            assert torch.equal(inputs.value[key], expected[key])
            assert inputs.value[key].dtype == expected[key].dtype
        for ours, theirs in zip(inputs.value["mask"], expected["mask"], strict=True):
            assert torch.equal(ours, theirs)
        assert inputs.value["constant"] == "text"
    assert [inputs.value[key].data_ptr() for key in ("words", "half")] == addresses
    assert (addresses[1] - addresses[0]) % ALIGNMENT_BYTES == 0
