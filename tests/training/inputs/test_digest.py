"""What tells one set of batches from another, by their content."""

from __future__ import annotations

import torch

from mt2st_fast.training.inputs.digest import content_of


def batches(labels: torch.Tensor) -> list[object]:
    return [(torch.arange(len(labels)).unsqueeze(1), {"main": labels})]


def test_the_content_counts_however_it_lies_in_memory() -> None:
    """Every second of two numbers is one number, whose tensor is contiguous and steps by two."""
    every_second = torch.tensor([7, 8])[::2]
    assert every_second.is_contiguous()
    assert every_second.stride() == (2,)
    assert content_of(batches(every_second)) == content_of(batches(torch.tensor([7])))
    assert content_of(batches(torch.tensor([8]))) != content_of(batches(torch.tensor([7])))
    three = torch.arange(6)[::2]
    assert content_of(batches(three)) == content_of(batches(three.clone()))
