"""A result says on which kind of processor it was made."""

from __future__ import annotations

import pytest

from mt2st_fast.environment import _processor_of, processor

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
