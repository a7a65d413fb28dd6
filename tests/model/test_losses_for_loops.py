"""Losses for loops that are not ours: other denominators, weights of rows, gradients of every task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, OpenTask, Regression
from mt2st_fast.model import called_heads

D, N, T = 7, 16, 5
TASKS = {
    "upos": Classification(5, label_smoothing=0.1),
    "number": Classification(3, class_weights=(1.0, 2.0, 0.5), ignore_index=-1),
    "genre": Classification(4, pooling="mean"),
    "topics": MultiLabel(4, pos_weight=(1.0, 2.0, 0.5, 3.0)),
    "score": Regression(2, huber_delta=0.5),
}


class Length(OpenTask):
    """A loss that is a mean over its labels, as it says."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, features, targets, mask):
        return ((features.mean((1, 2)) * self.scale - targets) ** 2).mean()

    def count(self, targets):
        return len(targets)


def make(tasks=TASKS, **options):
    torch.manual_seed(0)
    return nn.Linear(6, D), MultiTaskHeads(D, tasks, "upos", **options)


def batch(missing=0.4, seed=1):
    """N sequences of T tokens; a share of the labels is missing, at other places for every task."""
    generator = torch.Generator().manual_seed(seed)

    def drop(target, by):
        gone = torch.rand(target.shape, generator=generator) < missing
        return torch.where(gone, torch.full_like(target, by), target)

    inputs = torch.randn(N, T, 6, generator=generator)
    targets = {
        "upos": drop(torch.randint(0, 5, (N, T), generator=generator), -100),
        "number": drop(torch.randint(0, 3, (N, T), generator=generator), -1),
        "genre": drop(torch.randint(0, 4, (N,), generator=generator), -100),
        "topics": drop(torch.rand(N, T, 4, generator=generator).round(), float("nan")),
        "score": drop(torch.randn(N, T, 2, generator=generator), float("nan")),
    }
    return inputs, targets


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]


def by_hand(heads, features, targets):
    """Sum and count of every task's loss, with torch's own losses."""
    logits = {name: heads.logits(features, name) for name in targets}
    weights = torch.tensor([1.0, 2.0, 0.5])
    number = targets["number"].flatten()
    smooth = F.cross_entropy(
        logits["upos"].flatten(0, 1), targets["upos"].flatten(), label_smoothing=0.1, reduction="sum"
    )
    of_topics, of_score = ~targets["topics"].isnan(), ~targets["score"].isnan()
    topics = F.binary_cross_entropy_with_logits(
        logits["topics"],
        targets["topics"].nan_to_num(),
        pos_weight=torch.tensor([1.0, 2.0, 0.5, 3.0]),
        reduction="none",
    )
    score = F.huber_loss(logits["score"], targets["score"].nan_to_num(), delta=0.5, reduction="none")
    return {
        "upos": (smooth, (targets["upos"] != -100).sum()),
        "number": (
            F.cross_entropy(
                logits["number"].flatten(0, 1), number, weight=weights, ignore_index=-1, reduction="sum"
            ),
            weights[number.clamp_min(0)][number >= 0].sum(),
        ),
        "genre": (
            F.cross_entropy(heads.linear("genre")(features.mean(1)), targets["genre"], reduction="sum"),
            (targets["genre"] != -100).sum(),
        ),
        "topics": (topics[of_topics].sum(), of_topics.sum()),
        "score": (score[of_score].sum(), of_score.sum()),
    }


def test_means_sums_counts_and_other_denominators_are_those_of_torch():
    encoder, heads = make()
    inputs, targets = batch()
    features = encoder(inputs)
    expected = by_hand(heads, features, targets)
    counts = heads.label_counts(targets)
    assert tuple(counts) == heads.active
    for name, (total, count) in expected.items():
        k = heads.active.index(name)
        assert counts[name].item() == pytest.approx(count.item(), rel=1e-6)
        assert heads(features, targets).losses[k].item() == pytest.approx((total / count).item(), rel=1e-5)
        by_sum = heads(features, targets, reduction="sum").losses[k].item()
        assert by_sum == pytest.approx(total.item(), rel=1e-5)
        by_13 = heads(features, targets, denominators={name: 13}).losses[k].item()
        assert by_13 == pytest.approx(total.item() / 13, rel=1e-5)
    sums = sum(2.0 * total for total, _ in expected.values())
    out = heads(features, targets, dict.fromkeys(TASKS, 2.0), reduction="sum")
    assert out.total.item() == pytest.approx(sums.item(), rel=1e-5)
    ours = torch.autograd.grad(out.total, [features, *heads.parameters()], retain_graph=True)
    theirs = torch.autograd.grad(sums, [features, *heads.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "called"])
@pytest.mark.parametrize("missing", [0.0, 0.4, 0.97])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulating_in_anybodys_loop_is_one_large_batch(parts, missing, hooked):
    def update(parts):
        encoder, heads = make(TASKS | {"length": Length()})
        if hooked:
            heads.linear("number").register_forward_hook(lambda *_: None)
        optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=1.0)
        inputs, targets = batch(missing)
        targets["length"] = torch.rand(N, generator=torch.Generator().manual_seed(7))
        counts = heads.label_counts(targets)
        for rows in torch.arange(N).chunk(parts):
            micro = {name: t[rows] for name, t in targets.items()}
            heads(encoder(inputs[rows]), micro, denominators=counts).total.backward()
        optimizer.step()
        return torch.cat([p.detach().flatten() for m in (encoder, heads) for p in m.parameters()])

    assert (update(parts) - update(1)).abs().max() < 1e-6
    assert update(1).isfinite().all()


def test_all_micro_batches_count_where_each_is_counted_alone():
    _, heads = make()
    _, targets = batch()
    halves = [{name: t[rows] for name, t in targets.items()} for rows in (slice(0, 3), slice(3, N))]
    added = [sum(heads.label_counts(half)[name] for half in halves) for name in TASKS]
    torch.testing.assert_close(torch.stack(added), torch.stack([*heads.label_counts(targets).values()]))


def test_no_label_anywhere_is_a_loss_of_0_and_not_nan():
    encoder, heads = make()
    inputs, targets = batch(missing=1.1)
    out = heads(encoder(inputs), targets, denominators=heads.label_counts(targets))
    out.total.backward()
    assert out.losses.tolist() == [0.0] * 5
    assert all((g == 0).all() for g in gradients(encoder, heads))


def test_denominators_as_numbers_and_as_tensors_of_any_type():
    encoder, heads = make()
    inputs, targets = batch()
    features = encoder(inputs)
    for value in (8, 8.0, torch.tensor(8), torch.tensor([8.0]), torch.tensor(8, dtype=torch.int64)):
        out = heads(features, targets, denominators={"upos": value})
        assert torch.equal(out.total, heads(features, targets, denominators={"upos": 8}).total)
    assert torch.equal(heads(features, targets, denominators={}).total, heads(features, targets).total)


def test_learnt_weights_get_the_scaled_losses_as_gradient():
    encoder, heads = make()
    weights = torch.ones(5, requires_grad=True)
    out = heads(*with_features(encoder), weights, denominators={"upos": 100, "genre": 3})
    out.total.backward()
    torch.testing.assert_close(weights.grad, out.losses)


def with_features(encoder, **options):
    inputs, targets = batch(**options)
    return encoder(inputs), targets


def test_it_compiles_without_a_graph_break():
    torch.compiler.reset()
    encoder, heads = make()
    features, targets = with_features(encoder)
    counts, mask = heads.label_counts(targets), torch.ones(N, T, dtype=torch.bool)

    def total(features, targets, mask, counts):
        return heads(features, targets, mask=mask, denominators=counts).total

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    arguments = features.detach(), targets, mask, counts
    torch.testing.assert_close(compiled(*arguments), total(*arguments))


def smoothed():
    """Heads of which one, which smooths labels of a class of weight 0, is called for anything but its mean."""
    tasks = {
        "smoothed": Classification(3, label_smoothing=0.1, class_weights=(1.0, 0.0, 2.0)),
        "plain": Classification(3),
        "labels": MultiLabel(2),
    }
    targets = {
        "smoothed": torch.tensor([0, 1, 2, 1]),
        "plain": torch.tensor([2, 1, 0, 0]),
        "labels": torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]),
    }
    return MultiTaskHeads(4, tasks, main="smoothed"), torch.randn(4, 4), targets


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"denominators": {"smoothed": 5.0, "plain": 9.0}},
        {"reduction": "sum"},
        {"token_weights": torch.tensor([1.0, 0.5, 2.0, 1.0])},
    ],
    ids=lambda options: next(iter(options)),
)
def test_heads_that_are_called_compile_without_a_graph_break(options, evaluated):
    torch.compiler.reset()
    heads, features, targets = smoothed()
    features.requires_grad_(not evaluated)

    def total(features, targets):
        return heads(features, targets, **options).total

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(not evaluated):
        found, expected = compiled(features, targets), total(features, targets)
    torch.testing.assert_close(found, expected)
    if not evaluated:
        gradients = [torch.autograd.grad(value, features)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)


def test_heads_that_are_called_refuse_a_class_out_of_range_under_compile_too():
    torch.compiler.reset()
    heads, features, targets = smoothed()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def rows(features, targets):
        return heads.task_losses(features, targets, reduction="none")

    torch.testing.assert_close(
        rows(features, targets), heads.task_losses(features, targets, reduction="none")
    )
    with pytest.raises(
        ValueError, match=r"targets of plain: 7 lies outside \[0, 3\) and is not ignore_index"
    ):
        rows(features, {**targets, "plain": torch.tensor([2, 7, 0, 0])})


def test_a_batch_without_some_targets_compiles_without_a_graph_break():
    torch.compiler.reset()
    heads, features, targets = smoothed()
    some = {name: targets[name] for name in ("smoothed", "labels")}
    compiled = torch.compile(lambda f, t: heads(f, t).total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, some), heads(features, some).total)


# --- weights of rows -----------------------------------------------------------------------------------


def test_a_token_weight_of_2_is_a_token_that_comes_twice():
    encoder, heads = make()
    features, targets = with_features(encoder)
    once = {name: t for name, t in targets.items() if name != "genre"}
    weights = torch.ones(N, T)
    weights[3] = 2.0
    weights[5] = 0.0
    rows = [*range(N), 3]
    rows.remove(5)
    twice = heads(features[rows], {name: t[rows] for name, t in once.items()})
    weighted = heads(features, once, token_weights=weights)
    torch.testing.assert_close(weighted.losses, twice.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weighted.total, twice.total, rtol=1e-5, atol=1e-6)
    # With the denominator from outside, too.
    counts = heads.label_counts(once, token_weights=weights)
    half = weights / 2
    out = heads(features, once, token_weights=half, denominators=counts)
    torch.testing.assert_close(out.losses, weighted.losses / 2, rtol=1e-5, atol=1e-6)


def test_token_weights_by_task_leave_the_others_fused_as_they_are():
    encoder, heads = make()
    features, targets = with_features(encoder)
    plain = heads(features, targets)
    of_sequences = torch.rand(N)
    out = heads(features, targets, token_weights={"genre": of_sequences})
    changed = [n for n, a, b in zip(heads.active, plain.losses, out.losses, strict=True) if a != b]
    assert changed == ["genre"]
    rows = F.cross_entropy(heads.logits(features, "genre"), targets["genre"], reduction="none")
    kept = of_sequences * (targets["genre"] != -100)
    expected = (rows * of_sequences).sum() / kept.sum()
    assert out.losses[heads.active.index("genre")].item() == pytest.approx(expected.item(), rel=1e-5)


# --- a loss a task -------------------------------------------------------------------------------------


def test_every_loss_has_the_gradient_of_its_own():
    encoder, heads = make()
    features, targets = with_features(encoder)
    losses = heads.task_losses(features, targets)
    assert tuple(losses) == heads.active
    total = heads(features, targets)
    torch.testing.assert_close(torch.stack([*losses.values()]), total.losses)
    (together,) = torch.autograd.grad(total.total, features, retain_graph=True)
    single = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses.values()]
    torch.testing.assert_close(sum(single), together, rtol=1e-5, atol=1e-7)
    for name, loss in losses.items():
        own = torch.autograd.grad(loss, [heads.linear(n).weight for n in TASKS], allow_unused=True)
        assert [n for n, g in zip(TASKS, own, strict=True) if g is not None] == [name]


def test_losses_of_every_task_take_the_same_options_and_skip_what_is_retired_or_missing():
    encoder, heads = make()
    features, targets = with_features(encoder)
    heads.set_active(["upos", "genre", "score"])
    del targets["score"]
    denominators = {"upos": 9.0, "number": 3.0}
    losses = heads.task_losses(features, targets, denominators=denominators)
    assert tuple(losses) == ("upos", "genre")
    out = heads(features, targets, denominators=denominators)
    assert [loss.item() for loss in losses.values()] == pytest.approx(out.losses[:2].tolist(), rel=1e-6)


def test_gradients_of_all_losses_at_once_by_vmap():
    """As TorchJD asks for a Jacobian."""
    encoder, heads = make({"upos": TASKS["upos"], "number": TASKS["number"]})
    features, targets = with_features(encoder)
    targets = {name: targets[name] for name in ("upos", "number")}
    losses = [*heads.task_losses(features, targets).values()]
    single = [
        torch.autograd.grad(loss, [features, encoder.weight], retain_graph=True, materialize_grads=True)
        for loss in losses
    ]
    together = torch.autograd.grad(
        losses, [features, encoder.weight], [*torch.eye(2).unbind(1)], is_grads_batched=True
    )
    for k, of_task in enumerate(single):
        torch.testing.assert_close([g[k] for g in together], list(of_task), rtol=1e-6, atol=1e-8)


def test_losses_of_rows_sum_up_to_the_mean():
    encoder, heads = make()
    features, targets = with_features(encoder)
    rows = heads.task_losses(features, targets, reduction="none")
    assert {name: tuple(r.shape) for name, r in rows.items()} == {
        name: (N,) if name == "genre" else (N, T) for name in TASKS
    }
    assert (rows["upos"][targets["upos"] == -100] == 0).all()
    means = torch.stack([r.sum() for r in rows.values()]) / torch.stack(
        [*heads.label_counts(targets).values()]
    )
    torch.testing.assert_close(means, heads(features, targets).losses, rtol=1e-5, atol=1e-6)
    sum(r.sum() for r in rows.values()).backward()
    assert all(g.isfinite().all() for g in gradients(encoder, heads))


# --- weights where a call gives none -------------------------------------------------------------------


def test_weights_that_were_set_count_where_a_call_gives_none():
    encoder, heads = make()
    features, targets = with_features(encoder)
    heads.set_weights({"number": 0.25, "genre": 3.0})
    own = heads(features, targets, {"number": 0.25, "genre": 3.0})
    assert torch.equal(heads(features, targets).total, own.total)
    assert torch.equal(heads(features, targets, {}).total, heads(features, targets, torch.ones(5)).total)
    heads.set_weights(None)
    assert torch.equal(heads(features, targets).total, heads(features, targets, torch.ones(5)).total)
    with pytest.raises(ValueError, match="unknown task xpos"):
        heads.set_weights({"xpos": 1.0})


CALLS = {
    "unknown denominator": ({"denominators": {"xpos": 1}}, "unknown task xpos"),
    "negative": ({"denominators": {"upos": -1}}, "denominator of upos must be finite and not negative"),
    "nan": ({"denominators": {"upos": float("nan")}}, "denominator of upos must be finite"),
    "several": ({"denominators": {"upos": torch.ones(2)}}, r"must be one number, not \(2,\)"),
    "sum": ({"denominators": {"upos": 3}, "reduction": "sum"}, "pass only one of them"),
    "reduction": ({"reduction": "median"}, "must be mean, sum or none, not 'median'"),
    "shape": ({"token_weights": torch.ones(N)}, r"token_weights of upos must be \(16, 5\), not \(16,\)"),
    "unknown": ({"token_weights": {"xpos": torch.ones(N)}}, "unknown task xpos"),
    "none": ({"reduction": "none"}, "task_losses"),
}


@pytest.mark.parametrize("case", CALLS)
def test_errors_name_what_does_not_fit(case):
    options, message = CALLS[case]
    encoder, heads = make()
    with pytest.raises(ValueError, match=message):
        heads(*with_features(encoder), **options)


def test_kernels_that_were_asked_for_are_not_left_in_silence(monkeypatch, caplog):
    encoder, heads = make(backend="numba")
    features, targets = with_features(encoder)
    with pytest.raises(RuntimeError, match="backend=numba cannot be honoured: head upos has token weights"):
        heads(features, targets, token_weights={"upos": torch.ones(N, T)})
    heads.backend, heads.plan = "auto", "chunked"
    with pytest.raises(RuntimeError, match="plan=chunked cannot be honoured"):
        heads.task_losses(features, targets, reduction="none")
    heads.plan = "auto"
    called_heads._log_once.cache_clear()
    for _ in range(3):
        heads.task_losses(features, {"upos": targets["upos"]}, reduction="none")
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "the head of upos is asked for losses per row, so it is called as a module instead of being fused (slower)"
    ]
    heads.backend = "reference"
    heads.task_losses(features, {"number": targets["number"]}, reduction="none")
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
