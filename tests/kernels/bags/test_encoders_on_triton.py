"""Encoders over the Triton kernels, in the interpreter: the reference's results, no wait, few launches."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("triton")

from tests.kernels.interpreter import run_interpreted

SHARES = [("encoders",), ("launches", "refusals", "capacity", "waits", "frozen", "seen")]


def _run_worker(checks: tuple[str, ...]) -> dict[str, Any]:
    return json.loads(run_interpreted("tests.kernels.bags.encoder_worker", *checks).splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Everything that the workers print, computed once: the interpreter takes minutes, so two share them."""
    with ThreadPoolExecutor(max_workers=len(SHARES)) as pool:
        return {name: what for part in pool.map(_run_worker, SHARES) for name, what in part.items()}


def broken(found: dict[str, Any], what: str, least: int) -> list[str]:
    """The names of what does not hold, of at least so many."""
    assert len(found[what]) >= least
    return [name for name, holds in found[what].items() if not holds]


def test_encoders_are_those_of_the_reference_and_follow_a_rate_on_the_device(found):
    assert broken(found, "encoders", 48) == []


def test_ids_past_the_last_bag_change_no_bit_nor_does_sorting_before(found):
    assert broken(found, "capacity", 12) == []


def test_a_step_of_every_encoder_waits_for_nothing(found):
    assert broken(found, "waits", 36) == []


def test_frozen_rows_stay_while_nobody_waits(found):
    assert broken(found, "frozen", 32) == []


def test_a_wait_would_have_been_seen(found):
    assert broken(found, "seen", 8) == []


# The last but one counts the steps of the table.
STEP = ["rank_kernel", "merge_kernel", "piece_kernel", "update_kernel"]


@pytest.mark.parametrize(
    ("case", "launches"),
    [
        ("tagger: embedding side", ["pool_kernel", *STEP]),
        (
            "tagger: whole step",
            ["pool_kernel", "aten::addmm", "aten::relu", "aten::threshold_backward", *["aten::mm"] * 2, "aten::sum",
             *STEP, "aten::_foreach_add_", "aten::_fused_adamw_"],
        ),
        ("bags", ["pool_kernel", *STEP]),
        ("bags: few", ["pool_kernel", "rank_kernel", "piece_kernel", "update_kernel"]),
        ("bags: prepared", ["pool_kernel", "piece_kernel", "update_kernel"]),
        ("bags: prepare", ["pool_kernel", "rank_kernel", "merge_kernel", *["aten::copy_"] * 6]),
    ],
)  # fmt: skip
def test_what_is_launched(found, case, launches):
    assert found["launches"][case] == launches


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("table", "ValueError: the batch was sorted for a table of 9 rows, not 8"),
        ("copy", "ValueError: the batches differ"),
        ("mode", "ValueError: mode must be mean or sum, not max"),
        ("device", "RuntimeError: no kernel supports bags that are sorted on cpu"),
    ],
)
def test_what_does_not_fit_is_named(found, case, message):
    assert found["refusals"][case].startswith(message)
