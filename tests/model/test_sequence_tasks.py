"""Tasks on whole sequences beside tasks on tokens, over one encoder and in one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, Regression, Trainer

D, N, T = 6, 8, 5
TASKS = {
    "upos": Classification(5),
    "genre": Classification(3, pooling="first"),
    "topics": MultiLabel(2, pooling="mean"),
    "score": Regression(pooling="mean"),
}


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = {
        "upos": torch.randint(0, 5, (N, T), generator=generator),
        "genre": torch.randint(0, 3, (N,), generator=generator),
        "topics": torch.rand(N, 2, generator=generator).round(),
        "score": torch.randn(N, generator=generator),
    }
    return torch.randn(N, T, D, generator=generator), targets


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return MultiTaskHeads(D, TASKS, "upos")


@pytest.mark.parametrize("mask", [None, "right", "left"])
def test_one_call_is_a_call_a_pooling(heads, mask):
    features, targets = data()
    features.requires_grad_()
    lengths = torch.tensor([5, 1, 2, 3, 4, 5, 2, 0])
    real = {
        "right": torch.arange(T) < lengths.unsqueeze(1),
        "left": torch.arange(T) >= T - lengths.unsqueeze(1),
    }.get(mask)
    if real is None:
        first, mean = features[:, 0], features.mean(1)
    else:
        places = [0 if mask == "right" or n == 0 else T - int(n) for n in lengths]
        first = features[torch.arange(N), places] * (lengths > 0).unsqueeze(1)
        mean = torch.stack([f[m].sum(0) / max(1, int(m.sum())) for f, m in zip(features, real, strict=True)])
    weights = {"upos": 1.0, "genre": 0.5, "topics": 2.0, "score": 0.25}
    out = heads(features, targets, weights, mask=real)
    (ours,) = torch.autograd.grad(out.total, features)
    expected = [
        nn.functional.cross_entropy(heads.linear("upos")(features).flatten(0, 1), targets["upos"].flatten()),
        nn.functional.cross_entropy(heads.linear("genre")(first), targets["genre"]),
        nn.functional.binary_cross_entropy_with_logits(heads.linear("topics")(mean), targets["topics"]),
        nn.functional.mse_loss(heads.linear("score")(mean).squeeze(1), targets["score"]),
    ]
    total = sum(w * loss for w, loss in zip(weights.values(), expected, strict=True))
    (theirs,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(out.losses, torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert heads.logits(features, "genre", real).shape == (N, 3)
    torch.testing.assert_close(heads.logits(features, "topics", real), heads.linear("topics")(mean))


def test_what_is_padding_may_be_anything(heads):
    features, targets = data()
    real = torch.ones(N, T, dtype=torch.bool)
    real[:, 3:] = False
    spoilt = features.clone()
    spoilt[:, 3:] = float("nan")
    tasks = ("genre", "topics", "score")
    of_sequences = {name: targets[name] for name in tasks}
    out = heads(spoilt, of_sequences, mask=real)
    assert torch.equal(out.losses, heads(features, of_sequences, mask=real).losses)
    assert out.total.isfinite()


def test_a_sequence_task_may_be_the_main_one_and_be_left_alone():
    heads = MultiTaskHeads(D, TASKS, "genre")
    features, targets = data()
    heads.set_active(["genre"])
    out = heads(features, targets)
    assert out.losses.shape == (1,)
    out.total.backward()
    assert heads.linear("upos").weight.grad is None


def separable(n=60):
    """The first token says the genre, every token its own class, the sum of all the score."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(n, T, 3, generator=generator)
    return inputs, {
        "upos": inputs[..., 0].gt(0).long(),
        "genre": inputs[:, 0, 1].gt(0).long(),
        "score": inputs[..., 2].mean(1),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_trainer_trains_and_evaluates_them_together(accumulate, masked):
    class Encoder(nn.Linear):
        def forward(self, inputs):
            features = super().forward(inputs)
            return (features, torch.ones(inputs.shape[:2], dtype=torch.bool)) if masked else features

    torch.manual_seed(0)
    tasks = {
        "upos": Classification(2),
        "genre": Classification(2, pooling="first"),
        "score": Regression(pooling="mean"),
    }
    heads = MultiTaskHeads(8, tasks, "upos")
    inputs, targets = separable()
    batches = [(inputs[i : i + 10], {n: t[i : i + 10] for n, t in targets.items()}) for i in range(0, 60, 10)]
    trainer = Trainer(Encoder(3, 8), heads, lr=0.03, accumulate=accumulate, device="cpu")
    trainer.fit(batches, epochs=80)
    measured = trainer.evaluate(batches, [*tasks])
    assert measured["upos"] > 0.95
    assert measured["genre"] > 0.9
    assert measured["score"] > 0.9


CALLS = {
    "rows": (
        lambda h, f, t: h(f[:, 0], {"genre": t["genre"]}),
        r"genre pools .* must be \(N, T, D\), not \(8, 6\)",
    ),
    "labels a token": (
        lambda h, f, t: h(f, {"genre": t["upos"]}),
        r"targets of genre must be \(8,\), not \(8, 5\)",
    ),
    "label a sequence": (
        lambda h, f, t: h(f, {"upos": t["genre"]}),
        r"targets of upos must be \(8, 5\), not \(8,\)",
    ),
    "mask": (
        lambda h, f, t: h(f, t, mask=torch.ones(N, dtype=torch.bool)),
        r"mask must be \(N, T\) = \(8, 5\), not \(8,\)",
    ),
    "pooling": (
        lambda h, f, t: Classification(3, pooling="last"),
        "must be one of none, first, mean, not 'last'",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_errors_name_what_does_not_fit(heads, case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call(heads, *data())


def test_a_sequence_of_padding_has_features_0(heads):
    features, targets = data()
    mask = torch.ones(N, T, dtype=torch.bool)
    mask[1] = False
    features[1] = torch.nan  # as of attention without a place to attend to
    features.requires_grad_()
    for name in ("genre", "topics", "score"):
        bias = heads.linear(name).bias
        torch.testing.assert_close(heads.logits(features, name, mask)[1], bias)
    pooled = {name: targets[name] for name in ("genre", "topics", "score")}
    out = heads(features, pooled, mask=mask)
    out.total.backward()
    assert out.losses.isfinite().all()
    assert features.grad is not None
    assert not features.grad[1].any()
    assert features.grad.isfinite().all()
