"""What a user's own schedule must return: one line names the schedule, and what is wrong with it."""

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiTaskHeads, PhaseController, Trainer, Word2Vec


class Own:
    def __init__(self, weights):
        self.weights = weights

    def task_weights(self, moment, main, auxiliary):
        return self.weights


WRONG = {
    "a misspelt name": ({"a": 1.0, "bb": 1.0}, "bb, which is not a task; available: a, b"),
    "no weights": ({}, "the main task a cannot retire"),
    "no main task": ({"b": 1.0}, "the main task a cannot retire"),
    "nothing": (None, r"must return {task: weight}, not a NoneType"),
    "a list": ([1.0, 1.0], r"must return {task: weight}, not a list"),
    "NaN": ({"a": 1.0, "b": float("nan")}, "a finite number for b, not nan"),
    "infinite": ({"a": 1.0, "b": float("inf")}, "a finite number for b, not inf"),
    "text": ({"a": "much"}, "a finite number for a, not 'much'"),
}


def _heads():
    return MultiTaskHeads(8, {"a": Classification(3), "b": Classification(2)}, main="a")


def _batches():
    torch.manual_seed(0)
    return [(torch.randn(6, 4), {"a": torch.arange(6) % 3, "b": torch.arange(6) % 2})] * 3


@pytest.mark.parametrize("what", WRONG)
def test_a_trainer_refuses_it(what):
    weights, message = WRONG[what]
    with pytest.raises(InputError, match=rf"Own\.task_weights .*{message}"):
        Trainer(nn.Linear(4, 8), _heads(), schedule=Own(weights), device="cpu").fit(_batches(), epochs=1)


@pytest.mark.parametrize("what", WRONG)
def test_a_controller_refuses_it(what):
    weights, message = WRONG[what]
    with pytest.raises(InputError, match=message):
        PhaseController(_heads(), Own(weights)).step(0, 10, 5)


def test_word2vec_refuses_it(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\t9\nc\td\t1\n")
    text = [["a", "b", "c", "d"]] * 50
    with pytest.raises(InputError, match="similar, which is not a task"):
        Word2Vec(
            text,
            vector_size=8,
            min_count=1,
            epochs=1,
            tasks={"similarity": path},
            schedule=Own({"similar": 1}),
        )


def test_numbers_of_torch_and_retired_tasks_are_fine():
    weights = {"a": torch.tensor(1.0), "b": 1}
    history = Trainer(nn.Linear(4, 8), _heads(), schedule=Own(weights), device="cpu").fit(
        _batches(), epochs=1
    )
    assert history.steps[-1].weights == {"a": 1.0, "b": 1.0}
