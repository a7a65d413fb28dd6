"""Training over a text as a run: the tables of its kernel alone, steps that are recorded, phases by the schedule."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast import AdaptiveSwitch, AdaptiveTaskSelector, Alternate, MultiTask, SingleTask, Switch
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import stream_key, word_sampler
from mt2st_fast.kernels.context.training import ContextTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream
from mt2st_fast.training.history import PhaseRecord
from mt2st_fast.words import context_run
from mt2st_fast.words.context_run import MOST_CHUNKS, ContextPlan, ContextRun, context_options
from mt2st_fast.words.table_tasks import TableTasks

PLAN = ContextPlan(epochs=3, rate=0.05, least_rate=0.001, seed=7, epochs_before=2)


def text_of(sentences: int) -> Tokens:
    """Sentences of 7 words of one topic each."""
    generator = np.random.default_rng(0)
    topics = [[f"{name}{i}" for i in range(12)] for name in ("sea", "sky")]
    return Tokens.of([list(generator.choice(topics[i % 2], 7)) for i in range(sentences)])


def training_on(text: Tokens, mode: str = "skipgram") -> ContextTraining:
    V = len(text.vocabulary)
    inputs = np.random.default_rng(1).standard_normal((V, 12), np.float32) / 12
    options = context_options(mode, len(text.ids), window=3, negatives=4, shards=2, subwords=False)
    sampler = word_sampler(text.vocabulary.counts, 0.0)
    return ContextTraining(inputs, np.zeros((V, 12), np.float32), sampler, options)


def run_on(text, training, schedule=None, files=None, plan=PLAN):
    tasks = TableTasks(files or {}, text.vocabulary, training.inputs, None, seed=1)
    return ContextRun(training, text, tasks, schedule or SingleTask(), plan)


def finish(run: ContextRun) -> ContextRun:
    for _ in range(PLAN.epochs):
        run.finish_epoch()
    assert run.steps_done == run.total_steps
    run.close()
    return run


@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_chunks_move_the_tables_as_whole_epochs_of_the_kernel_do(mode, monkeypatch):
    monkeypatch.setattr(context_run, "LEAST_CHUNK_WORDS", 1500)
    text = text_of(1200)
    alone, training = training_on(text, mode), training_on(text, mode)
    n_words, rounds = len(text.ids), alone.rounds(len(text.ids))
    fall = (PLAN.rate - PLAN.least_rate) / (PLAN.epochs * n_words)
    losses = []
    for epoch in range(PLAN.epochs):
        key = stream_key(PLAN.seed, PLAN.epochs_before + epoch)
        rate = PLAN.rate - fall * epoch * n_words
        loss, pairs = alone.run(
            Stream(text.ids, text.bounds, key), (0, rounds), Rates(rate, fall, PLAN.least_rate)
        )
        losses.append(loss / pairs)
    run = finish(run_on(text, training))
    assert 1 < run.steps_per_epoch == -(-n_words // 1500) < rounds
    assert np.array_equal(training.inputs, alone.inputs)
    assert np.array_equal(training.outputs, alone.outputs)
    assert run.epoch_losses == pytest.approx(losses, rel=1e-12)
    assert losses[-1] < losses[0]


def test_every_step_is_recorded(pairs):
    text = text_of(4000)
    run = run_on(text, training_on(text), MultiTask(0.5), {"similarity": pairs})
    first = run.step()
    assert (run.moment.step, run.moment.steps_per_epoch, run.moment.total_steps) == (1, 20, 60)
    assert run.history.steps == [first]
    assert first.losses.keys() == first.weights.keys() == {"context", "similarity"}
    assert first.weights == {"context": 1.0, "similarity": 0.5}
    assert first.total == first.losses["context"] + 0.5 * first.losses["similarity"]
    assert first.learning_rate == PLAN.rate
    run.finish_epoch()
    assert (run.steps_done, len(run.epoch_losses)) == (MOST_CHUNKS, 1)
    finish_last = [run.finish_epoch() for _ in range(2)]
    assert run.epoch_losses[1:] == finish_last
    steps = run.history.steps
    assert [record.step for record in steps] == list(range(1, 61))
    assert steps[-1].epoch == 3
    rates = [record.learning_rate for record in steps]
    even = PLAN.rate - (PLAN.rate - PLAN.least_rate) * np.arange(60) / 60
    np.testing.assert_allclose(rates, even, rtol=1e-9)
    assert run.losses_of("similarity") == [record.losses["similarity"] for record in steps]
    assert run.history.train_seconds == pytest.approx(sum(record.step_ms for record in steps) / 1e3)


def test_a_task_retires_into_a_phase_of_the_text_alone(pairs):
    text = text_of(200)
    run = finish(run_on(text, training_on(text), Switch(at=0.25), {"similarity": pairs}))
    assert run.history.phases == [PhaseRecord(0, ("context", "similarity")), PhaseRecord(15, ("context",))]
    assert {phase.engine for phase in run.history.phases} == {"context rounds"}
    assert len(run.losses_of("similarity")) == 15
    assert all(record.weights == {"context": 1.0} for record in run.history.steps[15:])


def test_a_text_shorter_than_its_chunks_has_steps_without_a_loss_of_it(pairs):
    text = text_of(200)
    run = run_on(text, training_on(text), MultiTask(), {"similarity": pairs})
    finish(run)
    assert 0 < len(run.losses_of("context")) < run.total_steps == 60
    assert len(run.losses_of("similarity")) == 60
    assert len(run.epoch_losses) == 3


def test_a_text_alone_asks_no_schedule():
    class Strict(MultiTask):
        def task_weights(self, moment, main, auxiliary):
            pytest.fail("the schedule was asked")

    text = text_of(200)
    run = finish(run_on(text, training_on(text), Strict()))
    assert run.history.phases == [PhaseRecord(0, ("context",))]
    assert run.steps_per_epoch == 1


def test_a_task_that_has_retired_does_not_come_back(pairs):
    class OnAndOff(MultiTask):
        def task_weights(self, moment, main, auxiliary):
            return {main: 1.0} | (dict.fromkeys(auxiliary, 1.0) if moment.step % 2 == 0 else {})

    text = text_of(200)
    run = finish(run_on(text, training_on(text), OnAndOff(), {"similarity": pairs}))
    assert len(run.losses_of("similarity")) == 1
    assert len(run.history.phases) == 2


@pytest.mark.parametrize(
    ("n_words", "shards", "words"), [(100, 2, 512), (1_000_000, 2, 2500), (10**8, 2, 8192), (10**6, 4, 1250)]
)
def test_rounds_are_short_where_the_text_is(n_words, shards, words):
    options = context_options("cbow", n_words, window=5, negatives=5, shards=shards, subwords=False)
    assert options.shard_words == words
    assert options.pull == (0.5 if shards > 2 else 0.0)
    assert context_options("cbow", 9, window=5, negatives=5, shards=2, subwords=True).pull == 0.5


@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_vectors_that_are_no_numbers_end_the_run_in_one_line(mode):
    text = text_of(200)
    training = training_on(text, mode)
    run = run_on(text, training, plan=ContextPlan(epochs=3, rate=0.05, least_rate=0.05, seed=7))
    run.finish_epoch()
    training.inputs[:] = np.nan
    with pytest.raises(
        InputError,
        match=r"at step \d+ of \d+, in epoch 2, trained on context at a rate of 0\.05; lower the initial rate",
    ) as refused:
        run.finish_epoch()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Alternate(1, 1), "Alternate trains the encoder and the tasks in turns"),
        (AdaptiveSwitch(), "AdaptiveSwitch compares the tasks' gradients on held-out batches"),
        (AdaptiveTaskSelector(), "AdaptiveTaskSelector selects which parts of the model train"),
    ],
    ids=repr,
)
def test_a_schedule_that_a_text_cannot_follow_is_refused(pairs, schedule, message):
    text = text_of(200)
    with pytest.raises(
        InputError, match=f"{message}, which training word vectors on a text does not support"
    ):
        run_on(text, training_on(text), schedule, {"similarity": pairs})
    assert run_on(text, training_on(text), schedule).steps_done == 0, "a text alone has no tasks to weigh"
