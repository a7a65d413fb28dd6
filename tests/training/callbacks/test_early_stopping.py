"""A run ends at its plateau, says so, and ends there again where it goes on from a checkpoint."""

from __future__ import annotations

import json
import math

import pytest

from mt2st_fast import EarlyStopping, Evaluation, History, InputError
from tests.training.small_runs import Stop, assert_same, batches, trainer_of


def history_of(*qualities):
    return History(
        "a", evaluations=[Evaluation(10 * i, i, {"a": q}, 0.0) for i, q in enumerate(qualities, 1)]
    )


@pytest.mark.parametrize(
    ("qualities", "patience", "min_delta", "since"),
    [
        ([0.5, 0.6, 0.6, 0.6], 2, 0.0, 20),
        ([0.5, 0.6, 0.6], 2, 0.0, None),
        ([0.5, 0.6, 0.6, 0.7], 2, 0.0, None),
        ([0.5, 0.51, 0.52, 0.53], 3, 0.05, 10),
        ([0.5, 0.51, 0.52, 0.56, 0.57], 3, 0.05, None),  # small rises add up
        ([0.5, math.nan, math.nan, math.nan], 2, 0.0, None),  # no number decides nothing
        ([math.nan, 0.5, math.nan, 0.4, 0.4], 2, 0.0, 20),
        ([], 1, 0.0, None),
        ([-3.0, -2.0, -2.5], 1, 0.0, 20),  # an R² may be negative
    ],
)
def test_a_plateau_is_so_many_evaluations_without_a_rise(qualities, patience, min_delta, since):
    reason = EarlyStopping(patience, min_delta).plateau(history_of(*qualities))
    assert (reason is None) == (since is None)
    if since is not None:
        assert f"at step {since}" in reason


@pytest.mark.parametrize("options", [(0,), (1.5,), (2, -0.1), (2, math.nan)])
def test_what_is_no_patience_is_refused(options):
    with pytest.raises(InputError, match=r"patience|min_delta"):
        EarlyStopping(*options)


def fit(trainer, **options):
    return trainer.fit(batches(), val=batches()[:2], evaluate_every=2, epochs=8, **options)


def test_a_run_ends_at_its_plateau_and_says_so(tmp_path):
    whole = fit(trainer_of())
    history = fit(trainer_of(callbacks=[EarlyStopping(3, 0.2)]))
    assert whole.stopped is None
    assert history.evaluations == whole.evaluations[: len(history.evaluations)]
    assert len(history.evaluations) < len(whole.evaluations)
    assert "has not risen by more than 0.2 in 3 evaluations" in history.stopped
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    history.write_jsonl(tmp_path / "history.jsonl")
    last = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    assert last == {"kind": "stopped", "step": history.evaluations[-1].step, "reason": history.stopped}


def test_a_run_that_goes_on_ends_where_it_would_have(tmp_path):
    path = tmp_path / "run.safetensors"
    straight, first, second = (
        trainer_of(callbacks=[EarlyStopping(3, 0.2), *more]) for more in ([], [Stop(5)], [])
    )
    expected = fit(straight)
    assert fit(first, checkpoint=path).stopped is None
    assert fit(second, checkpoint=path, resume=True) == expected
    assert_same(second, straight)
    # Once it has come to its plateau there is nothing left to do.
    third = trainer_of(callbacks=[EarlyStopping(3, 0.2)])
    assert fit(third, checkpoint=path, resume=True) == expected
    assert third.step == straight.step
    # Without the callback, or with more patience, it goes on, and its history does not say that it has stopped.
    fourth = trainer_of()
    assert fit(fourth, checkpoint=path, resume=True).stopped is None
    assert fourth.step == fourth.total_steps > straight.step


def test_the_last_step_is_no_early_end():
    history = trainer_of(callbacks=[EarlyStopping(1, 9.0)]).fit(batches(), val=batches(), epochs=2)
    assert len(history.evaluations) == 2
    assert history.stopped is None
