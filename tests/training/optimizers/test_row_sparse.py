"""Row-sparse training: the rows of the batch move as the dense optimizer would move them, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mt2st_fast
from mt2st_fast import (
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTaskHeads,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.kernels import ROW_RULES
from mt2st_fast.training.optimizers.clipping import clip_gradients
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer, optimizer_by_rule
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables

T = 50


def bags(n_batches=6, rows=40, seed=0, types=T):
    """Bags of words whose label is decided by their words."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n_batches):
        starts = torch.tensor([0, *torch.randint(1, 6, (rows,), generator=generator)]).cumsum(0)
        words = torch.randint(0, types, (int(starts[-1]),), generator=generator)
        sums = torch.zeros(rows).index_add_(
            0, torch.repeat_interleave(torch.arange(rows), starts.diff()), (words % 5 - 2.0)
        )
        batches.append(((words.int(), starts), {"tone": (sums > 0).long(), "size": starts.diff() % 3}))
    return batches


def model(sparse, seed=0, **options):
    torch.manual_seed(seed)
    encoder = BagEncoder(T, 12, sparse=sparse, **options)
    heads = MultiTaskHeads(12, {"tone": Classification(2), "size": Classification(3)}, "tone")
    return encoder, heads


def one_step(optimizer_class, sparse, batch, **options):
    encoder, heads = model(sparse)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = optimizer_class(parameters, **options)
    inputs, targets = batch
    heads(encoder(inputs), targets).total.backward()
    optimizer.step()
    return encoder, heads


@pytest.mark.parametrize(
    ("ours", "dense", "options"),
    [
        (mt2st_fast.SGD, torch.optim.SGD, {"lr": 0.3}),
        (LazyAdam, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}),
    ],
)
def test_a_first_step_is_the_dense_optimizers_step(ours, dense, options):
    (batch,) = bags(1)
    found, truth = one_step(ours, True, batch, **options), one_step(dense, False, batch, **options)
    for mine, theirs in zip(found, truth, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_by_hand():
    table = nn.Parameter(torch.zeros(3, 2))
    bias = nn.Parameter(torch.zeros(2))
    optimizer = RowwiseAdagrad([table, bias], lr=0.5)
    for _ in range(2):
        table.grad = torch.sparse_coo_tensor(
            torch.tensor([[1]]), torch.tensor([[3.0, 4.0]]), (3, 2), check_invariants=True
        )
        bias.grad = torch.tensor([2.0, 0.0])
        optimizer.step()
    # mean(g^2) = 12.5 a step: 0.5 g (1 / sqrt(12.5) + 1 / sqrt(25)); the bias has rows of one number.
    row = -0.5 * torch.tensor([3.0, 4.0]) * (12.5**-0.5 + 0.2)
    torch.testing.assert_close(table.detach(), torch.stack([torch.zeros(2), row, torch.zeros(2)]))
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.5 * (1 + 2**-0.5), 0.0]))
    assert optimizer.state[table]["row_sum"].shape == (3,)


def test_rowwise_adagrad_of_dense_parameters_of_any_shape():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (), (2, 3, 4)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    parameters.append(nn.Parameter(torch.randn(4, 3, generator=generator).T))  # not contiguous
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    RowwiseAdagrad(parameters, lr=0.5).step()
    for p, old in zip(parameters, before, strict=True):
        g = p.grad.reshape(p.shape[0] if p.dim() else 1, -1)
        expected = old - (0.5 * g / g.square().mean(1, keepdim=True).sqrt()).reshape(p.shape)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_of_rows_needs_its_rule():
    unfinished = type("Unfinished", (RowSparseOptimizer, torch.optim.SGD), {})
    with pytest.raises(TypeError, match=r"abstract.*kind"):
        unfinished([torch.zeros(1)])


def test_every_rule_is_an_optimizer_of_tables_and_dense_parameters_whose_state_can_be_kept():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 3, generator=generator) for _ in range(4)]

    def steps(optimizer, parameter, some, sparse):
        for gradient in some:
            parameter.grad = gradient.to_sparse(1) if sparse else gradient.clone()
            optimizer.step()

    for name in ROW_RULES:
        table, dense = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
        by_rows, by_all = (optimizer_by_rule(name)([p], lr=0.1) for p in (table, dense))
        steps(by_rows, table, gradients[:2], sparse=True)
        steps(by_all, dense, gradients, sparse=False)
        # Half way, another one takes over what was kept.
        heir = nn.Parameter(table.detach().clone())
        inherited = optimizer_by_rule(name)([heir], lr=0.3)
        inherited.load_state_dict(by_rows.state_dict())
        steps(inherited, heir, gradients[2:], sparse=True)
        assert torch.equal(heir, dense), name
        assert not torch.equal(heir, torch.ones(4, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [LazyAdam, RowwiseAdagrad, optimizer_by_rule("adam")])
@pytest.mark.parametrize("sparse", [True, False])
def test_states_of_rules_stay_float32_with_the_same_bits_when_they_are_loaded(make, sparse, dtype):
    table = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype))
    optimizer = make([table], lr=0.1)
    gradient = table.detach() / 3
    table.grad = gradient.to_sparse(1) if sparse else gradient
    optimizer.step()
    inherited = make([nn.Parameter(table.detach().clone())], lr=0.1)
    inherited.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(inherited.state.values(), optimizer.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == theirs[name].dtype, name
            assert torch.equal(value, theirs[name]), name


def test_an_optimizer_by_a_rule_refuses_what_the_rule_does_not_know():
    with pytest.raises(ValueError, match="unknown row rule lion"):
        optimizer_by_rule("lion")
    with pytest.raises(ValueError, match="sgd has no momentum"):
        optimizer_by_rule("sgd")([torch.zeros(1)], momentum=0.9)
    with pytest.raises(ValueError, match="lr must be positive and finite, not 0"):
        optimizer_by_rule("sgd")([torch.zeros(1)], lr=0)


@pytest.mark.parametrize("make", [LazyAdam, mt2st_fast.SGD])
def test_dense_parameters_on_a_gpu_move_in_one_launch_at_a_rate_on_the_device(make, monkeypatch):
    """On a CPU that passes for a GPU; what is told to torch is what matters."""
    results = []
    for on_gpu in (False, True):
        weight = nn.Parameter(torch.ones(3, 2))
        optimizer = make([weight], lr=0.25)
        weight.grad = torch.arange(6.0).view(3, 2)
        optimizer.step()
        if on_gpu:
            assert optimizer.param_groups[0]["fused"] is None
            monkeypatch.setattr(torch.Tensor, "is_cuda", True)
            optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
        optimizer.step()
        assert optimizer.param_groups[0]["fused"] is (True if on_gpu else None)
        results.append(weight.detach().clone())
        monkeypatch.undo()
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_a_rate_on_the_device_reaches_the_rule_as_it_is():
    table = nn.Parameter(torch.zeros(3, 2))
    for make in (mt2st_fast.SGD, RowwiseAdagrad, LazyAdam):
        optimizer = make([table], lr=0.5)
        rate = torch.tensor(0.25)
        optimizer.param_groups[0]["lr"] = rate
        assert optimizer.rule(optimizer.param_groups[0]).lr is rate


def test_a_closure_is_evaluated_once():
    table = nn.Parameter(torch.ones(3, 2))
    optimizer = mt2st_fast.SGD([table], lr=0.5)
    calls = []

    def closure():
        calls.append(1)
        loss = nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert len(calls) == 1
    assert table.tolist() == [[1, 1], [0.5, 0.5], [1, 1]]


def test_clipping_counts_row_sparse_gradients():
    weight, table = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4, 1))
    weight.grad = torch.tensor([0.0, 4.0])
    repeated = torch.sparse_coo_tensor(
        torch.tensor([[2, 2]]), torch.tensor([[1.0], [2.0]]), (4, 1), check_invariants=True
    )
    table.grad = repeated
    clip_gradients([weight, table], 1.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)
    torch.testing.assert_close(table.grad.to_dense()[2], torch.tensor([0.6]), rtol=1e-5, atol=0)


def test_row_sparse_tables_are_found():
    encoder = nn.ModuleList(
        [BagEncoder(T, 4, sparse=True), BagEncoder(T, 4), nn.Embedding(T, 4, sparse=True)]
    )
    assert [id(t) for t in row_sparse_tables(encoder)] == [id(encoder[0].table), id(encoder[2].weight)]


# --- in the trainer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 1.0}, "clip_norm needs"),
        ({"accumulate": 2}, "accumulate needs"),
        ({"precision": "float16"}, "float16 needs"),
    ],
)
def test_fusion_is_refused_where_the_gradient_is_needed(options, message):
    encoder, heads = model(sparse=True)
    with pytest.raises(ValueError, match=message.replace(" needs", "")):
        Trainer(encoder, heads, backward="fused", device="cpu", **options)


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_fusion_is_refused_where_a_hook_takes_the_gradient(hook):
    encoder, heads = model(sparse=True)
    getattr(encoder.table, hook)(lambda gradient: None)
    with pytest.raises(
        ValueError, match='backward="fused" makes no gradient of a table, but this one has hooks'
    ):
        Trainer(encoder, heads, backward="fused", device="cpu").fit(bags(1), epochs=1)


def test_fusion_is_refused_where_a_step_reads_the_table_twice():
    encoder, heads = model(sparse=True)
    before = encoder.table.detach().clone()
    train = {name: [(x, {name: targets[name]}) for x, targets in bags(2)] for name in heads.names}
    with pytest.raises(ValueError, match="a step has the batches of 2 loaders; leave backward= out"):
        Trainer(encoder, heads, backward="fused", device="cpu").fit(train, epochs=1)
    assert torch.equal(encoder.table, before)


@pytest.mark.parametrize("make", [mt2st_fast.SGD, LazyAdam, RowwiseAdagrad])
def test_frozen_rows_stay_in_a_fused_update_as_in_a_step_by_gradients(make):
    found = []
    for fused in (False, True):
        encoder, heads = model(sparse=True)
        optimizer = make([*encoder.parameters(), *heads.parameters()], lr=0.1)
        optimizer.freeze_rows(encoder.table, torch.arange(T) % 3 > 0)
        if fused:
            optimizer.fuse([encoder.table])
        before = encoder.table.detach().clone()
        for inputs, targets in bags(3):
            heads(encoder(inputs), targets).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(encoder.table[1::3], before[1::3])
        assert not torch.equal(encoder.table[::3], before[::3])
        found.append(encoder.table.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_an_update_of_a_table_that_was_stepped_since_it_was_read_is_refused():
    encoder, _ = model(sparse=True)
    RowwiseAdagrad([encoder.table], lr=0.1).fuse([encoder.table])
    twice = encoder(bags(1)[0][0]) + encoder(bags(1)[0][0])
    with pytest.raises(RuntimeError, match="read the table once a step"):
        twice.sum().backward()


def test_fusion_needs_a_row_sparse_table_and_a_row_optimizer():
    encoder, heads = model(sparse=False)
    with pytest.raises(ValueError, match="set sparse=True in the encoder"):
        Trainer(encoder, heads, backward="fused", device="cpu")
    encoder, heads = model(sparse=True)
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), backward="fused", device="cpu"
    )
    with pytest.raises(ValueError, match="needs LazyAdam, RowwiseAdagrad or SGD of mt2st_fast, not SGD"):
        trainer.fit(bags(1), epochs=1)


# --- encoders --------------------------------------------------------------------------------------------


def test_subword_means_are_made_once_and_get_the_same_gradient():
    """Against every position's rows pooled on their own."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, 30, (T, 4), generator=generator)
    rows[::3, 2:] = 0  # padding
    encoder = WindowEncoder(T, 7, window=1, hidden=None, rows_of_type=rows, num_rows=30, sparse=True)
    windows = torch.randint(-1, T, (20, 3), generator=generator)
    upstream = torch.randn(20, 21, generator=generator)
    features = encoder(windows)
    features.backward(upstream)

    table = encoder.table.detach().double().requires_grad_()
    known = (rows != 0).double().unsqueeze(2)
    vectors = (table[rows] * known).sum(1) / known.sum(1)
    vectors = torch.cat([vectors, torch.zeros(1, 7, dtype=torch.float64)])
    expected = vectors[windows].flatten(1)
    expected.backward(upstream.double())
    torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.table.grad.to_dense().double(), table.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [T, -2])
def test_a_word_type_outside_the_vocabulary_is_named(wrong):
    encoder, _ = model(sparse=True)
    with pytest.raises(ValueError, match=f"id {wrong} "):
        encoder((torch.tensor([0, wrong]), torch.tensor([0, 2])))


def test_a_rare_row_moves_as_far_as_the_dense_optimizer_moves_it_in_the_end():
    """Row r comes in every every[r]-th step; dense AdamW moves it in the steps between, too, by its momentum."""
    every, generator = torch.tensor([1, 4, 20, 100]), torch.Generator().manual_seed(0)
    rows, dense, own_steps = (nn.Parameter(torch.zeros(4, 8)) for _ in range(3))
    optimizers = {
        rows: LazyAdam([rows], lr=0.1),
        dense: torch.optim.AdamW([dense], lr=0.1, weight_decay=0.0),
        own_steps: optimizer_by_rule("adam")([own_steps], lr=0.1),
    }
    for step in range(1, 461):
        gradient = torch.rand(4, 8, generator=generator) + 0.5
        gradient[(step % every != 0) | (step > 400)] = 0.0  # at the end dense Adam spends its momentum
        for table, optimizer in optimizers.items():
            table.grad = gradient if table is dense else gradient.to_sparse(1)
            optimizer.step()
    truth = dense.detach().mean(1)
    ratio = rows.detach().mean(1) / truth
    assert ((ratio > 0.9) & (ratio < 1.1)).all(), ratio
    assert own_steps.detach().mean(1)[3] / truth[3] < 0.15


def test_the_count_of_a_tables_steps_goes_with_its_state():
    table = nn.Parameter(torch.zeros(4, 8))
    gradient = torch.eye(4, 8)[:1].expand(4, 8).clone()
    gradient[1:] = 0.0

    def step(optimizer, parameter, row):
        parameter.grad = gradient.roll(row, 0).to_sparse(1)
        optimizer.step()

    optimizer = LazyAdam([table], lr=0.1)
    for _ in range(24):
        step(optimizer, table, 0)
    heir = nn.Parameter(table.detach().clone())
    inherited = LazyAdam([heir], lr=0.1)
    inherited.load_state_dict(optimizer.state_dict())
    step(inherited, heir, 2)
    assert heir[2, 0].item() == pytest.approx(-0.1 * 25**0.5, rel=1e-4)


@pytest.mark.parametrize("make", [mt2st_fast.SGD, LazyAdam, RowwiseAdagrad])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_of_rows_is_that_of_a_sparse_gradient(make, frozen):
    found = []
    for by_rows in (False, True):
        table = torch.nn.Parameter(model(sparse=True)[0].table.detach().clone())
        optimizer = make([table], lr=0.1)
        optimizer.freeze_rows(table, torch.arange(T) % 3 > 0 if frozen else None)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randperm(T, generator=generator)[:20]
            d_rows = torch.randn(20, 12, generator=generator)
            if by_rows:
                optimizer.step_rows(table, rows, d_rows)
            else:
                table.grad = torch.sparse_coo_tensor(
                    rows.unsqueeze(0), d_rows, table.shape, check_invariants=True
                )
                optimizer.step()
        found.append((table.detach(), optimizer.state_dict()["state"][0]))
    (wanted, wanted_state), (moved, state) = found
    assert torch.equal(moved, wanted)
    assert state.keys() == wanted_state.keys()
    assert all(torch.equal(state[name], wanted_state[name]) for name in state)
