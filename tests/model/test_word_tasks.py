"""Tasks on the table itself: their losses, their gradients into the table, their files, their retirement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mt2st_fast import (
    BagEncoder,
    Classification,
    ContextPrediction,
    InputError,
    MultiTaskHeads,
    Switch,
    Trainer,
    WordAnalogy,
    WordSimilarity,
    WordTask,
)
from mt2st_fast.data import ContextBatches, Vocabulary, analogy_batches, similarity_batches
from mt2st_fast.kernels.context.reference import reference_loss
from mt2st_fast.training.schedules.base import AuxiliaryWeights

WORDS = ["king", "queen", "man", "woman", "paris", "france", "rome", "italy"]


@pytest.fixture
def vocabulary():
    return Vocabulary.from_counts(WORDS, range(len(WORDS), 0, -1))


def types(vocabulary, *words):
    return torch.from_numpy(vocabulary.ids_of(words)).long()


def file(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


# --- losses ----------------------------------------------------------------------------------------------


def test_similarity_is_the_squared_error_of_the_cosine():
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    loss = WordSimilarity()(lambda t: table[t], torch.tensor([[0, 1], [0, 2]]), torch.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx(((0.5**0.5 - 0.5) ** 2 + 0.25) / 2)


def test_analogy_is_cross_entropy_over_the_answers_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [1, 0, 3, 2]])
    loss = WordAnalogy(temperature=0.5)(lambda t: table[t], rows, torch.zeros(3))
    unit = table / table.norm(dim=1, keepdim=True)
    terms = []
    for i, (a, b, c, _) in enumerate(rows.tolist()):
        query = unit[b] - unit[a] + unit[c]
        cosines = torch.stack([unit[d] @ query / query.norm() for d in rows[:, 3].tolist()]) / 0.5
        terms.append(torch.logsumexp(cosines, 0) - cosines[i])
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def analogy_by_torch(table, rows, temperature):
    """The loss over the different answers, as the formula has it."""
    unit = F.normalize(table, dim=1)
    a, b, c = (unit[rows[:, i]] for i in range(3))
    answers, own = torch.unique(rows[:, 3], return_inverse=True)
    return F.cross_entropy(F.normalize(b - a + c, dim=1) @ unit[answers].T / temperature, own)


@pytest.mark.parametrize("B", [1, 7, 300])
def test_analogy_and_its_gradient_are_as_exact_as_torchs(B):
    generator = torch.Generator().manual_seed(B)
    rows = torch.randint(0, 40, (B, 4), generator=generator)  # so many rows have one answer
    table = torch.randn(40, 20, generator=generator, dtype=torch.float64)
    found = {}
    for name, dtype in (("exact", torch.float64), ("torch", torch.float32), ("ours", torch.float32)):
        leaf = table.detach().to(dtype, copy=True).requires_grad_()
        if name == "ours":
            loss = WordAnalogy(0.2)(lambda types, leaf=leaf: leaf[types], rows, torch.zeros(B))
        else:
            loss = analogy_by_torch(leaf, rows, 0.2)
        loss.backward()
        found[name] = (loss.detach().double(), leaf.grad.double())
    for ours, of_torch, exact in zip(found["ours"], found["torch"], found["exact"], strict=True):
        assert (ours - exact).abs().max() <= 2 * (
            of_torch - exact
        ).abs().max() + 1e-6 * exact.abs().max() + 1e-7


def test_the_same_answer_in_another_row_is_not_wrong():
    table = torch.eye(6)
    rows = torch.tensor([[0, 1, 2, 3], [4, 5, 2, 3]])
    assert WordAnalogy()(lambda t: table[t], rows, torch.zeros(2)).item() == pytest.approx(0.0)


@pytest.mark.parametrize(("task", "count"), [(WordSimilarity(), 2), (WordAnalogy(), 4)])
def test_other_shapes_are_refused(task, count):
    with pytest.raises(ValueError, match=rf"inputs must be \(B, {count}\) word types, not \(3, 3\)"):
        task(lambda t: t, torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3))


def test_a_task_without_a_loss_cannot_be_made():
    class Unfinished(WordTask):
        pass

    with pytest.raises(TypeError, match=r"abstract.*forward"):
        Unfinished()


def test_their_gradient_reaches_the_table_and_only_their_rows():
    encoder = BagEncoder(8, 5, sparse=True)
    heads = MultiTaskHeads(
        5, {"tone": Classification(2), "similarity": WordSimilarity(), "analogy": WordAnalogy()}, "tone"
    )
    out = heads.word_loss(
        "similarity", encoder.pool, torch.tensor([[0, 3]]), torch.tensor([0.1]), {"similarity": 2.0}
    )
    out.total.backward()
    assert out.total.item() == pytest.approx(2 * out.losses[1].item())
    assert out.losses[[0, 2]].tolist() == [0, 0]
    assert encoder.table.grad._indices().tolist() == [[0, 3]]


# --- files -----------------------------------------------------------------------------------------------


def test_pairs_with_scores(tmp_path, vocabulary):
    path = file(tmp_path, "# comment\nWord 1,Word 2,Human\nking,queen,8.5\nKing,man,4\nking,unknown,1\n")
    batches = similarity_batches(path, vocabulary, batch_size=10)
    ((words, targets),) = list(batches)
    found = {
        tuple(pair): score for pair, score in zip(words.tolist(), targets["similarity"].tolist(), strict=True)
    }
    king, queen, man = types(vocabulary, "king", "queen", "man").tolist()
    assert found == {(king, queen): pytest.approx(0.85), (king, man): pytest.approx(0.4)}


def test_analogies_in_the_questions_words_format(tmp_path, vocabulary):
    path = file(
        tmp_path, ": capitals\nParis France Rome Italy\n: family\nking queen man woman\nking x man y\n"
    )
    batches = analogy_batches(path, vocabulary, batch_size=10)
    ((words, _),) = list(batches)
    assert sorted(words.tolist()) == sorted(
        [
            types(vocabulary, "paris", "france", "rome", "italy").tolist(),
            types(vocabulary, *WORDS[:4]).tolist(),
        ]
    )


def test_batches_go_on_where_they_stood(tmp_path, vocabulary):
    lines = "\n".join(f"{a} {b} 5" for a in WORDS for b in WORDS)
    path = file(tmp_path, lines + "\n")
    batches = similarity_batches(path, vocabulary, batch_size=10, seed=3)
    stream = iter(batches)
    for _ in range(3):
        next(stream)
    state = batches.state_dict()
    following = [next(stream)[0].tolist() for _ in range(2)]
    again = similarity_batches(path, vocabulary, batch_size=10, seed=3)
    again.load_state_dict(state)
    stream = iter(again)
    assert [next(stream)[0].tolist() for _ in range(2)] == following


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (similarity_batches, "king queen 5\nking queen\n", r":2: expected two words and a score"),
        (similarity_batches, "king queen 50\n", r":1: score 50 is outside 0 to 10"),
        (similarity_batches, "x y 5\n", "no pair has all its words in the vocabulary"),
        (analogy_batches, ": s\na b c\n", r":2: expected four words, found 'a b c'"),
        (analogy_batches, "a b c d\n", "no analogy has all its words"),
    ],
)
def test_damaged_files_are_named(tmp_path, vocabulary, read, text, message):
    with pytest.raises(InputError, match=message):
        read(file(tmp_path, text), vocabulary)


# --- context prediction ----------------------------------------------------------------------------------


def text(n=3000, types=30, seed=0):
    """Tokens in sentences of 1 to 9; word 2i is always followed by 2i + 1."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, types // 2, n // 2).repeat(2) * 2
    tokens[1::2] += 1
    bounds = np.unique(np.concatenate([[0], np.cumsum(generator.integers(1, 10, n)).clip(max=n)]))
    return tokens.astype(np.int32), bounds.astype(np.int64), np.bincount(tokens, minlength=types)


@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_context_loss_and_gradients_are_those_of_the_oracle(mode):
    tokens, bounds, counts = text()
    batches = ContextBatches(tokens, bounds, counts, words=200, mode=mode, sample=0)
    batch, _ = next(iter(batches))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 21, generator=generator)
    task = ContextPrediction(30, 21)
    with torch.no_grad():
        task.table.copy_(torch.randn(30, 21, generator=generator))
    exact_inputs = inputs.double().requires_grad_()
    exact_outputs = task.table.detach().double().requires_grad_()
    truth = reference_loss(exact_inputs[batch.types], exact_outputs[batch.types], batch)
    truth.backward()
    inputs.requires_grad_()
    loss = task(lambda types: inputs[types], batch, torch.zeros(1))
    (2 * loss).backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inputs.grad.double(), 2 * exact_inputs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        task.table.grad.to_dense().double(), 2 * exact_outputs.grad, rtol=1e-4, atol=1e-6
    )
    assert exact_inputs.grad.abs().max() > 1e-3


def test_context_batches_go_on_where_they_stood_and_draw_anew_in_every_pass():
    tokens, bounds, counts = text()
    batches = ContextBatches(tokens, bounds, counts, words=500)
    first, again = ([batch for batch, _ in batches] for _ in range(2))
    assert len(first) == len(again) == len(batches) == 6
    assert not np.array_equal(first[0].drawn, again[0].drawn)
    later = ContextBatches(tokens, bounds, counts, words=500)
    later.load_state_dict({**later.state_dict(), "pass": 1, "batch": 4})
    batch, _ = next(iter(later))
    for mine, theirs in zip(batch, again[4], strict=True):
        assert np.array_equal(mine, theirs)


def test_context_prediction_trains_the_encoders_vectors_and_retires():
    torch.manual_seed(0)
    tokens, bounds, counts = text()
    encoder = BagEncoder(30, 16, sparse=True)
    heads = MultiTaskHeads(16, {"tone": Classification(2), "context": ContextPrediction(30, 16)}, "tone")
    trainer = Trainer(encoder, heads, schedule=Switch(at=0.9), lr=0.02, device="cpu")
    loader = ContextBatches(tokens, bounds, counts, words=500, window=1, sample=0)
    trainer.fit({"tone": bags(), "context": loader}, epochs=20)
    assert [phase.active for phase in trainer.history.phases] == [("tone", "context"), ("tone",)]
    losses = [record.losses["context"] for record in trainer.history.steps if "context" in record.losses]
    assert losses[-1] < 0.6 * losses[0]
    table = heads.word_tasks["context"].table
    assert not table.requires_grad
    assert all(table is not p for group in trainer.run.optimizer.param_groups for p in group["params"])


@dataclass(frozen=True)
class Resting(AuxiliaryWeights):
    """The auxiliary task rests from a step on, and may come back."""

    def auxiliary_weight(self, moment, task):
        return 0.0 if moment.step >= 40 else 1.0


def test_a_task_on_words_that_rests_takes_no_batch_and_moves_no_word():
    def trained(rests):
        torch.manual_seed(0)
        tokens, bounds, counts = text()
        encoder = BagEncoder(30, 16, sparse=True)
        heads = MultiTaskHeads(16, {"tone": Classification(2), "context": ContextPrediction(30, 16)}, "tone")
        trainer = Trainer(encoder, heads, schedule=Resting(), lr=0.02, lr_decay="none", device="cpu")
        loader = ContextBatches(tokens, bounds, counts, words=500, window=1, sample=0)
        run = trainer.begin({"tone": bags(), "context": loader}, epochs=20)
        moved = []
        while run.steps_done < 60:
            if rests and run.steps_done == 40:
                break
            before = encoder.table.detach().clone()
            run.step()
            moved.append(int((encoder.table != before).any(1).sum()))
        state = loader.state_dict()
        run.close()
        return moved, state

    moved, state = trained(rests=False)
    assert state == trained(rests=True)[1], "no batch is drawn for it"
    # The text has words that no bag has: they lie still.
    assert max(moved[40:]) <= len(WORDS) < min(moved[1:40])  # in the first step output vectors are 0


# --- in the trainer --------------------------------------------------------------------------------------


def bags(seed=0, rows=32, n=8):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        words = torch.randint(0, len(WORDS), (rows, 3), generator=generator)
        starts = torch.arange(0, 3 * rows + 1, 3)
        made.append(((words.flatten(), starts), {"tone": (words.sum(1) > 10).long()}))
    return made


def trained(tmp_path, vocabulary, schedule, **options):
    pairs = file(tmp_path, "king queen 9\nparis rome 8\nking rome 0\n")
    torch.manual_seed(0)
    encoder = BagEncoder(len(WORDS), 12, sparse=True)
    heads = MultiTaskHeads(12, {"tone": Classification(2), "similarity": WordSimilarity()}, "tone")
    trainer = Trainer(encoder, heads, schedule=schedule, lr=0.02, device="cpu", **options)
    loader = similarity_batches(pairs, vocabulary)
    trainer.fit({"tone": bags(), "similarity": loader}, val=bags(5), epochs=20)
    return trainer, loader


@pytest.mark.parametrize("backward", ["autograd", "fused"])
def test_a_word_task_trains_beside_a_head_and_retires(tmp_path, vocabulary, backward):
    trainer, loader = trained(tmp_path, vocabulary, Switch(at=0.9), backward=backward)
    assert [phase.active for phase in trainer.history.phases] == [("tone", "similarity"), ("tone",)]
    last_of_both = [record for record in trainer.history.steps if "similarity" in record.losses][-1]
    assert last_of_both.losses["similarity"] < 0.02
    assert trainer.history.evaluations[-1].metrics["tone"] > 0.8
    assert len(loader) == 0, "a retired task's loader is closed"


def test_an_encoder_without_words_is_refused():
    heads = MultiTaskHeads(12, {"tone": Classification(2), "similarity": WordSimilarity()}, "tone")
    with pytest.raises(ValueError, match=r"task similarity is on words: it needs an encoder with pool"):
        Trainer(torch.nn.Linear(3, 12), heads, device="cpu")


def test_what_has_no_head_is_refused_where_one_is_needed():
    with pytest.raises(ValueError, match="the main task similarity needs features"):
        MultiTaskHeads(12, {"similarity": WordSimilarity()}, "similarity")
    heads = MultiTaskHeads(12, {"tone": Classification(2), "similarity": WordSimilarity()}, "tone")
    with pytest.raises(ValueError, match="task similarity has no head"):
        heads.logits(torch.zeros(1, 12), "similarity")
    heads.set_active(["tone"])
    with pytest.raises(ValueError, match="similarity is not an active task on words"):
        heads.word_loss("similarity", lambda t: t, torch.zeros(1, 2), torch.zeros(1))


@pytest.mark.parametrize(
    ("bounds", "counts", "message"),
    [
        ([0, 25, 50], 9, "the bounds of 60 tokens must rise from 0 to 60"),
        ([0, 70, 60], 9, "must rise"),
        ([], 9, "must rise"),
        ([0, 60], 8, "contains the word type 8, but there are counts of 8"),
    ],
)
def test_a_text_that_kernels_would_read_beyond_is_refused(bounds, counts, message):
    tokens = np.arange(60, dtype=np.int32) % 9
    with pytest.raises(InputError, match=message):
        ContextBatches(tokens, np.array(bounds, np.int64), np.ones(counts), words=20)
