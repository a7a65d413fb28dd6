"""Targets that are different numbers must not become one in silence, as models learn in float32."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mt2st_fast.data import open_data
from mt2st_fast.data.readers.narrowing import merged_targets
from mt2st_fast.errors import InputError
from tests.data.readers.opened import message_of


def table(write, *targets, name="t.csv", n=40):
    cells = [targets[i % len(targets)] for i in range(n)]
    if name.endswith(".jsonl"):
        text = "".join(json.dumps({"text": f"film {i}", "y": cell}) + "\n" for i, cell in enumerate(cells))
    else:
        text = "text,y\n" + "".join(f"film {i},{cell}\n" for i, cell in enumerate(cells))
    return f"{name.rpartition('.')[2]}:{write(**{name: text}) / name}"


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_targets_that_all_become_one_are_refused(write, name):
    data = table(write, 1700000000, 1700000001, 1700000002, name=name)
    assert message_of(data, main="y:regression").endswith(
        f"{data}: y: the 3 different targets, such as 1700000000 and 1700000001, are one number in float32, in which "
        "models learn; subtract a number near them all, such as their mean"
    )


def test_targets_of_which_some_become_one_are_told(write):
    [note] = open_data(table(write, *range(20240101, 20240129)), main="y:regression").notes
    assert note.startswith(
        "y: 28 different targets are just 15 in float32, in which models learn, such as 2024010"
    )


@pytest.mark.parametrize("targets", [(0.1 + 0.2, 0.3, 1.0), (3, 3, 3), (1, 2, 3), (-16777216, 16777216)])
def test_what_rounding_does_no_harm_to_is_not_told(write, targets):
    notes = open_data(table(write, *targets), main="y:regression").notes
    assert [note for note in notes if "nothing to learn" not in note] == []


def test_many_numbers_of_many_digits_are_not_told():
    numbers = np.random.default_rng(0).normal(size=100_000)
    assert len(np.unique(numbers.astype(np.float32))) < len(numbers)
    assert merged_targets("t", "y", [None, *numbers.tolist()]) == ""
    with pytest.raises(InputError, match=r"different targets, such as .* are one number"):
        merged_targets("t", "y", (1e9 + 1e-3 * numbers).tolist())


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("target", [1e39, -1e300])
def test_a_target_beyond_float32_is_named_by_its_line(write, name, target):
    message = message_of(table(write, 1.0, target, name=name), main="y:regression")
    line = 2 if name == "t.jsonl" else 3
    assert f"{name}:{line}: {target:g}" in message.replace("1e+300", f"{1e300:g}")
    assert "in column 'y' is beyond 3.4e+38, the largest number of float32" in message
    largest = table(write, 3.4028235e38, -3.4028235e38, name=name)
    assert np.isfinite(open_data(largest, main="y:regression").train.column("y").values).all()
