"""A result says on which kind of processor it was made."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import InputError
from mt2st_fast.environment import _processor_of, device_named, processor

ONE = [
    "processor\t: 0",
    "cpu family\t: 25",
    "model\t\t: 17",
    "model name\t: AMD EPYC",
    "flags\t\t: fpu avx avx2",
]


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (ONE, "AMD EPYC (cpu family 25, model 17, AVX2)"),
        ([*ONE[:-1], ONE[-1] + " avx512f"], "AMD EPYC (cpu family 25, model 17, AVX-512)"),
        ([*ONE, "processor: 1", "model name: another"], "AMD EPYC (cpu family 25, model 17, AVX2)"),
        (["processor : 0", "model name : Neoverse"], "Neoverse"),
        (["processor : 0", "CPU part : 0xd0c"], None),
    ],
)
def test_generations_of_one_name_are_told_apart(lines: list[str], name: str | None) -> None:
    assert _processor_of(lines) == name


def test_this_machine_has_a_name() -> None:
    assert processor()


@pytest.mark.parametrize("name", ["meta", "hpu", "privateuseone", "mtia", "fpga"])
def test_a_device_without_numbers_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"device {name} is not available to torch here; use cpu"):
        device_named(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda:1").index == 1
    with pytest.raises(InputError, match="device cuda:2 is not available; torch sees cuda:0, cuda:1"):
        device_named("cuda:2")
