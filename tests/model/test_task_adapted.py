"""Layers that tasks make their own: what a task computes with, where gradients go, and a plain encoder again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, TaskAdaptedEncoder, WindowEncoder
from tests.model.adapted import NAMES, TASKS, Tokens, differ, model, residual, rows


def by_hand(encoder, task, inputs):
    """The features of a task by the paper's equation 2."""
    name = task.replace(".", "__")
    for layer in encoder.layers:
        linear, own = encoder.encoder.get_submodule(layer), residual(encoder, layer)
        weight = linear.parametrizations.weight.original
        if own.score[name].item() >= encoder.threshold:
            weight = weight + own.difference[name]
        inputs = F.linear(inputs, weight, linear.bias).tanh()
    return inputs


def test_a_task_computes_with_its_own_layers_and_the_shared_ones():
    encoder, heads = model()
    differ(encoder)
    residual(encoder, "0").score["a"].data.fill_(0.09)
    residual(encoder, "2").score["feats__b"].data.fill_(-1.0)
    inputs, targets = rows()
    features = encoder(inputs)
    for task in NAMES:
        torch.testing.assert_close(features[task], by_hand(encoder, task, inputs), rtol=0, atol=0)
    assert encoder.own_layers() == {"a": ("2",), "feats.b": ("0",), "c": ("0", "2")}
    assert encoder.sharing() == (
        "0: shared by a; its own for feats.b, c",
        "2: shared by feats.b; its own for a, c",
    )
    weights = torch.tensor([1.0, 0.5, 2.0])
    out = heads(features, targets, weights)
    losses = torch.stack([heads(by_hand(encoder, t, inputs), {t: targets[t]}).losses.sum() for t in NAMES])
    torch.testing.assert_close(out.losses, losses)
    torch.testing.assert_close(out.total, (weights * losses).sum())


def test_with_all_layers_shared_it_is_the_encoder():
    encoder, heads = model()
    inputs, targets = rows()
    plain, plain_heads = encoder.folded("a"), copy.deepcopy(heads)
    differ(encoder)
    for layer in encoder.layers:
        for score in residual(encoder, layer).score.values():
            score.data.fill_(0.0)
    heads(encoder(inputs), targets).total.backward()
    plain_heads(plain(inputs), targets).total.backward()
    for linear, wanted in ((encoder.encoder[0], plain[0]), (encoder.encoder[2], plain[2])):
        torch.testing.assert_close(linear.parametrizations.weight.original.grad, wanted.weight.grad)
        torch.testing.assert_close(linear.bias.grad, wanted.bias.grad)
    for ours, theirs in zip(heads.parameters(), plain_heads.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("score", [0.05, 0.2])
def test_the_gradient_goes_straight_through_to_the_score(score):
    encoder, heads = model()
    differ(encoder)
    own, name = residual(encoder, "2"), "feats__b"
    own.score[name].data.fill_(score)
    inputs, targets = rows()
    heads(encoder(inputs), {"feats.b": targets["feats.b"]}).total.backward()
    shared = encoder.encoder[2].parametrizations.weight.original
    torch.testing.assert_close(own.score[name].grad, (shared.grad * own.difference[name]).sum().reshape(1))
    expected = shared.grad if score >= encoder.threshold else torch.zeros_like(shared)
    torch.testing.assert_close(own.difference[name].grad, expected)
    assert own.score["a"].grad is None


def test_the_penalty_is_of_the_tasks_at_hand_over_the_layers():
    encoder, _ = model(penalty=0.5)
    residual(encoder, "0").score["a"].data.fill_(-0.3)
    total = encoder.penalty(("a", "c"))
    torch.testing.assert_close(total, torch.tensor(0.5 / 2 * (0.3 + 3 * 0.2)))
    total.backward()
    assert residual(encoder, "0").score["a"].grad == -0.25
    assert residual(encoder, "2").score["c"].grad == 0.25
    assert residual(encoder, "2").score["feats__b"].grad is None
    assert encoder.penalty(()) is None
    assert model(penalty=0)[0].penalty(NAMES) is None


def test_only_what_is_asked_for_is_computed_and_once():
    heads = MultiTaskHeads(8, TASKS, "a")
    encoder = TaskAdaptedEncoder(Tokens(), heads.names)
    inputs, targets = rows()
    features = encoder(inputs)
    assert encoder.encoder.calls == 0
    heads(features, {"a": targets["a"]})
    heads.logits(features, "a")
    assert encoder.encoder.calls == 1
    heads.set_active(["a", "c"])
    heads(encoder(inputs), targets)
    assert encoder.encoder.calls == 3
    assert list(features) == list(NAMES)
    assert len(features) == 3
    with pytest.raises(KeyError):
        features["b"]


def test_a_window_of_words_is_read_once():
    torch.manual_seed(0)
    words = WindowEncoder(40, 6, window=1, hidden=8, sparse=True, dropout=0.5)
    read = []
    words.dropout.register_forward_hook(lambda *_: read.append(1))
    encoder, heads = TaskAdaptedEncoder(words, NAMES), MultiTaskHeads(8, TASKS, "a")
    _, targets = rows()
    heads(encoder(torch.randint(-1, 40, (12, 3))), targets).total.backward()
    assert read == [1]
    assert words.table.grad.is_sparse
    with pytest.raises(ValueError, match=r"inputs must be \(N, 3\) word types"):
        encoder(torch.zeros(2, 4, dtype=torch.int32))


def test_gradients_are_made_where_the_encoder_was_called():
    encoder, heads = model()
    inputs, targets = rows()
    with torch.no_grad():
        features = encoder(inputs)
    heads(features, targets).total.backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert heads.linear("a").weight.grad is not None


def test_masks_and_losses_a_task_reach_each_task():
    tasks = {"tag": Classification(4), "genre": Classification(3, pooling="mean")}
    heads = MultiTaskHeads(8, tasks, "tag")
    encoder = TaskAdaptedEncoder(Tokens(), heads.names)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 7, 5, generator=generator)
    targets = {
        "tag": torch.randint(0, 4, (6, 7), generator=generator),
        "genre": torch.randint(0, 3, (6,), generator=generator),
    }
    features = encoder(inputs)
    own, mask = Tokens.forward(encoder.encoder, inputs)
    wanted = heads(own, targets, mask=mask)
    torch.testing.assert_close(heads(features, targets).losses, wanted.losses)
    no_mask = heads(features, targets, mask=torch.ones(6, 7, dtype=torch.bool))
    assert not torch.allclose(no_mask.losses, wanted.losses), (
        "what is given goes before what the encoder says"
    )
    weights, counts = {"tag": torch.rand(6, 7, generator=generator)}, {"tag": 5.0, "genre": 4.0}
    for options in ({"denominators": counts}, {"token_weights": weights}, {"reduction": "sum"}):
        expected = heads.task_losses(own, targets, mask=mask, **options)
        found = heads.task_losses(features, targets, **options)
        total = heads(features, targets, **options).total
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss)
        torch.testing.assert_close(total, sum(expected.values()))
    of_rows = heads.task_losses(features, targets, reduction="none")
    for name, loss in heads.task_losses(own, targets, mask=mask, reduction="none").items():
        torch.testing.assert_close(of_rows[name], loss)
    with pytest.raises(ValueError, match="unknown"):
        heads(features, targets, token_weights={"tga": weights["tag"]})


@pytest.mark.parametrize("task", NAMES)
def test_folded_it_is_a_plain_encoder(task):
    words = WindowEncoder(40, 6, window=1, hidden=8, sparse=True)
    encoder = TaskAdaptedEncoder(words, NAMES)
    differ(encoder)
    inputs = torch.randint(-1, 40, (12, 3))
    before = encoder(inputs)[task].detach()
    folded = encoder.folded(task)
    assert type(folded) is WindowEncoder
    assert type(folded.hidden) is nn.Linear
    assert [name for name, _ in folded.named_parameters()] == ["table", "hidden.weight", "hidden.bias"]
    assert torch.equal(folded(inputs), before)
    folded.hidden.weight.data.zero_()
    assert torch.equal(encoder(inputs)[task], before), "a copy"
    restored = WindowEncoder(40, 6, window=1, hidden=8, sparse=True)
    restored.load_state_dict(encoder.folded(task).state_dict())
    assert torch.equal(restored(inputs), before)


def test_retired_tasks_are_frozen_and_come_back_as_they_were():
    encoder, _ = model()
    kept = residual(encoder, "0").score["c"].requires_grad_(False)
    encoder.set_active(["a"])
    trains = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert not [name for name in trains if name.endswith(("feats__b", ".c"))]
    assert len([name for name in trains if name.endswith(".a")]) == 4
    encoder.set_active(NAMES)
    assert [p for p in encoder.parameters() if not p.requires_grad] == [kept], "frozen by its owner"
    assert len([*encoder.own_parameters()]) == 2 * 2 * 3
