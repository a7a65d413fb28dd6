"""Tensors are written from where they lie; what safetensors would refuse is copied before."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mt2st_fast.tensor_files import digest_of, on_cpu_apart, write_tensors


def test_only_what_is_not_apart_is_copied(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(4, 3)
    given = {
        "plain": table,
        "tied": table,
        "turned": torch.arange(6).view(2, 3).T,
        "one": torch.arange(4.0)[::2][:1],
        "none": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    apart = on_cpu_apart(given)
    assert apart["plain"].data_ptr() == table.data_ptr()
    assert apart["tied"].data_ptr() != table.data_ptr()
    write_tensors(tmp_path / "t", apart, {"said": "so"})
    read = load_file(tmp_path / "t")
    for name, value in given.items():
        assert torch.equal(read[name], value), name
        assert digest_of(apart[name], name).digest() == digest_of(read[name], name).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_digest_tells_name_type_shape_and_bytes_apart() -> None:
    value = torch.zeros(4)
    others = [torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.tensor([0.0, 0, 0, 1])]
    found = {digest_of(t, "a").digest() for t in (value, *others)} | {digest_of(value, "b").digest()}
    assert len(found) == 5
