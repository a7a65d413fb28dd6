"""Word2Vec in a folder, pickled and copied: the same bits, and training goes on as if nothing had been."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mt2st_fast import Diminish, InputError, SingleTask, Word2Vec
from mt2st_fast.training.context_run import ContextRun

TEXT = [["a", "b", "c", "d"], ["b", "c", "e"], ["a", "d", "e"]] * 60
SMALL = {"min_count": 1, "vector_size": 8, "epochs": 2, "seed": 3}
SUBWORDS = {"min_n": 1, "max_n": 2, "bucket": 50}
KINDS = [{}, {"sg": 1, "workers": 3}, SUBWORDS]


def by_folder(model, tmp_path):
    model.save(tmp_path / "model")
    return Word2Vec.load(tmp_path / "model")


WAYS = {
    "folder": by_folder,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "copy": lambda model, _: copy.copy(model),
}


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_with_the_same_bits(way, options, tmp_path):
    model = Word2Vec(TEXT, **SMALL, **options)
    other = WAYS[way](model, tmp_path)
    assert other.words == model.words
    for name in ("vectors", "input_rows", "output_vectors", "counts"):
        ours, theirs = getattr(model, name), getattr(other, name)
        assert np.array_equal(ours, theirs)
        assert not np.shares_memory(ours, theirs)
    assert (other.losses, other.epochs_done, other.seed) == (model.losses, 2, 3)
    before = model.vectors.copy()
    other.train(TEXT)
    assert np.array_equal(model.vectors, before)  # they are two
    model.train(TEXT)
    assert np.array_equal(other.vectors, model.vectors)
    assert np.array_equal(other.output_vectors, model.output_vectors)
    assert other.losses == model.losses


def test_another_process_reads_the_same_bits(tmp_path):
    model = Word2Vec(TEXT, **SMALL, **SUBWORDS)
    model.save(tmp_path / "model")
    code = (
        "import sys; from mt2st_fast import Word2Vec; m = Word2Vec.load(sys.argv[1]);"
        "print((m.vectors.tobytes() + m.output_vectors.tobytes() + m.vector('unseen').tobytes()).hex())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    expected = model.vectors.tobytes() + model.output_vectors.tobytes() + model.vector("unseen").tobytes()
    assert bytes.fromhex(found.stdout.strip()) == expected


def test_a_model_without_words_is_kept_too(tmp_path):
    other = by_folder(Word2Vec(**SMALL), tmp_path)
    assert other.words == []
    other.train(TEXT)
    assert np.array_equal(other.vectors, Word2Vec(TEXT, **SMALL).vectors)


@pytest.mark.parametrize("schedule", [None, SingleTask(), Diminish(eta={"similarity": 0.5})])
def test_tasks_and_their_schedule_are_kept(schedule, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\t9\na\tc\t1\n", encoding="utf-8")
    model = Word2Vec(TEXT, tasks={"similarity": pairs}, schedule=schedule, **SMALL)
    other = by_folder(model, tmp_path)
    assert other.schedule == model.schedule
    assert other.task_losses == model.task_losses
    for each in (model, other):
        each.train(TEXT)
    assert np.array_equal(other.vectors, model.vectors)


def test_a_schedule_of_ones_own_is_pickled_and_refused_by_a_folder(tmp_path):
    class Own(SingleTask):
        pass

    model = Word2Vec(TEXT, schedule=Own(), **SMALL)
    with pytest.raises(InputError, match="the schedule Own cannot be kept in a folder"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert type(copy.deepcopy(model).schedule) is Own


def test_attributes_that_were_set_are_kept(tmp_path):
    model = Word2Vec(TEXT, **SMALL)
    model.alpha = 1e-5  # below min_alpha: `train` refuses it, a folder keeps it
    assert by_folder(model, tmp_path).alpha == 1e-5


def test_a_callback_saves_every_epoch(tmp_path):
    class Saver:
        def on_epoch_end(self, model):
            model.save(tmp_path / f"epoch{model.epochs_done}")

    model = Word2Vec(TEXT, callbacks=[Saver()], **SMALL)
    first, last = (Word2Vec.load(tmp_path / f"epoch{i}") for i in (1, 2))
    assert (first.epochs_done, first.losses) == (1, model.losses[:1])
    assert np.array_equal(last.vectors, model.vectors)
    assert not np.array_equal(first.vectors, model.vectors)


@pytest.mark.parametrize("options", KINDS)
def test_training_that_was_broken_off_leaves_vectors_of_the_tables(options, tmp_path, monkeypatch):
    model = Word2Vec(TEXT, **SMALL, **options)
    step = ContextRun.step

    def broken_off(run):
        step(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(ContextRun, "step", broken_off)
    before = model.vectors.copy()
    with pytest.raises(KeyboardInterrupt):
        model.train(TEXT)
    assert not np.array_equal(model.vectors, before)
    assert np.array_equal(by_folder(model, tmp_path).vectors, model.vectors)


def test_numbers_of_numpy_are_kept(tmp_path):
    model = Word2Vec(TEXT, **(SMALL | {"alpha": np.float32(0.05), "seed": np.int64(3)}))
    other = by_folder(model, tmp_path)
    assert (other.alpha, other.seed) == (np.float32(0.05), 3)


def test_what_is_no_model_or_stands_in_the_way_is_named(tmp_path):
    with pytest.raises(InputError, match="is no model"):
        Word2Vec.load(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is there already and is no model"):
        Word2Vec(TEXT, **SMALL).save(tmp_path)


def test_what_was_set_in_wv_is_kept(tmp_path):
    pytest.importorskip("gensim")
    model = Word2Vec(TEXT, **SMALL)
    model.wv.vectors = np.ones((5, 8), np.float32)
    assert (by_folder(model, tmp_path).vectors == 1).all()
