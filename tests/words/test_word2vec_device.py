"""Word2Vec on a device: what is asked for is done or refused in one line, and never silently something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast import InputError, Word2Vec
from mt2st_fast.words import word2vec_device

TEXT = [["a", "b", "c", "d"]] * 40
SMALL = {"vector_size": 8, "min_count": 1}


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu(no_gpu):
    with pytest.raises(
        InputError, match="device='cuda' is not available: torch sees no CUDA device"
    ) as caught:
        Word2Vec(device="cuda")
    assert "\n" not in str(caught.value)
    on_cpu = Word2Vec(TEXT, **SMALL)
    assert np.array_equal(Word2Vec(TEXT, device="auto", **SMALL).vectors, on_cpu.vectors)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", ""])
def test_an_unknown_device_is_named(device, a_gpu):
    with pytest.raises(InputError, match=f"device '{device}' is unknown; available: cpu, cuda, auto"):
        Word2Vec(device=device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hs": 1, "negative": 0}, r"hierarchical softmax \(hs=1\)"),
        ({"min_n": 3, "max_n": 5}, r"character n-grams \(max_n\)"),
        ({"tasks": {"similarity": "pairs.tsv"}}, r"auxiliary tasks \(tasks\)"),
        ({"sg": 1, "window": 40}, "window 40 and 100 columns are more"),
        ({"vector_size": 1000}, "window 5 and 1000 columns are more"),
    ],
)
def test_what_a_gpu_does_not_train_is_refused_and_auto_trains_it_on_the_cpu(options, message, a_gpu):
    pytest.importorskip("triton")
    with pytest.raises(
        InputError, match=f"device='cuda' does not train .*{message}.*use device='cpu'"
    ) as caught:
        Word2Vec(device="cuda", **options)
    assert "\n" not in str(caught.value)
    assert Word2Vec(device="auto", **options)._training_device().type == "cpu"


def test_a_model_is_asked_again_when_it_is_trained(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = Word2Vec(device="cuda:0", **SMALL)
    assert model._training_device() == torch.device("cuda:0")
    monkeypatch.undo()
    model.device = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="not available"):
        model.train(TEXT)
    model.device = "cpu"
    model.train(TEXT)
    assert model.epochs_done == 5


@pytest.mark.parametrize("sg", [0, 1])
def test_walkers_get_the_models_tables_and_options(sg, a_gpu, monkeypatch):
    pytest.importorskip("triton")
    made = {}

    class Walkers:
        measured = 1.0

        def __init__(self, inputs, outputs, sampler, options, device):
            made.update(inputs=inputs, outputs=outputs, options=options, device=device)
            self.stored = 0

        def rounds(self, n_words):
            return 4

        def run(self, text, rounds, rates):
            made["inputs"] += np.float32(rounds[1] - rounds[0])  # as if the device were the array
            made.setdefault("keys", []).append(int(text.key))
            return 2.0, 4

        def finite(self):
            return True

        def store(self):
            self.stored += 1
            made["stored"] = self.stored

    monkeypatch.setattr(word2vec_device, "WalkTraining", Walkers)
    model = Word2Vec(TEXT * 300, sg=sg, window=3, negative=7, epochs=2, device="auto", **SMALL)
    assert made["inputs"] is model.tables.input_rows
    assert made["outputs"] is model.tables.output_vectors
    assert made["device"].type == "cuda"
    options = made["options"]
    assert (options.mode, options.window, options.negatives) == (("cbow", "skipgram")[sg], 3, 7)
    assert 1 <= options.walkers <= len(TEXT * 300) * 4 // 4096
    assert model.losses == [0.5, 0.5]
    assert model.get_latest_training_loss() == 4
    assert made["stored"] == 2
    assert len(set(made["keys"])) == 2
    assert np.shares_memory(model.wv.vectors, model.tables.input_rows) if _has_gensim() else True


def _has_gensim() -> bool:
    try:
        import gensim  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_saved_model_is_loaded_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mt2st_fast.words.word2vec.training_device", lambda *_, **options: torch.device("cpu")
    )
    model = Word2Vec(TEXT, device="cuda", **SMALL)
    model.save(tmp_path / "model")
    monkeypatch.undo()
    loaded = Word2Vec.load(tmp_path / "model")
    assert loaded.device == "cpu"
    assert np.array_equal(loaded.vectors, model.vectors)
