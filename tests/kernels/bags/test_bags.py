"""Bags of table rows: as accurate as torch, of the rows in the batch only, the same bits every time."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast.kernels import (
    ROW_RULES,
    FusedUpdate,
    RowRule,
    RowState,
    choose_embedding_backend,
    embedding_bag,
    fuse_update,
    sum_pieces,
    unique_ids,
    update_rows,
)
from mt2st_fast.kernels.bags import reference as reference_embedding
from mt2st_fast.kernels.bags.batch import NONE, Bags
from mt2st_fast.kernels.bags.on_numba import bags as numba_embedding
from mt2st_fast.kernels.bags.rules import ADAM, RowRuleKind, rule_kind

V = 211
LENGTHS = [0, 5, 1, 130, 0, 33, 64, 7, 0]
DIMS = [1, 3, 16, 37, 64, 100, 131]
MARGIN = 1e-7


@pytest.fixture(params=["serial", "parallel"], autouse=True)
def splits(request, monkeypatch):
    floats = 1 << 60 if request.param == "serial" else 1
    monkeypatch.setattr(numba_embedding, "PARALLEL_FLOATS", floats)
    return request.param


def batch(D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(V, D, generator=generator)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    # Zipf-like: some rows often, most never; every tenth id is none.
    ids = (V * torch.rand(sum(LENGTHS), generator=generator) ** 3).int()
    ids[::10] = NONE
    upstream = torch.randn(len(LENGTHS), D, generator=generator)
    return table, ids, starts, upstream


def by_torch(table, ids, starts, upstream, mode):
    """Bags and gradient of torch's own embedding_bag, in the table's dtype; NONE is a row of zeros at the end."""
    table = table.clone().requires_grad_()
    longer = torch.cat([table, table.new_zeros(1, table.shape[1])])
    rows = torch.where(ids == NONE, V, ids).long()
    bags = torch.nn.functional.embedding_bag(rows, longer, starts[:-1], mode=mode, padding_idx=V)
    bags.backward(upstream.to(table.dtype))
    return bags.detach(), table.grad


def error(found, truth):
    return float((found.detach().double() - truth).abs().max())


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("D", DIMS)
def test_bags_and_gradients_are_as_accurate_as_torch(D, mode):
    table, ids, starts, upstream = batch(D)
    truth, true_gradient = by_torch(table.double(), ids, starts, upstream, mode)
    torchs, torchs_gradient = by_torch(table, ids, starts, upstream, mode)
    for sparse in (False, True):
        ours = table.clone().requires_grad_()
        bags = embedding_bag(ours, ids, starts, mode=mode, sparse=sparse, backend="numba")
        bags.backward(upstream)
        assert ours.grad.is_sparse == sparse
        gradient = ours.grad.to_dense()
        scale, gradient_scale = truth.abs().max().item(), true_gradient.abs().max().item()
        assert error(bags, truth) <= error(torchs, truth) + MARGIN * scale
        assert (
            error(gradient, true_gradient) <= error(torchs_gradient, true_gradient) + MARGIN * gradient_scale
        )


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_the_oracle_is_torch_in_float64(mode):
    table, ids, starts, upstream = batch(5)
    truth, true_gradient = by_torch(table.double(), ids, starts, upstream, mode)
    ours = table.double().requires_grad_()
    bags = embedding_bag(ours, ids, starts, mode=mode, sparse=True, backend="reference")
    bags.backward(upstream.double())
    # The scales of a mean are float32.
    exact = 1e-6 if mode == "mean" else 1e-12
    torch.testing.assert_close(bags, truth, rtol=exact, atol=exact)
    torch.testing.assert_close(ours.grad.to_dense(), true_gradient, rtol=exact, atol=exact)


def test_the_gradient_holds_each_row_of_the_batch_once():
    table, ids, starts, upstream = batch(16)
    table.requires_grad_()
    embedding_bag(table, ids, starts, sparse=True).backward(upstream)
    rows = table.grad._indices()[0]
    assert rows.tolist() == sorted({i for i in ids.tolist() if i != NONE})


@pytest.mark.parametrize("D", [37, 100])
def test_the_same_call_gives_the_same_bits(D):
    table, ids, starts, upstream = batch(D)
    table.requires_grad_()
    results = []
    for _ in range(20):
        table.grad = None
        bags = embedding_bag(table, ids, starts, sparse=True)
        bags.backward(upstream)
        results.append((bags.detach(), table.grad.to_dense()))
    for bags, gradient in results[1:]:
        assert torch.equal(bags, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_threads_do_not_change_the_bits(monkeypatch):
    table, ids, starts, upstream = batch(100)
    found = []
    for floats in (1, 1 << 60):
        monkeypatch.setattr(numba_embedding, "PARALLEL_FLOATS", floats)
        ours = table.clone().requires_grad_()
        embedding_bag(ours, ids, starts, sparse=True).backward(upstream)
        found.append(ours.grad.to_dense())
    assert torch.equal(*found)


def test_fresh_memory_is_written_whole(monkeypatch):
    """Bags that are empty, too: what the allocator hands out is not zero."""
    table, ids, starts, _ = batch(37)
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(float("nan"))
    )
    bags = embedding_bag(table, ids, starts)
    assert bags.isfinite().all()
    assert (bags[torch.tensor(LENGTHS) == 0] == 0).all()


def test_bags_as_rows_of_a_matrix():
    table, ids, _, _ = batch(16)
    matrix = ids[:60].view(12, 5)
    starts = torch.arange(0, 61, 5)
    assert torch.equal(embedding_bag(table, matrix), embedding_bag(table, ids[:60], starts))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_unique_ids_and_back(backend):
    ids = torch.tensor([7, -1, 3, 7, 200, 3, -1, 0])
    unique, inverse = unique_ids(ids, V, backend)
    assert unique.tolist() == [0, 3, 7, 200]
    assert inverse.tolist() == [2, -1, 1, 2, 3, 1, -1, 0]


@pytest.mark.parametrize("largest", [0, 5, 2047, 2048, 70_000, 2**22 + 1, 2**31 - 1])
def test_ids_of_any_size_are_sorted(largest):
    """One, two and three digits of the radix sort."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, largest + 1, (3000,), generator=generator, dtype=torch.int64)
    ids[17] = largest
    unique, inverse = unique_ids(ids, largest + 1, "numba")
    assert torch.equal(unique.long(), ids.unique())
    assert torch.equal(unique[inverse.long()].long(), ids)


# --- steps of rows ---------------------------------------------------------------------------------------

RULES = {name: RowRule(kind, 0.1) for name, kind in ROW_RULES.items()}
COUNTED = {f"{name} of {steps:g} steps": RowRule(ROW_RULES[name], 0.1, table_steps=steps)
           for name in ROW_RULES if ROW_RULES[name].uses_table_steps for steps in (2.0, 40.0, 1e6)}  # fmt: skip


def state_for(rule, table, dtype=torch.float32):
    return rule.kind.new_state(lambda _, shape: torch.zeros(shape, dtype=dtype), *table.shape)


@pytest.mark.parametrize("name", [*RULES, *COUNTED])
@pytest.mark.parametrize("D", [1, 16, 37, 100])
def test_three_steps_are_those_of_the_oracle(name, D, splits):
    rule = {**RULES, **COUNTED}[name]
    table, ids, starts, _ = batch(D)
    exact, ours, fused = table.double(), table.clone().requires_grad_(), table.clone().requires_grad_()
    exact_state, state, fused_state = (
        state_for(rule, exact, torch.float64), state_for(rule, table), state_for(rule, table),
    )  # fmt: skip
    fuse_update(fused, FusedUpdate(lambda: rule, fused_state))
    for seed in range(3):
        _, ids, starts, upstream = batch(D, seed)
        scales = reference_embedding.mean_scales(ids, starts, V).double()
        bags = Bags(ids, starts, scales)
        reference_embedding.update_from_bags(rule, exact, bags, upstream.double(), exact_state)
        ours.grad = None
        embedding_bag(ours, ids, starts, sparse=True).backward(upstream)
        update_rows(rule, ours, ours.grad, state)
        embedding_bag(fused, ids, starts, sparse=True).backward(upstream)
    assert fused.grad is None
    # Squares are added up in another order where a row stays in registers.
    if not rule.kind.uses_mean_square:
        assert torch.equal(ours, fused)
    assert error(fused, exact) < 3e-6 * max(1.0, exact.abs().max().item())
    # float32 keeps 7 digits; a step is at most about lr, and there were three.
    assert error(ours, exact) < 3e-6 * max(1.0, exact.abs().max().item())
    assert error(ours, table.double()) > 1e-2


@pytest.mark.parametrize("name", RULES)
def test_a_step_touches_only_the_rows_of_the_batch(name):
    rule = RULES[name]
    table, ids, starts, upstream = batch(37)
    before = table.clone()
    state = state_for(rule, table)
    table.requires_grad_()
    embedding_bag(table, ids, starts, sparse=True).backward(upstream)
    update_rows(rule, table, table.grad, state)
    untouched = torch.ones(V, dtype=torch.bool)
    untouched[ids[ids != NONE].long()] = False
    assert untouched.any()
    assert torch.equal(table[untouched], before[untouched])
    for kept in state:
        assert kept is None or (kept[untouched] == 0).all()


def test_repeated_rows_of_a_gradient_are_added_up_before_a_step():
    """As torch's own sparse layers hand them over; Adagrad of a sum is not the sum of its steps."""
    table = torch.zeros(5, 20)
    values = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    repeated = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3, 3]]), values, (5, 20), check_invariants=True)
    together, once = table.clone(), table.clone()
    update_rows(RULES["adagrad"], together, repeated, state_for(RULES["adagrad"], table))
    update_rows(RULES["adagrad"], once, repeated.coalesce(), state_for(RULES["adagrad"], table))
    torch.testing.assert_close(together, once)
    assert (together[3] != 0).all()


def test_the_oracles_rules_are_torchs_in_float64():
    """Adam of a row at every step of it, and SGD."""
    generator = torch.Generator().manual_seed(0)
    for name, dense in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        table = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        theirs, rule = table.clone().requires_grad_(), RULES[name]
        optimizer, state = dense([theirs], lr=0.1), state_for(rule, table, torch.float64)
        for _ in range(4):
            theirs.grad = torch.randn(7, 5, generator=generator, dtype=torch.float64)
            optimizer.step()
            reference_embedding.update_rows(rule, table, torch.arange(7), theirs.grad, state)
        torch.testing.assert_close(table, theirs.detach(), rtol=1e-9, atol=1e-9)


def test_a_rule_says_what_it_does_not_know():
    with pytest.raises(ValueError, match="adam has no momentum; its numbers are beta1, beta2, eps"):
        RowRule(ADAM, 0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"unknown row rule lion; available: .*adagrad.*sgd"):
        rule_kind("lion")


def test_a_rule_that_no_kernel_was_made_for_is_refused_and_moves_nothing():
    stranger = RowRule(RowRuleKind("stranger", lambda rule, w, g, state: (w - g, state)), 0.1)
    table, gradient = torch.zeros(4, 3), torch.ones(1, 3)
    with pytest.raises(ValueError, match="the row rule stranger is not one of"):
        numba_embedding.update_rows(stranger, table, torch.tensor([1]), gradient, RowState())
    assert (table == 0).all()
    # The oracle takes whatever says how.
    reference_embedding.update_rows(stranger, table, torch.tensor([1]), gradient, RowState())
    assert (table[1] == -1).all()


def test_a_rule_that_kernels_could_not_take_is_refused_when_it_is_made():
    oracle = ROW_RULES["sgd"].oracle
    with pytest.raises(ValueError, match="kernels support at most 7 numbers"):
        RowRuleKind("many", oracle, numbers={f"n{i}": 0.0 for i in range(8)})
    with pytest.raises(ValueError, match="kernels support at most 2 tables"):
        RowRuleKind("long", oracle, tables=("a", "b", "c"))
    with pytest.raises(ValueError, match="it needs numba_move and triton_move"):
        RowRuleKind("half", oracle, tables=("a",))


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [V, -2, 2**31 + 5, 3 - 2**32, -(2**63)])
def test_an_id_outside_the_table_is_named(wrong):
    table, ids, starts, _ = batch(8)
    ids = ids.long()
    ids[17] = wrong
    with pytest.raises(ValueError, match=rf"(id|ids contain) {wrong}\b"):
        embedding_bag(table, ids, starts)


@pytest.mark.parametrize("starts", [[0, 3, 2, 6], [1, 6], [0, 5]])
def test_starts_that_fit_no_bags_are_refused(starts):
    with pytest.raises(ValueError, match="ascend from 0 to the number of ids, 6"):
        embedding_bag(torch.zeros(9, 2), torch.zeros(6, dtype=torch.int64), torch.tensor(starts))


def test_other_arguments_are_refused():
    table, ids, starts, _ = batch(8)
    with pytest.raises(ValueError, match="mode must be mean or sum, not max"):
        embedding_bag(table, ids, starts, mode="max")
    with pytest.raises(TypeError, match=r"ids must be integers, not torch\.float32"):
        embedding_bag(table, ids.float(), starts)
    with pytest.raises(ValueError, match=r"ids without starts must be \(B, L\)"):
        embedding_bag(table, ids)
    with pytest.raises(RuntimeError, match=r"backend=numba cannot be honoured: .*float64"):
        embedding_bag(table.double(), ids, starts, backend="numba")
    table.requires_grad_()
    total = embedding_bag(table, ids, starts).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, table, create_graph=True)


def test_a_backend_says_why():
    choice = choose_embedding_backend(torch.device("cpu"))
    assert choice.name == "numba"
    assert "cpu" in choice.reason


def test_it_compiles_without_sparse_gradients():
    table, ids, starts, _ = batch(8)
    compiled = torch.compile(embedding_bag, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(table, ids, starts), embedding_bag(table, ids, starts))
    with pytest.raises(Exception, match="cannot be compiled"):
        torch.compile(embedding_bag, fullgraph=True, backend="eager")(
            table.requires_grad_(), ids, starts, sparse=True
        )


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("D", DIMS)
def test_the_rows_of_several_pieces_are_added_in_their_order(D, backend):
    generator = torch.Generator().manual_seed(D)
    pieces = []
    for n in (0, 120, 150, 1, V):
        rows = torch.randperm(V, generator=generator)[:n].sort().values.int()
        pieces.append((rows, 100 * torch.randn(n, D, generator=generator)))
    whole = torch.zeros(V, D)
    for rows, gradient in pieces:
        whole[rows.long()] += gradient
    rows, sums = sum_pieces(pieces, V, backend)
    assert torch.equal(rows, torch.arange(V))
    assert torch.equal(sums, whole)
    rows, sums = sum_pieces(pieces[:3], V, backend)
    found = torch.cat([pieces[1][0], pieces[2][0]]).unique()
    assert torch.equal(rows, found.long())
    assert sums.shape == (len(found), D)
    rows, sums = sum_pieces(pieces[:1], V, backend)
    assert rows.shape == (0,)
    assert sums.shape == (0, D)
