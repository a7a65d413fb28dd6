"""Auxiliary tasks beside Word2Vec's text: what they teach, when they end, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import (
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    AdaTask,
    Alternate,
    DynamicWeightAverage,
    InputError,
    MultiTask,
    SingleTask,
    Switch,
    Uncertainty,
    Word2Vec,
)

SMALL = {"vector_size": 20, "min_count": 2, "window": 3, "epochs": 5, "sample": 0.0}


def sentences() -> list[list[str]]:
    """Sentences of words of one topic each."""
    generator = np.random.default_rng(0)
    topics = [[f"{name}{i}" for i in range(12)] for name in ("sea", "sky")]
    return [list(generator.choice(topics[i % 2], 8)) for i in range(800)]


def cosine(model: Word2Vec, a: str, b: str) -> float:
    x, y = model.vector(a), model.vector(b)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("sg", [0, 1])
@pytest.mark.parametrize("subwords", [{}, {"min_n": 2, "max_n": 3, "bucket": 500}])
def test_pairs_come_as_close_as_people_say(pairs, sg, subwords):
    plain = Word2Vec(sentences(), sg=sg, **SMALL, **subwords)
    taught = Word2Vec(
        sentences(), sg=sg, tasks={"similarity": pairs}, schedule=MultiTask(), **SMALL, **subwords
    )
    for a, b, said in (("sea0", "sky0", 1.0), ("sea1", "sea2", 0.0)):
        assert abs(cosine(taught, a, b) - said) < 0.7 * abs(cosine(plain, a, b) - said)
    # The text is still learned.
    assert taught.losses[-1] < taught.losses[0]


def test_analogies_train_too(tmp_path):
    path = tmp_path / "analogies.txt"
    path.write_text(
        ": first\n" + "\n".join(f"sea{i} sky{i} sea{i + 1} sky{i + 1}" for i in range(11)), encoding="utf-8"
    )
    taught, untaught = (
        Word2Vec(sentences(), tasks={"analogy": path}, schedule=MultiTask(weights=weight), **SMALL)
        for weight in (1.0, 1e-6)
    )
    # The text alone lowers this loss, too.
    assert taught.task_losses["analogy"][-1] < 0.5 * untaught.task_losses["analogy"][-1]


@pytest.mark.parametrize(("schedule", "turns"), [(None, 60), (Switch(at=0.25), 25), (SingleTask(), 0)])
def test_tasks_retire_by_the_schedule(pairs, schedule, turns):
    model = Word2Vec(sentences(), tasks={"similarity": pairs}, schedule=schedule, **SMALL)
    assert len(model.task_losses["similarity"]) == turns
    if not turns:
        assert np.array_equal(model.vectors, Word2Vec(sentences(), **SMALL).vectors)


@pytest.mark.parametrize(
    ("schedule", "does"),
    [
        (AdaptiveSwitch(), "compares the tasks' gradients on held-out batches"),
        (AdaptiveTaskSelector(), "selects which parts of the model train"),
        (DynamicWeightAverage(), "decides by the losses"),
        (Uncertainty(), "learns its weights"),
        (Alternate(), "trains the encoder and the tasks in turns"),
        (AdaTask(), "keeps optimizer moments per task"),
    ],
)
def test_a_schedule_that_does_more_than_weigh_is_refused(pairs, schedule, does):
    with pytest.raises(InputError, match=f"{type(schedule).__name__} .*{does}"):
        Word2Vec(sentences(), tasks={"similarity": pairs}, schedule=schedule, **SMALL)


def test_the_same_bits_every_time(pairs):
    models = [Word2Vec(sentences(), tasks={"similarity": pairs}, **SMALL) for _ in range(2)]
    assert np.array_equal(models[0].vectors, models[1].vectors)


def test_what_cannot_be_used_is_named(pairs, tmp_path):
    with pytest.raises(InputError, match="tasks: 'syntax' is unknown; available: similarity, analogy"):
        Word2Vec(sentences(), tasks={"syntax": pairs}, **SMALL)
    with pytest.raises(InputError, match="nowhere"):
        Word2Vec(sentences(), tasks={"similarity": tmp_path / "nowhere"}, **SMALL)
    strange = tmp_path / "strange.tsv"
    strange.write_text("sun\tmoon\t5\n", encoding="utf-8")
    with pytest.raises(InputError, match="no pair has all its words"):
        Word2Vec(sentences(), tasks={"similarity": strange}, **SMALL)


def test_a_text_alone_has_no_moments(monkeypatch):
    monkeypatch.setattr(
        "mt2st_fast.training.optimizers.row_sparse.RowSparseOptimizer.row_state",
        lambda *_: pytest.fail("moments were made"),
    )
    Word2Vec(sentences(), **SMALL)
