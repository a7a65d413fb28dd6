"""Training within no_grad(), inference_mode() or another autocast, and on features that have no gradient."""

import logging

import pytest
import torch
from torch import nn

from mt2st_fast import (
    Classification,
    InputError,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    Trainer,
    Word2Vec,
    train_supervised,
)

GUARDS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
SENTENCES = [["a", "b", "c", "d"]] * 50


def _trainer():
    return Trainer(nn.Linear(4, 8), MultiTaskHeads(8, {"a": Classification(3)}, main="a"), device="cpu")


def _batches():
    torch.manual_seed(0)
    return [(torch.randn(6, 4), {"a": torch.arange(6) % 3})] * 3


@pytest.mark.parametrize("name", GUARDS)
def test_fit_is_refused(name):
    with pytest.raises(InputError, match=rf"within torch\.{name}\(\)"), GUARDS[name]():
        _trainer().fit(_batches(), epochs=1)


def test_a_single_step_is_refused_and_can_be_taken_afterwards():
    run = _trainer().begin(_batches(), epochs=1)
    with pytest.raises(InputError, match="call it outside"), torch.no_grad():
        run.step()
    assert run.steps_done == 0
    run.step()
    run.close()


@pytest.mark.parametrize("name", GUARDS)
def test_train_supervised_is_refused(name, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("__label__good warm soup\n__label__bad cold soup\n" * 20)
    with pytest.raises(InputError, match="nothing would train"), GUARDS[name]():
        train_supervised(path, dim=8)


def test_word2vec_needs_gradients_for_tasks_only(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\t9\nc\td\t1\n")
    with torch.no_grad():
        Word2Vec(SENTENCES, vector_size=8, min_count=1, epochs=1)
        with pytest.raises(InputError, match="nothing would train"):
            Word2Vec(SENTENCES, vector_size=8, min_count=1, epochs=1, tasks={"similarity": path})


class Detached(OpenTask):
    def loss(self, features, target, mask=None):
        del target, mask
        return features.detach().square().mean()


@pytest.mark.parametrize(("tasks", "times"), [(("a",), 1), (("a", "b"), 0)])
def test_steps_that_move_nothing_are_told_once(tasks, times, caplog):
    heads = MultiTaskHeads(8, {"a": Detached(), "b": Classification(3)}, main="a")
    trainer = Trainer(nn.Linear(4, 8), heads, schedule=MultiTask(), device="cpu")
    trainer.fit([(x, dict.fromkeys(tasks, y["a"])) for x, y in _batches()], epochs=2)
    told = [r.getMessage() for r in caplog.records if "moves nothing" in r.getMessage()]
    assert len(told) == times
    assert all("a step on targets of a has no gradient" in message for message in told)


class _Detached(nn.Module):
    """Loses the gradient on the way, as through NumPy."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, inputs):
        return torch.from_numpy(self.layer(inputs).detach().numpy())


@pytest.mark.parametrize("frozen", [False, True])
def test_features_that_are_detached_are_told_unless_the_encoder_is_frozen(frozen, caplog):
    encoder = _Detached().requires_grad_(not frozen)
    tasks = {"a": Classification(3), "b": Classification(3)}
    trainer = Trainer(encoder, MultiTaskHeads(8, tasks, main="a"), schedule=MultiTask(), device="cpu")
    with caplog.at_level(logging.WARNING):
        trainer.fit(_batches(), epochs=3)
    told = [record for record in caplog.records if "no parameter of the encoder trains" in record.message]
    assert len(told) == (0 if frozen else 1)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("around", [nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1))])
def test_training_within_another_autocast_is_refused(precision, around):
    heads = MultiTaskHeads(8, {"a": Classification(3)}, main="a")
    trainer = Trainer(around, heads, precision=precision, device="cpu")
    with pytest.raises(InputError, match='pass precision="bfloat16"'), torch.autocast("cpu", torch.bfloat16):
        trainer.fit(_batches(), epochs=1)
    trainer.fit(_batches(), epochs=1)


def test_training_within_its_own_autocast_is_as_without():
    found = []
    for around in (False, True):
        torch.manual_seed(0)
        encoder, heads = nn.Linear(4, 8), MultiTaskHeads(8, {"a": Classification(3)}, main="a")
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            Trainer(encoder, heads, precision="bfloat16", device="cpu").fit(_batches(), epochs=1)
        found.append(encoder.weight.detach())
    assert torch.equal(*found)
