"""Row-sparse embeddings and context prediction on a real GPU: against the truth, the same bits, CUDA graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.device import captured
from mt2st_fast import (
    BagEncoder,
    Classification,
    ContextPrediction,
    MultiTaskHeads,
    Switch,
    Trainer,
)
from mt2st_fast.data import ContextBatches
from mt2st_fast.kernels import (
    ROW_RULES,
    FusedUpdate,
    RowRule,
    RowState,
    choose_embedding_backend,
    embedding_bag,
    fuse_update,
    unique_ids,
    update_rows,
)
from mt2st_fast.kernels.bags.batch import NONE
from mt2st_fast.kernels.bags.rules import SGD
from mt2st_fast.kernels.context.op import context_loss
from mt2st_fast.training.inputs.batch import to_device
from tests.on_gpu.helpers import (
    BACKEND,
    DEVICE,
    DTYPES,
    assert_as_accurate_as_torch,
    no_waiting,
    poisoned_memory,
)

# --- row-sparse embeddings -----------------------------------------------------------------------------

V = 5003


def rule_of(name):
    """Of a table that has taken more steps than its rows."""
    return RowRule(ROW_RULES[name], 0.1, table_steps=torch.tensor(40.0, device=DEVICE))


# One thread a column and many; one block of columns, two, and more than a program holds.
COLUMNS = (1, 37, 128, 300, 1500)


def state_for(rule, table):
    dtype = torch.float64 if table.dtype is torch.float64 else torch.float32

    return rule.kind.new_state(lambda _, shape: torch.zeros(shape, dtype=dtype, device=DEVICE), *table.shape)


class Bags:
    """A table and three batches of ragged bags: empty ones, a long one, ids of none, a row in every tenth place."""

    def __init__(self, D, dtype, mode="mean"):
        generator = torch.Generator().manual_seed(D)
        self.mode = mode
        self.table = torch.randn(V, D, generator=generator).to(dtype).to(DEVICE)
        self.batches = [self._batch(D, dtype, generator) for _ in range(3)]

    @staticmethod
    def _batch(D, dtype, generator):
        lengths = torch.randint(0, 30, (400,), generator=generator)
        lengths[::7], lengths[11] = 0, 1500
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ids = (V * torch.rand(int(starts[-1]), generator=generator) ** 4).int()
        ids[::10], ids[::13] = 17, NONE
        upstream = torch.randn(len(lengths), D, generator=generator).to(dtype)
        return ids.to(DEVICE), starts.to(DEVICE), upstream.to(DEVICE)

    def bags_and_gradient(self, backend, dtype=None):
        """Of the first batch, by the op, in `dtype` where given."""
        table = self.table.to(dtype or self.table.dtype).clone().requires_grad_()
        ids, starts, upstream = self.batches[0]
        bags = embedding_bag(table, ids, starts, mode=self.mode, sparse=True, backend=backend)
        bags.backward(upstream.to(table.dtype))
        return {"bags": bags.detach(), "gradient": table.grad.to_dense()}

    def stepped(self, rule, backend, fused, dtype=None):
        """Table and state after a step by each batch."""
        table = self.table.to(dtype or self.table.dtype).clone().requires_grad_()
        state = state_for(rule, table)
        if fused:
            fuse_update(table, FusedUpdate(lambda: rule, state))
        for ids, starts, upstream in self.batches:
            table.grad = None
            bags = embedding_bag(table, ids, starts, mode=self.mode, sparse=True, backend=backend)
            bags.backward(upstream.to(table.dtype))
            if not fused:
                update_rows(rule, table, table.grad, state, backend)
        found = {"table": table.detach(), **state._asdict()}
        return {key: value for key, value in found.items() if value is not None}


def test_the_gpu_serves_tables_by_itself():
    assert choose_embedding_backend(DEVICE).name == BACKEND


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", COLUMNS)
def test_bags_and_their_gradient_are_as_accurate_as_torch(D, dtype, mode):
    problem = Bags(D, dtype, mode)
    with poisoned_memory():
        ours = problem.bags_and_gradient(BACKEND)
    truth = problem.bags_and_gradient("reference", torch.float64)
    assert_as_accurate_as_torch(ours, problem.bags_and_gradient("reference"), truth, dtype)


# What torch says of its own operators on sparse tensors, once.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", COLUMNS)
@pytest.mark.parametrize("rule", ROW_RULES)
def test_three_steps_of_rows_are_as_accurate_as_torch(rule, D, dtype, fused):
    problem = Bags(D, dtype)
    with poisoned_memory():
        ours = problem.stepped(rule_of(rule), BACKEND, fused)
    truth = problem.stepped(rule_of(rule), "reference", False, torch.float64)
    assert_as_accurate_as_torch(ours, problem.stepped(rule_of(rule), "reference", False), truth, dtype)
    touched = torch.cat([ids for ids, _, _ in problem.batches]).unique()
    untouched = torch.ones(V, dtype=torch.bool, device=DEVICE)
    untouched[touched[touched != NONE].long()] = False
    assert untouched.any()
    assert torch.equal(ours.pop("table")[untouched], problem.table[untouched])
    assert not any(value[untouched].any() for value in ours.values())


@pytest.mark.parametrize("D", [37, 1500])
@pytest.mark.parametrize("rule", ROW_RULES)
def test_twenty_runs_of_rows_give_the_same_bits_fused_or_not(rule, D):
    problem = Bags(D, torch.float32)
    first = problem.stepped(rule_of(rule), BACKEND, True)
    for i in range(19):
        again = problem.stepped(rule_of(rule), BACKEND, fused=i % 2 == 0)
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("rule", ROW_RULES)
def test_a_fused_step_of_rows_never_waits_for_the_device(rule):
    problem = Bags(128, torch.float32)
    problem.stepped(rule_of(rule), BACKEND, True)
    table = problem.table.clone().requires_grad_()
    fuse_update(table, FusedUpdate(lambda: rule_of(rule), state_for(rule_of(rule), table)))
    ids, starts, upstream = problem.batches[0]
    with no_waiting():
        embedding_bag(table, ids, starts, sparse=True, backend=BACKEND).backward(upstream)


def test_a_fused_step_of_rows_can_be_captured_and_replayed_on_other_ids():
    problem, rule = Bags(128, torch.float32), rule_of("adam")
    table = problem.table.clone().requires_grad_()
    state = state_for(rule, table)
    fuse_update(table, FusedUpdate(lambda: rule, state))
    length = min(len(ids) for ids, _, _ in problem.batches)
    starts = torch.arange(0, length + 1, length // 8, device=DEVICE)
    batches = [(ids[: int(starts[-1])], upstream[: len(starts) - 1]) for ids, _, upstream in problem.batches]
    ids, upstream = (tensor.clone() for tensor in batches[0])

    def step():
        embedding_bag(table, ids, starts, sparse=True, backend=BACKEND).backward(upstream)

    replay_step = captured(step, DEVICE)
    tensors = [table.detach(), *state]

    def reset():
        for tensor in tensors:
            tensor.zero_()

    found = []
    for replay in (step, replay_step):
        reset()
        for new_ids, new_upstream in batches:
            ids.copy_(new_ids)
            upstream.copy_(new_upstream)
            replay()
        torch.cuda.synchronize()
        found.append([tensor.clone() for tensor in tensors])
    for eager, replayed in zip(*found, strict=True):
        assert eager.any()
        assert torch.equal(eager, replayed)


def test_ids_outside_the_table_count_as_none_and_read_nothing():
    problem = Bags(37, torch.float32)
    expected = problem.stepped(rule_of("adam"), BACKEND, True), problem.bags_and_gradient(BACKEND)
    wrong = torch.tensor([V, -2, 2**31 - 1, -(2**31)], dtype=torch.int32, device=DEVICE)
    for ids, _, _ in problem.batches:
        none = ids == NONE
        ids[none] = wrong.repeat(len(ids))[: int(none.sum())]
    found = problem.stepped(rule_of("adam"), BACKEND, True), problem.bags_and_gradient(BACKEND)
    for ours, truth in zip(found, expected, strict=True):
        for key, value in truth.items():
            assert torch.equal(ours[key], value), key


def test_rows_past_two_billion_elements_are_read_and_stepped():
    D, rows = 256, 2**31 // 256 + 5
    table = torch.zeros(rows, D, dtype=torch.bfloat16, device=DEVICE)
    table[-3:] = torch.randn(3, D, device=DEVICE).bfloat16()
    last = table[-3:].clone()
    ids = torch.arange(rows - 3, rows, device=DEVICE).unsqueeze(1)
    table.requires_grad_()
    fuse_update(table, FusedUpdate(lambda: RowRule(SGD, 0.5), RowState()))
    bags = embedding_bag(table, ids, mode="sum", sparse=True, backend=BACKEND)
    bags.backward(torch.ones_like(bags))
    assert torch.equal(bags.detach(), last)
    assert torch.equal(table.detach()[-3:], (last.float() - 0.5).bfloat16())


def test_unique_ids_and_back_on_the_gpu():
    ids = Bags(1, torch.float32).batches[0][0]
    unique, inverse = unique_ids(ids, V, BACKEND)
    known = ids != NONE
    assert torch.equal(unique, ids[known].unique())
    assert torch.equal(unique[inverse[known].long()], ids[known])
    assert (inverse[~known] == NONE).all()


# --- context prediction --------------------------------------------------------------------------------


def context_batches(types, words, **options):
    """Zipf words in sentences of 1 to 30, as batches of `words` tokens."""
    generator = np.random.default_rng(0)
    shares = 1 / np.arange(1, types + 1)
    tokens = generator.choice(types, 4 * words, p=shares / shares.sum()).astype(np.int32)
    ends = np.cumsum(generator.integers(1, 31, len(tokens))).clip(max=len(tokens))
    bounds = np.unique(np.concatenate([[0], ends])).astype(np.int64)
    counts = np.maximum(1, np.bincount(tokens, minlength=types))
    return ContextBatches(tokens, bounds, counts, words=words, sample=0, **options)


class Context:
    """Vectors of the words of a batch, on the GPU."""

    def __init__(self, mode, D, words=1500, window=5):
        batch, _ = next(iter(context_batches(3000, words, mode=mode, window=window)))
        self.batch = to_device(batch, DEVICE)
        generator = torch.Generator().manual_seed(D)
        self.vectors = [
            (torch.randn(n, D, generator=generator) / D**0.5).to(DEVICE)
            for n in (batch.n_kept, len(batch.types))
        ]

    def outcome(self, backend, dtype=torch.float32):
        leaves = [vectors.to(dtype).clone().requires_grad_() for vectors in self.vectors]
        loss = context_loss(*leaves, self.batch, backend)
        (2 * loss).backward()
        return {"loss": loss.detach(), "d_inputs": leaves[0].grad, "d_outputs": leaves[1].grad}


@pytest.mark.parametrize("words", [7, 1500, 20_000])
@pytest.mark.parametrize(("D", "window"), [(5, 2), (100, 5), (300, 12)])
@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_context_loss_is_as_accurate_as_torch(mode, D, window, words):
    problem = Context(mode, D, words, window)
    with poisoned_memory():
        ours = problem.outcome(BACKEND)
    truth = problem.outcome("reference", torch.float64)
    assert_as_accurate_as_torch(ours, problem.outcome("reference"), truth, torch.float32)


@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_twenty_runs_of_context_loss_give_the_same_bits(mode):
    problem = Context(mode, 100)
    first = problem.outcome(BACKEND)
    for _ in range(19):
        again = problem.outcome(BACKEND)
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("mode", ["skipgram", "cbow"])
def test_context_loss_never_waits_for_the_device(mode):
    problem = Context(mode, 100)
    problem.outcome(BACKEND)
    with no_waiting():
        problem.outcome(BACKEND)


@pytest.mark.parametrize("backward", ["autograd", "fused"])
def test_context_prediction_trains_as_the_oracle_does(backward):
    def losses(backend):
        torch.manual_seed(0)
        encoder = BagEncoder(50, 16, sparse=True, backend=backend)
        tasks = {"tone": Classification(2), "context": ContextPrediction(50, 16, backend=backend)}
        trainer = Trainer(
            encoder,
            MultiTaskHeads(16, tasks, "tone"),
            schedule=Switch(at=0.9),
            lr=0.02,
            device=DEVICE,
            backward=backward,
        )
        words = torch.arange(96).remainder(50)
        bags = [((words, torch.arange(0, 97, 3)), {"tone": (words[::3] > 20).long()})] * 8
        trainer.fit({"tone": bags, "context": context_batches(50, 500, window=2)}, epochs=5)
        assert [phase.active for phase in trainer.history.phases] == [("tone", "context"), ("tone",)]
        return [record.losses["context"] for record in trainer.history.steps if "context" in record.losses]

    ours, truth = losses(BACKEND), losses("reference")
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(truth, rel=1e-3)
