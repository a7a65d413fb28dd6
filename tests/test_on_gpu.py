"""On a real GPU: every plan and dtype against the truth, the same bits, CUDA graphs, and what a step launches.

Skipped, in one line, where torch sees no CUDA device.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from bench.accuracy import FACTOR, relative_error
from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    ContextPrediction,
    HeadLayout,
    HeadSpec,
    Kind,
    MultiTask,
    MultiTaskHeads,
    SingleTask,
    Switch,
    Trainer,
    WindowEncoder,
    multitask_loss,
)
from mt2st_fast.data import ContextBatches
from mt2st_fast.graphs import WARM_UP_STEPS
from mt2st_fast.kernels import (
    FusedUpdate,
    RowRule,
    RowState,
    choice,
    choose_backend,
    choose_embedding_backend,
    embedding_bag,
    fuse_update,
    row_rules,
    unique_ids,
    update_rows,
)
from mt2st_fast.kernels.context_loss import context_loss
from mt2st_fast.sources import to_device

if not torch.cuda.is_available():
    pytest.skip("no GPU: torch sees no CUDA device here", allow_module_level=True)

DEVICE = torch.device("cuda")
BACKEND = "triton"
PLANS = ("auto", *choice.PLANS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RATE = 2.0**-7  # the same in float32, so that a rate on the device is the same number

SOFTMAX, BINARY, SQUARED, HUBER = Kind
MIXED = (
    HeadSpec(SOFTMAX, 17, label_smoothing=0.1),
    HeadSpec(BINARY, 6, pos_weight=(1.0, 2.0, 0.5, 9.0, 1.0, 1.0)),
    HeadSpec(SQUARED, 1),
    HeadSpec(SOFTMAX, 3, class_weights=(1.0, 2.0, 0.3), ignore_index=1),
    HeadSpec(HUBER, 2, delta=1.5),
    HeadSpec(SOFTMAX, 2),
)
LAYOUTS = {
    "one small head": (HeadSpec(SOFTMAX, 5),),
    "mixed": MIXED,
    "16 binary": (HeadSpec(SOFTMAX, 2),) * 16,
    "middle": (HeadSpec(SOFTMAX, 301), HeadSpec(SOFTMAX, 50), HeadSpec(BINARY, 77)),
    "wide": (HeadSpec(SOFTMAX, 17), HeadSpec(SOFTMAX, 20_011, label_smoothing=0.1), HeadSpec(HUBER, 3)),
}
# (N, D): ragged, one row, more rows than a grid of small tiles likes
SIZES = ((257, 123), (1, 64), (4099, 72))


class Problem:
    """Arguments of one call, on the GPU."""

    def __init__(self, heads, N, D, dtype, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.layout = HeadLayout(heads)
        S = self.layout.width

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.features = normal(N, D).to(dtype).to(DEVICE)
        self.weight = (normal(S, D) / math.sqrt(D)).to(dtype).to(DEVICE)
        self.bias = normal(S).to(dtype).to(DEVICE)
        self.targets = [self._target(head, N, generator).to(DEVICE) for head in heads]
        self.task_weights = (torch.rand(len(heads), generator=generator) + 0.1).to(DEVICE)

    @staticmethod
    def _target(head, N, generator):
        missing = torch.rand(N, head.size, generator=generator) < (0.2 if N > 1 else 0.0)
        if head.kind is SOFTMAX:
            target = torch.randint(head.size, (N,), generator=generator)
            return target.masked_fill(missing[:, 0], head.ignore_index)
        values = torch.randn(N, head.size, generator=generator)
        return (values > 0).float().masked_fill(missing, math.nan) if head.kind is BINARY else values

    def outcome(self, dtype=None, **options):
        """Losses, total and all gradients, in `dtype` where given."""
        leaves = [
            t.to(t.dtype if dtype is None else dtype).clone().requires_grad_()
            for t in (self.features, self.weight, self.bias, self.task_weights)
        ]
        features, weight, bias, task_weights = leaves
        out = multitask_loss(features, weight, bias, self.targets, task_weights, self.layout, **options)
        out.total.backward()
        names = ("d_features", "d_weight", "d_bias", "d_task_weights")
        return {
            "total": out.total.detach(),
            "losses": out.losses,
            "correct": out.correct.double(),
            **{name: leaf.grad for name, leaf in zip(names, leaves, strict=True)},
        }


def assert_as_accurate_as_torch(ours, by_torch, truth, dtype):
    """1.5 times torch's own error, and a few roundings on top: torch is sometimes exact by luck."""
    eps = torch.finfo(dtype).eps
    for key, value in ours.items():
        assert value.shape == truth[key].shape, key
        error, torch_error = relative_error(value, truth[key]), relative_error(by_torch[key], truth[key])
        gradient = key in ("d_features", "d_weight", "d_bias")
        margin = 2e-6 if dtype is torch.float32 else 2 * eps if gradient else eps
        # Written so that a NaN of ours fails.
        assert error <= FACTOR * torch_error + margin, f"{key}: error {error:.3g}, torch's {torch_error:.3g}"


@contextmanager
def poisoned_memory():
    """Whatever is allocated is NaN until it is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def outcome_of_plan(problem, plan):
    try:
        return problem.outcome(backend=BACKEND, plan=plan)
    except (ValueError, RuntimeError) as error:
        # A plan may say that it is not for this layout; anything else is a failure.
        if plan == "auto" or f"plan={plan}" not in str(error):
            raise
        pytest.skip(str(error))


# --- the fused op --------------------------------------------------------------------------------------


def test_the_gpu_is_chosen_by_itself():
    assert choose_backend(DEVICE, torch.bfloat16).name == BACKEND


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_plan_is_as_accurate_as_torch(name, plan, dtype, size):
    problem = Problem(LAYOUTS[name], *size, dtype)
    with poisoned_memory():
        ours = outcome_of_plan(problem, plan)
    truth = problem.outcome(torch.float64, backend="reference")
    by_torch = problem.outcome(backend="reference")
    correct = [results.pop("correct") for results in (ours, truth)]
    if dtype is torch.float32:  # in less precision, a logit on the border may fall on either side
        assert torch.equal(*correct)
    assert_as_accurate_as_torch(ours, by_torch, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_twenty_runs_give_the_same_bits(name, plan, dtype):
    problem = Problem(LAYOUTS[name], 1500, 123, dtype)
    first = outcome_of_plan(problem, plan)
    for _ in range(19):
        again = outcome_of_plan(problem, plan)
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_valid_and_no_rows(plan):
    problem = Problem(MIXED, 33, 40, torch.float32)
    problem.targets = [
        torch.full_like(t, math.nan) if t.is_floating_point() else torch.full_like(t, head.ignore_index)
        for t, head in zip(problem.targets, MIXED, strict=True)
    ]
    with poisoned_memory():
        outcome = outcome_of_plan(problem, plan)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in outcome.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_it_can_be_captured_and_replayed_on_other_data(name, plan, dtype):
    problem, other = (Problem(LAYOUTS[name], 300, 72, dtype, seed=seed) for seed in (0, 1))
    expected = outcome_of_plan(other, plan)
    leaves = [t.clone().requires_grad_() for t in (problem.features, problem.weight, problem.bias)]
    task_weights = problem.task_weights.clone()

    def step():
        for leaf in leaves:
            leaf.grad = None
        out = multitask_loss(
            *leaves, problem.targets, task_weights, problem.layout, backend=BACKEND, plan=plan
        )
        out.total.backward()
        return out.total.detach(), out.losses, out.correct

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        total, losses, correct = step()
    with torch.no_grad():
        for mine, new in zip(leaves, (other.features, other.weight, other.bias), strict=True):
            mine.copy_(new)
            mine.grad.fill_(math.nan)
        for mine, new in zip(problem.targets, other.targets, strict=True):
            mine.copy_(new)
        task_weights.copy_(other.task_weights)
    graph.replay()
    torch.cuda.synchronize()
    found = {"total": total, "losses": losses, "correct": correct.double()}
    found |= dict(zip(("d_features", "d_weight", "d_bias"), (leaf.grad for leaf in leaves), strict=True))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("plan", PLANS)
def test_it_never_waits_for_the_device(plan):
    problem = Problem(MIXED, 300, 72, torch.bfloat16)
    outcome_of_plan(problem, plan)
    with no_waiting():
        outcome_of_plan(problem, plan)


@contextmanager
def no_waiting():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_it_compiles_without_a_graph_break():
    problem = Problem(MIXED, 300, 72, torch.bfloat16)
    expected = problem.outcome(backend=BACKEND)
    leaves = [t.clone().requires_grad_() for t in (problem.features, problem.weight, problem.bias)]

    @torch.compile(fullgraph=True)
    def loss(features, weight, bias):
        return multitask_loss(
            features, weight, bias, problem.targets, problem.task_weights, problem.layout, backend=BACKEND
        ).total

    loss(*leaves).backward()
    for leaf, key in zip(leaves, ("d_features", "d_weight", "d_bias"), strict=True):
        difference = (leaf.grad.float() - expected[key].float()).norm() / expected[key].float().norm()
        assert difference < 1e-2, key  # one rounding to bfloat16; a wrong gradient is off by 1


# --- row-sparse embeddings -----------------------------------------------------------------------------

V = 5003
RULES = {
    "sgd": RowRule(row_rules.SGD, 0.1),
    "adagrad": RowRule(row_rules.ADAGRAD, 0.1),
    "adam": RowRule(row_rules.ADAM, 0.1, eps=1e-8),
}
# One thread a column and many; one block of columns, two, and more than a program holds.
COLUMNS = (1, 37, 128, 300, 1500)


def state_for(rule, table):
    dtype = torch.float64 if table.dtype is torch.float64 else torch.float32

    def zeros(shape):
        return torch.zeros(shape, dtype=dtype, device=DEVICE)

    if rule.kind == row_rules.SGD:
        return RowState()
    if rule.kind == row_rules.ADAGRAD:
        return RowState(zeros(len(table)))
    return RowState(zeros(len(table)), zeros(table.shape), zeros(table.shape))


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
        ids[::10], ids[::13] = 17, row_rules.NONE
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


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", COLUMNS)
@pytest.mark.parametrize("rule", RULES)
def test_three_steps_of_rows_are_as_accurate_as_torch(rule, D, dtype, fused):
    problem = Bags(D, dtype)
    with poisoned_memory():
        ours = problem.stepped(RULES[rule], BACKEND, fused)
    truth = problem.stepped(RULES[rule], "reference", False, torch.float64)
    assert_as_accurate_as_torch(ours, problem.stepped(RULES[rule], "reference", False), truth, dtype)
    touched = torch.cat([ids for ids, _, _ in problem.batches]).unique()
    untouched = torch.ones(V, dtype=torch.bool, device=DEVICE)
    untouched[touched[touched != row_rules.NONE].long()] = False
    assert untouched.any()
    assert torch.equal(ours.pop("table")[untouched], problem.table[untouched])
    assert not any(value[untouched].any() for value in ours.values())


@pytest.mark.parametrize("D", [37, 1500])
@pytest.mark.parametrize("rule", RULES)
def test_twenty_runs_of_rows_give_the_same_bits_fused_or_not(rule, D):
    problem = Bags(D, torch.float32)
    first = problem.stepped(RULES[rule], BACKEND, True)
    for i in range(19):
        again = problem.stepped(RULES[rule], BACKEND, fused=i % 2 == 0)
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("rule", RULES)
def test_a_fused_step_of_rows_never_waits_for_the_device(rule):
    problem = Bags(128, torch.float32)
    problem.stepped(RULES[rule], BACKEND, True)
    table = problem.table.clone().requires_grad_()
    fuse_update(table, FusedUpdate(lambda: RULES[rule], state_for(RULES[rule], table)))
    ids, starts, upstream = problem.batches[0]
    with no_waiting():
        embedding_bag(table, ids, starts, sparse=True, backend=BACKEND).backward(upstream)


def test_a_fused_step_of_rows_can_be_captured_and_replayed_on_other_ids():
    problem, rule = Bags(128, torch.float32), RULES["adam"]
    table = problem.table.clone().requires_grad_()
    state = state_for(rule, table)
    fuse_update(table, FusedUpdate(lambda: rule, state))
    length = min(len(ids) for ids, _, _ in problem.batches)
    starts = torch.arange(0, length + 1, length // 8, device=DEVICE)
    batches = [(ids[: int(starts[-1])], upstream[: len(starts) - 1]) for ids, _, upstream in problem.batches]
    ids, upstream = (tensor.clone() for tensor in batches[0])

    def step():
        embedding_bag(table, ids, starts, sparse=True, backend=BACKEND).backward(upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    tensors = [table.detach(), *state]

    def reset():
        for tensor in tensors:
            tensor.zero_()

    found = []
    for replay in (step, graph.replay):
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
    expected = problem.stepped(RULES["adam"], BACKEND, True), problem.bags_and_gradient(BACKEND)
    wrong = torch.tensor([V, -2, 2**31 - 1, -(2**31)], dtype=torch.int32, device=DEVICE)
    for ids, _, _ in problem.batches:
        none = ids == row_rules.NONE
        ids[none] = wrong.repeat(len(ids))[: int(none.sum())]
    found = problem.stepped(RULES["adam"], BACKEND, True), problem.bags_and_gradient(BACKEND)
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
    fuse_update(table, FusedUpdate(lambda: RowRule(row_rules.SGD, 0.5), RowState()))
    bags = embedding_bag(table, ids, mode="sum", sparse=True, backend=BACKEND)
    bags.backward(torch.ones_like(bags))
    assert torch.equal(bags.detach(), last)
    assert torch.equal(table.detach()[-3:], (last.float() - 0.5).bfloat16())


def test_unique_ids_and_back_on_the_gpu():
    ids = Bags(1, torch.float32).batches[0][0]
    unique, inverse = unique_ids(ids, V, BACKEND)
    known = ids != row_rules.NONE
    assert torch.equal(unique, ids[known].unique())
    assert torch.equal(unique[inverse[known].long()], ids[known])
    assert (inverse[~known] == row_rules.NONE).all()


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


@pytest.mark.parametrize("fuse_backward", [False, True])
def test_context_prediction_trains_as_the_oracle_does(fuse_backward):
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
            fuse_backward=fuse_backward,
        )
        words = torch.arange(96).remainder(50)
        bags = [((words, torch.arange(0, 97, 3)), {"tone": (words[::3] > 20).long()})] * 8
        trainer.fit({"tone": bags, "context": context_batches(50, 500, window=2)}, epochs=5)
        assert [phase.active for phase in trainer.history.phases] == [("tone", "context"), ("tone",)]
        return [record.losses["context"] for record in trainer.history.steps if "context" in record.losses]

    ours, truth = losses(BACKEND), losses("reference")
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(truth, rel=1e-3)


# --- the trainer with CUDA graphs ----------------------------------------------------------------------


def both(toy, batches, *, encoder=None, epochs=4, **options):
    """The same training without graphs and with them: (history, weights) of each."""
    results = []
    for graph in (False, True):
        torch.manual_seed(3)
        trainer = Trainer(
            (encoder or (lambda: toy.encoder(dropout=0.1)))(),
            toy.heads(),
            device="cuda",
            graph=graph,
            **{"lr": RATE, "log_every": 4, **options},
        )
        history = trainer.fit(batches, val=toy.batches(2, seed=7), epochs=epochs)
        modules = (*trainer.encoder.state_dict().values(), *trainer.heads.state_dict().values())
        results.append((history, [value.clone() for value in modules]))
    return results


def assert_same(eager, graphed, rel=1e-4):
    assert graphed[0].phases == eager[0].phases
    assert len(graphed[0].steps) == len(eager[0].steps)
    for ours, theirs in zip(graphed[0].steps, eager[0].steps, strict=True):
        assert (ours.step, ours.weights) == (theirs.step, theirs.weights)
        assert ours.learning_rate == theirs.learning_rate
        assert ours.losses == pytest.approx(theirs.losses, rel=rel)
    for ours, theirs in zip(graphed[1], eager[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rel * 10, atol=rel)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": MultiTask(0.5)},
        {"schedule": Switch(at_step=12), "clip_norm": 0.5, "weight_decay": 0.1},
        {"schedule": MultiTask(), "lr_decay": "linear"},
        {"schedule": MultiTask(), "accumulate": 2},
        {"schedule": MultiTask(), "optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)},
    ],
    ids=["multi-task", "switch and clipping", "falling rate", "accumulation", "SGD"],
)
def test_history_and_weights_are_those_without_graphs(toy, options):
    eager, graphed = both(toy, toy.batches(6), **options)
    assert [phase.graph for phase in graphed[0].phases] == ["captured"] * len(graphed[0].phases)
    assert_same(eager, graphed)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_captured_too(toy, precision):
    eager, graphed = both(
        toy, toy.batches(6), schedule=MultiTask(), precision=precision, clip_norm=1.0, epochs=3
    )
    assert [phase.graph for phase in graphed[0].phases] == ["captured"]
    assert_same(eager, graphed, rel=1e-2)  # 18 steps of Adam enlarge a rounding of a half-precision GEMM


def test_batches_may_lie_on_the_gpu_already(toy):
    batches = [(x.to(DEVICE), {n: t.to(DEVICE) for n, t in y.items()}) for x, y in toy.batches(6)]
    assert_same(*both(toy, batches, schedule=MultiTask()))


def test_a_smaller_last_batch_has_a_graph_of_its_own(toy):
    batches = toy.batches(6)
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    eager, graphed = both(toy, batches, epochs=6, schedule=MultiTask())
    assert graphed[0].phases[0].graph == "captured"
    assert_same(eager, graphed)


def test_missing_tasks_are_right_whether_captured_or_not(toy):
    batches = toy.batches(6)
    batches[2] = (batches[2][0], {"tag": batches[2][1]["tag"]})
    eager, graphed = both(toy, batches, epochs=6, schedule=MultiTask())
    assert graphed[0].phases[0].graph.startswith("captured")
    assert_same(eager, graphed)


def test_a_loader_a_task_is_right_whether_captured_or_not(toy):
    batches = toy.batches(6)
    train = {name: [(x, {name: y[name]}) for x, y in batches] for name in toy.tasks}
    assert_same(*both(toy, train, schedule=Switch(at_step=12)))


def word_problem(n_batches=6, N=64):
    generator = torch.Generator().manual_seed(5)
    tasks = {"tag": Classification(5), "aux": Classification(3)}
    words = [torch.randint(-1, 200, (N, 5), generator=generator) for _ in range(n_batches)]
    batches = [(w, {name: w[:, 2].clamp_min(0) % t.classes for name, t in tasks.items()}) for w in words]
    return tasks, batches


def test_a_word_encoder_is_captured():
    tasks, batches = word_problem()
    losses = []
    for graph in (False, True):
        torch.manual_seed(3)
        trainer = Trainer(
            WindowEncoder(200, 16, hidden=32, dropout=0.1),
            MultiTaskHeads(32, tasks, "tag"),
            schedule=Switch(at_step=12),
            device="cuda",
            lr=RATE,
            log_every=4,
            graph=graph,
        )
        history = trainer.fit(batches, epochs=4)
        losses.append([record.losses for record in history.steps])
    assert [phase.graph for phase in history.phases] == ["captured", "captured"]
    for ours, theirs in zip(losses[1], losses[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


class Waits(nn.Module):
    """An encoder that asks the device for a number in every step."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        features = self.inner(inputs)
        return features * (2.0 if features.sum().item() > 1e9 else 1.0)


class RefusesCapture(Waits):
    """An encoder that torch's eye on waiting does not see through."""

    def forward(self, inputs):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # CUDA breaks the capture off
        return self.inner(inputs)


@pytest.mark.parametrize("kind", [Waits, RefusesCapture])
def test_an_encoder_that_cannot_be_captured_trains_all_the_same(toy, kind):
    eager, graphed = both(
        toy, toy.batches(6), encoder=lambda: kind(toy.encoder(dropout=0.1)), schedule=Switch(at_step=12)
    )
    for phase in graphed[0].phases:
        assert phase.graph.startswith("not captured: ")
    assert_same(eager, graphed)
    # Nothing is left behind that a later capture would stumble over.
    eager, graphed = both(toy, toy.batches(6), schedule=MultiTask())
    assert graphed[0].phases[0].graph == "captured"
    assert_same(eager, graphed)


@pytest.mark.parametrize("stop", [9, 12, 17])
def test_a_run_with_graphs_resumes(toy, tmp_path, stop):
    class Stop(Callback):
        def on_step(self, trainer):
            trainer.stop_requested = trainer.step == stop

    def make(*callbacks):
        torch.manual_seed(3)
        return Trainer(
            toy.encoder(dropout=0.1),
            toy.heads(),
            schedule=Switch(at_step=12),
            lr=RATE,
            lr_decay="linear",
            log_every=4,
            device="cuda",
            graph=True,
            callbacks=callbacks,
        )

    whole = make().fit(toy.batches(6), epochs=4)
    path = tmp_path / "checkpoint"
    make(Stop()).fit(toy.batches(6), epochs=4, checkpoint=path)
    history = make().fit(toy.batches(6), epochs=4, checkpoint=path, resume=True)
    assert [record.step for record in history.steps] == [record.step for record in whole.steps]
    for ours, theirs in zip(history.steps, whole.steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert history.phases[-1].graph == "captured"


# --- what a step launches ------------------------------------------------------------------------------


def kernels_of_a_step(toy, schedule, step, **options):
    """Names of everything that the GPU ran in one step, in order."""
    torch.manual_seed(0)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=activities)

    class Profile(Callback):
        def on_step(self, trainer):
            torch.cuda.synchronize()
            if trainer.step == step:
                profiler.start()
            elif trainer.step == step + 1:
                profiler.stop()

    trainer = Trainer(
        toy.encoder(dropout=0.1),
        toy.heads(),
        schedule=schedule,
        log_every=1000,
        device="cuda",
        callbacks=[Profile()],
        **options,
    )
    history = trainer.fit(toy.batches(30), epochs=1)
    events = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    events.sort(key=lambda event: event.time_range.start)
    return [event.name for event in events], history


@pytest.mark.parametrize("graph", [False, True])
def test_a_step_after_the_switch_launches_the_kernels_of_a_single_task_step(toy, graph):
    step = 20
    assert step > 10 + WARM_UP_STEPS
    single, _ = kernels_of_a_step(toy, SingleTask(), step, graph=graph)
    switched, history = kernels_of_a_step(toy, Switch(at_step=10), step, graph=graph)
    before, _ = kernels_of_a_step(toy, Switch(at_step=25), step, graph=graph)
    assert single, "the profiler saw no kernel"
    assert switched == single
    assert before != single
    if graph:
        assert [phase.graph for phase in history.phases] == ["captured", "captured"]


def test_a_training_step_never_waits_for_the_device(toy):
    batches = [(x.to(DEVICE), {n: t.to(DEVICE) for n, t in y.items()}) for x, y in toy.batches(12)]

    class Watch(Callback):
        def on_step(self, trainer):
            if trainer.step == 6:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.cuda.set_sync_debug_mode("error")
            elif trainer.step == 11:
                torch.cuda.set_sync_debug_mode("default")

    try:
        for graph in (False, True):
            trainer = Trainer(
                toy.encoder(dropout=0.1),
                toy.heads(),
                schedule=MultiTask(),
                device="cuda",
                graph=graph,
                log_every=1000,
                clip_norm=1.0,
                callbacks=[Watch()],
            )
            trainer.fit(batches, epochs=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
