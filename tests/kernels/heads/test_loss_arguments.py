"""The fused op, its layouts and its choice of a backend name what is wrong with their arguments."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mt2st_fast.kernels import HeadLayout, HeadSpec, choose_backend
from tests.kernels.heads.loss_problems import (
    BINARY,
    HEADS,
    HUBER,
    SOFTMAX,
    SQUARED,
    by_every_plan,
    call,
    make_problem,
)


@by_every_plan
class Series(list):
    """As pandas has it: iterated in the order of its index, which may be any."""

    def keys(self):
        return [1, 0]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("bad", [-1, 17, 2**40])
def test_a_class_outside_names_its_task(backend, bad):
    problem = make_problem(HEADS["mixed"], 300)
    problem = replace(problem, layout=HeadLayout(problem.layout.heads, ("upos", "b", "c", "d", "e")))
    problem.targets[0][299] = bad
    with pytest.raises(ValueError, match=rf"targets of upos: {bad} lies outside \[0, 17\)"):
        call(problem, backend=backend)


BAD = {
    "features 3d": (ValueError, "features must be", lambda p: replace(p, features=p.features[None])),
    "features int": (TypeError, "features must be", lambda p: replace(p, features=p.features.long())),
    "features sparse": (
        TypeError,
        r"features must be dense, not torch.sparse_coo; pass tensor.to_dense\(\)",
        lambda p: replace(p, features=p.features.to_sparse()),
    ),
    "targets sparse": (
        TypeError,
        r"targets of task 1 must be dense, not torch.sparse_coo; pass tensor.to_dense\(\)",
        lambda p: with_target(p, 1, torch.ones(9, 6).to_sparse()),
    ),
    "features complex": (TypeError, "features must be", lambda p: replace(p, features=p.features + 0j)),
    "weight rows": (ValueError, "weight must be", lambda p: replace(p, weight=p.weight[1:])),
    "weight columns": (ValueError, "weight must be", lambda p: replace(p, weight=p.weight[:, 1:])),
    "weight int": (TypeError, "weight must be", lambda p: replace(p, weight=p.weight.long())),
    "bias 2d": (ValueError, "bias must be", lambda p: replace(p, bias=p.bias[None])),
    "bias int": (TypeError, "bias must be", lambda p: replace(p, bias=p.bias.long())),
    "task_weights length": (
        ValueError,
        "task_weights must",
        lambda p: replace(p, task_weights=torch.ones(4)),
    ),
    "task_weights dtype": (
        TypeError,
        "task_weights must",
        lambda p: replace(p, task_weights=p.task_weights.double()),
    ),
    "targets missing": (
        ValueError,
        "targets: 4 given, but there are 5",
        lambda p: replace(p, targets=p.targets[1:]),
    ),
    "targets float classes": (
        TypeError,
        "targets of task 0 must be int",
        lambda p: with_target(p, 0, torch.ones(9)),
    ),
    "targets bool classes": (
        TypeError,
        "targets of task 0 must be int",
        lambda p: with_target(p, 0, torch.ones(9, dtype=torch.bool)),
    ),
    "targets one-hot": (
        ValueError,
        "targets of task 0 must be",
        lambda p: with_target(p, 0, torch.ones(9, 17, dtype=torch.int64)),
    ),
    "targets int labels": (
        TypeError,
        "targets of task 1 must be float",
        lambda p: with_target(p, 1, torch.ones(9, 6, dtype=torch.int64)),
    ),
    "targets label count": (
        ValueError,
        "targets of task 1 must be",
        lambda p: with_target(p, 1, torch.ones(9, 5)),
    ),
    "targets flat values": (
        ValueError,
        "targets of task 2 must be",
        lambda p: with_target(p, 2, torch.ones(9)),
    ),
    "targets rows": (ValueError, "targets of task 4 must be", lambda p: with_target(p, 4, torch.ones(8, 2))),
    "weight device": (ValueError, "weight is on meta", lambda p: replace(p, weight=p.weight.to("meta"))),
    "targets device": (
        ValueError,
        "targets of task 0 are on meta",
        lambda p: with_target(p, 0, p.targets[0].to("meta")),
    ),
}


def with_target(problem, k, target):
    return replace(problem, targets=[target if i == k else t for i, t in enumerate(problem.targets)])


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_named(case):
    error, message, spoil = BAD[case]
    with pytest.raises(error, match=message):
        call(spoil(make_problem(HEADS["mixed"], 9)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"backend": "cuda"}, "backend=cuda is unknown; available: auto, reference, numba, triton"),
        ({"plan": "tiled"}, "plan=tiled is unknown; available: auto, tile, packed, chunked"),
        ({"plan": "tiled", "backend": "reference"}, "plan=tiled is unknown"),
    ],
)
def test_an_unknown_backend_or_plan_lists_those_there_are(option, message):
    with pytest.raises(ValueError, match=message):
        call(make_problem(HEADS["mixed"], 9), **option)


def test_a_backend_that_cannot_run_is_refused_and_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = make_problem(HEADS["mixed"], 9)
    with pytest.raises(
        RuntimeError, match=r"backend=triton cannot be honoured: .* but the tensors are on cpu"
    ):
        call(problem, backend="triton")
    with pytest.raises(RuntimeError, match=r"no kernel for torch\.float64"):
        call(make_problem(HEADS["mixed"], 9, torch.float64), backend="numba")


def test_the_environment_variable_is_honoured(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu, problem = torch.device("cpu"), make_problem(HEADS["mixed"], 9)
    monkeypatch.setenv("MT2ST_BACKEND", "reference")
    assert choose_backend(cpu, torch.float32).name == "reference"
    assert "MT2ST_BACKEND" in choose_backend(cpu, torch.float32).reason
    assert choose_backend(cpu, torch.float32, "numba").name == "numba"
    assert "_Fused" not in call(problem, problem.leaves(), backend="auto").total.grad_fn.name()
    for value, error in (("triton", RuntimeError), ("cuda", ValueError)):
        monkeypatch.setenv("MT2ST_BACKEND", value)
        with pytest.raises(error, match=f"MT2ST_BACKEND={value}"):
            call(problem, backend="auto")
    monkeypatch.setenv("MT2ST_BACKEND", "")
    assert choose_backend(cpu, torch.float32).name == "numba"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SOFTMAX, 0), {}, "size must be"),
        ((SOFTMAX, 3), {"label_smoothing": 1.5}, "label_smoothing must"),
        ((HUBER, 3), {"delta": 0.0}, "delta must"),
        ((SOFTMAX, 3), {"class_weights": (1.0, 2.0)}, "class_weights needs 3"),
        ((SOFTMAX, 2), {"class_weights": (1.0, -2.0)}, "class_weights must be finite and not negative"),
        (
            (SOFTMAX, 2),
            {"class_weights": 2.0},
            "class_weights must be a list with one number per output, not 2.0",
        ),
        ((SOFTMAX, 2), {"class_weights": (1.0, math.inf)}, "class_weights must be finite and not negative"),
        (
            (SOFTMAX, 2),
            {"class_weights": {0: 1.0, 1: 2.0}},
            "class_weights must be a list .* not a dict; pass",
        ),
        (
            (SOFTMAX, 2),
            {"class_weights": Series([1.0, 2.0])},
            "class_weights must be a list .* not a Series; pass",
        ),
        ((SOFTMAX, 2.5), {}, "size must be a whole number of at least 1, not 2.5"),
        ((SOFTMAX, True), {}, "size must be a whole number of at least 1, not True"),
        ((SOFTMAX, 2), {"ignore_index": None}, "ignore_index must be a whole number, not None"),
        ((SOFTMAX, 2), {"class_weights": (1.0, torch.nan)}, "class_weights must be finite and not negative"),
        ((BINARY, 2), {"class_weights": (1.0, 2.0)}, "class_weights belongs to SOFTMAX"),
        ((SOFTMAX, 2), {"pos_weight": (1.0, 2.0)}, "pos_weight belongs to BINARY"),
    ],
)
def test_a_bad_head_option_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(*arguments, **options)


def test_column_options_may_be_lists_or_tensors():
    expected = HeadSpec(SOFTMAX, 2, class_weights=(1.0, 2.0))
    assert hash(HeadSpec(SOFTMAX, 2, class_weights=[1, 2])) == hash(expected)
    assert HeadSpec(SOFTMAX, 2, class_weights=torch.tensor([1.0, 2.0])) == expected


def test_a_layout_needs_heads_and_as_many_names():
    with pytest.raises(ValueError, match="at least one head"):
        HeadLayout(())
    with pytest.raises(ValueError, match="1 names for 2 heads"):
        HeadLayout((HeadSpec(SOFTMAX, 2), HeadSpec(SQUARED, 1)), ("a",))
