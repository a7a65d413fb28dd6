"""Tasks that a user writes, whose loss is no mean over rows: they train beside fused heads, retire and resume."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    ContextPrediction,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    RowwiseAdagrad,
    Switch,
    Trainer,
    WordSimilarity,
)
from tests.training.small_runs import Stop

TAGS, WORDS, D = 4, 30, 12


# --- two tasks of a user's own ---------------------------------------------------------------------------


class CrfTagger(OpenTask):
    """A linear-chain CRF (Lafferty et al. 2001): tags (N, T), -1 behind a sentence's end; features (N, T, D)."""

    metric = "token accuracy"

    def __init__(self, features: int, tags: int) -> None:
        super().__init__()
        self.emission = nn.Linear(features, tags)
        self.transition = nn.Parameter(torch.zeros(tags, tags))

    def loss(self, features, targets, mask):
        scores = self.emission(features)
        real = targets >= 0 if mask is None else mask
        alpha, gold = scores[:, 0], scores[:, 0].gather(1, targets[:, :1].clamp_min(0))[:, 0]
        for t in range(1, scores.shape[1]):
            step = torch.logsumexp(alpha.unsqueeze(2) + self.transition, dim=1) + scores[:, t]
            alpha = torch.where(real[:, t, None], step, alpha)
            before, now = targets[:, t - 1].clamp_min(0), targets[:, t].clamp_min(0)
            pair = self.transition[before, now] + scores[:, t].gather(1, now.unsqueeze(1))[:, 0]
            gold = gold + torch.where(real[:, t], pair, 0.0)
        return (torch.logsumexp(alpha, dim=1) - gold).sum() / real.sum()

    @torch.no_grad()
    def decode(self, features):
        """The most likely tags (N, T) (Viterbi)."""
        scores = self.emission(features)
        best, back = scores[:, 0], []
        for t in range(1, scores.shape[1]):
            best, came_from = (best.unsqueeze(2) + self.transition).max(dim=1)
            best = best + scores[:, t]
            back.append(came_from)
        tags = [best.argmax(1)]
        for came_from in reversed(back):
            tags.insert(0, came_from.gather(1, tags[0].unsqueeze(1))[:, 0])
        return torch.stack(tags, dim=1)

    def sums(self, features, targets, mask):
        real = targets >= 0
        right = (self.decode(features) == targets) & real
        return torch.stack([right.sum(), real.sum()]).double()


class Contrast(OpenTask):
    """Sentences that share a topic lie together (InfoNCE, van den Oord et al. 2018); targets (N,) topics."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, 8)

    def loss(self, features, targets, mask):
        weights = torch.ones_like(features[..., :1]) if mask is None else mask.unsqueeze(2).to(features)
        sentences = (features * weights).sum(1) / weights.sum(1)
        z = F.normalize(self.projection(sentences), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool)
        similarity = (z @ z.T / 0.5).masked_fill(itself, -1e9)
        same = (targets.unsqueeze(0) == targets.unsqueeze(1)) & ~itself
        nearness = similarity - torch.logcumsumexp(similarity, dim=1)[:, -1:]
        return -(nearness * same).sum() / same.sum().clamp_min(1)


# --- what they train on ----------------------------------------------------------------------------------


class Reader(nn.Module):
    """Words (N, T) to features (N, T, D), and the mask of those that are words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(WORDS, D), nn.Linear(D, D)

    def forward(self, words):
        return torch.tanh(self.mix(self.table(words.clamp_min(0)))), words >= 0


def batches(count: int, seed: int = 0) -> list:
    """Sentences of ragged length: a tag alternates with the word's class, the topic is that of most words."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        words = torch.randint(WORDS, (16, 7), generator=generator)
        lengths = torch.randint(3, 8, (16,), generator=generator)
        words[torch.arange(7) >= lengths.unsqueeze(1)] = -1
        chunk = torch.where(words < 0, -1, (words % 2) * 2 + torch.arange(7) % 2)
        upos = torch.where(words < 0, -100, words % 5)
        topic = (words.clamp_min(0).sum(1) > 14.5 * lengths).long()
        made.append((words, {"upos": upos, "chunk": chunk, "topic": topic}))
    return made


def make(schedule, *callbacks, main="upos"):
    torch.manual_seed(2)
    tasks = {"upos": Classification(5), "chunk": CrfTagger(D, TAGS), "topic": Contrast(D)}
    heads = MultiTaskHeads(D, tasks, main)
    return Trainer(
        Reader(), heads, schedule=schedule, lr=0.02, log_every=4, callbacks=callbacks, device="cpu"
    )


def weights_of(trainer):
    return [
        value.clone()
        for value in (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
    ]


# --- what has to hold ------------------------------------------------------------------------------------


def test_they_learn_beside_the_fused_heads():
    trainer = make(MultiTask())
    history = trainer.fit(batches(12), val=batches(4, seed=5), epochs=8)
    first, last = history.steps[0].losses, history.steps[-1].losses
    assert all(last[name] < first[name] for name in ("upos", "chunk", "topic"))
    before, after = history.evaluations[0].metrics, history.evaluations[-1].metrics
    assert after["chunk"] > 0.8 > before["chunk"]
    assert after["topic"] > before["topic"]
    assert after["upos"] > before["upos"]


def test_the_crf_is_a_crf():
    """The loss by enumerating all tag sequences."""
    torch.manual_seed(0)
    crf = CrfTagger(3, 3).double()
    nn.init.normal_(crf.transition)
    features, tags = torch.randn(1, 4, 3, dtype=torch.float64), torch.tensor([[0, 2, 1, -1]])
    scores = crf.emission(features)[0]

    def score(sequence):
        steps = sum(scores[t, tag] for t, tag in enumerate(sequence))
        return steps + sum(crf.transition[a, b] for a, b in itertools.pairwise(sequence))

    partition = torch.logsumexp(torch.stack([score(s) for s in itertools.product(range(3), repeat=3)]), dim=0)
    expected = (partition - score((0, 2, 1))) / 3
    assert torch.allclose(crf.loss(features, tags, None), expected)


def test_its_gradient_is_weighted_and_added_to_that_of_the_heads():
    trainer = make(MultiTask())
    heads, (words, targets) = trainer.heads, batches(1)[0]
    features, mask = trainer.encoder(words)
    leaf = features.detach().requires_grad_()
    out = heads(leaf, targets, {"chunk": 0.5, "topic": 2.0}, mask=mask)
    out.total.backward()
    other = features.detach().requires_grad_()
    fused = F.cross_entropy(heads.logits(other, "upos").flatten(0, 1), targets["upos"].flatten())
    chunk = heads.open_task("chunk").loss(other, targets["chunk"], mask)
    topic = heads.open_task("topic").loss(other, targets["topic"], mask)
    total = fused + 0.5 * chunk + 2.0 * topic
    total.backward()
    assert torch.allclose(out.total, total, rtol=1e-5)
    assert torch.allclose(out.losses, torch.stack([fused, chunk, topic]), rtol=1e-5)
    assert torch.allclose(leaf.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_after_retirement_nothing_of_theirs_runs_or_moves():
    seen = {}

    class Watch(Callback):
        def on_phase(self, trainer, phase):
            if phase.active == ("upos",):
                seen["chunk"] = [p.clone() for p in trainer.heads.open_task("chunk").parameters()]

    trainer = make(Switch(at_step=6), Watch())
    run = trainer.begin(batches(12), epochs=1)
    names = []
    for _ in range(12):
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            run.step()
        names.append({event.key for event in watched.key_averages()})
    run.close()
    theirs = ("aten::logsumexp", "aten::logcumsumexp")
    assert all(set(theirs) <= of_step for of_step in names[:6])
    assert not any(set(theirs) & of_step for of_step in names[6:])
    chunk = list(trainer.heads.open_task("chunk").parameters())
    assert all(torch.equal(a, b) for a, b in zip(chunk, seen["chunk"], strict=True))
    assert all(p.grad is None and not p.requires_grad for p in chunk)
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in chunk}


@pytest.mark.parametrize("stop", [5, 12, 17])
def test_a_run_resumes_before_at_and_after_retirement(stop, tmp_path):
    whole = make(Switch(at_step=12))
    history = whole.fit(batches(6), val=batches(2, seed=5), epochs=4)
    path = tmp_path / "checkpoint"
    make(Switch(at_step=12), Stop(stop)).fit(batches(6), val=batches(2, seed=5), epochs=4, checkpoint=path)
    resumed = make(Switch(at_step=12))
    assert resumed.fit(batches(6), val=batches(2, seed=5), epochs=4, checkpoint=path, resume=True) == history
    assert all(torch.equal(a, b) for a, b in zip(weights_of(resumed), weights_of(whole), strict=True))


def test_one_may_be_the_main_task():
    trainer = make(Switch(at_step=24), main="chunk")
    history = trainer.fit(batches(12), val=batches(4, seed=5), epochs=8)
    assert [phase.active for phase in history.phases] == [("chunk", "upos", "topic"), ("chunk",)]
    assert history.best.metrics["chunk"] > 0.8


def test_what_cannot_be_is_named():
    heads = make(MultiTask()).heads
    with pytest.raises(ValueError, match="task chunk has no head: CrfTagger computes its own loss"):
        heads.logits(torch.zeros(2, D), "chunk")
    with pytest.raises(ValueError, match="task upos is not an OpenTask; available: chunk, topic"):
        heads.open_task("upos")

    class Wide(OpenTask):
        def loss(self, features, targets, mask):
            return features.sum(1)

    with pytest.raises(ValueError, match=r"the loss of w must be a number \(\), not \(3,\)"):
        MultiTaskHeads(2, {"a": Classification(2), "w": Wide()}, "a")(
            torch.zeros(3, 2), {"w": torch.zeros(3)}
        )


# --- targets of words and of features in one batch -------------------------------------------------------


@pytest.mark.parametrize("task", [WordSimilarity(), ContextPrediction(9, 4)], ids=["similarity", "context"])
def test_a_word_task_and_a_head_in_one_batch_are_refused_by_name(task):
    tasks = {"topic": Classification(2), "words": task}
    encoder, heads = BagEncoder(9, 4, sparse=True), MultiTaskHeads(4, tasks, "topic")
    bags = SimpleNamespace(ids=torch.arange(6), starts=torch.tensor([0, 3, 6]))
    batch = ((bags.ids, bags.starts), {"topic": torch.tensor([0, 1]), "words": torch.zeros(2)})
    trainer = Trainer(
        encoder, heads, schedule=MultiTask(), optimizer=lambda p: RowwiseAdagrad(p, lr=0.1), device="cpu"
    )
    with pytest.raises(
        ValueError, match=r"one batch has targets of words and of topic, but .* pass one loader for each"
    ):
        trainer.fit([batch], epochs=1)
    with pytest.raises(ValueError, match="one batch has targets of words and of topic"):
        heads(torch.zeros(2, 4), batch[1])


@pytest.mark.parametrize(
    ("other", "message"),
    [("words", "one batch has targets of words and of contrast"), ("nonsense", "unknown task nonsense")],
)
def test_a_batch_of_an_open_task_drops_no_other_target_in_silence(other, message):
    tasks = {"topic": Classification(2), "contrast": Contrast(4), "words": WordSimilarity()}
    heads = MultiTaskHeads(4, tasks, "topic")
    targets = {"contrast": torch.tensor([0, 1]), other: torch.zeros(2)}
    with pytest.raises(ValueError, match=message):
        heads(torch.zeros(2, 3, 4), targets)
