"""Run the Triton embedding kernels in the interpreter and store what they and torch compute.

python -m <this> OUT.npz SHARE SHARES, of which each takes its part of the cases.

Run by `run_interpreted` (tests/kernels/interpreter.py). Results that are measured are stored
as `ours`, `torch` (plain torch in the same dtype) and `truth` (in float64), the others as flags.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import (
    ROW_RULES,
    FusedUpdate,
    RowRule,
    RowState,
    embedding_bag,
    embedding_bag_of_types,
    fuse_update,
    unique_ids,
    update_rows,
)
from mt2st_fast.kernels.bags import reference as reference_embedding
from mt2st_fast.kernels.bags.batch import NONE, Bags
from mt2st_fast.kernels.bags.on_triton import bags as triton_embedding
from mt2st_fast.kernels.bags.on_triton import blocks as triton_blocks
from mt2st_fast.kernels.bags.on_triton import pooling as triton_pooling
from mt2st_fast.kernels.bags.on_triton import updates as triton_updates
from mt2st_fast.kernels.bags.on_triton.rules import functions_of
from mt2st_fast.kernels.bags.rules import SGD
from tests.kernels.interpreter import poison_fresh_memory

V = 23
HOT = 9
LENGTHS = (0, 5, 1, 13, 0, 14, 0)


class Case(NamedTuple):
    """A table's columns and dtype, and how its kernels cut them and the sorted positions."""

    D: int
    dtype: torch.dtype = torch.float32
    mode: str = "mean"
    columns: int | None = None  # of a block at most; the table's choice if None
    piece: int = 4
    lengths: tuple[int, ...] = LENGTHS
    rules: bool = True
    ranked: int = 1000  # positions that our own kernels sort; torch sorts longer batches


# 100 columns in blocks of 32 and 37 in blocks of 32 end in ragged ones.
# Two processes take every second one each; in this order they have about the same to do.
CASES = {
    "1": Case(1),
    "37-blocks": Case(37, columns=32),
    "100": Case(100, ranked=0),
    "5-float16": Case(5, torch.float16, "sum", ranked=0),
    "100-blocks": Case(100, mode="sum", columns=32, rules=False),
    "37-blocks-float16": Case(37, torch.float16, columns=32, rules=False),
    "5-hot": Case(5, lengths=(300, 0, 211, 150), piece=128, rules=False),
}
# Of a table that has taken more steps than its rows, counted where a GPU would count.
RULES = {name: RowRule(kind, 0.1, table_steps=torch.tensor(40.0)) for name, kind in ROW_RULES.items()}
N_STEPS = 3


class Batch(NamedTuple):
    """Ids (total,) of bags, of which a third is one hot row and a seventh none, and the gradient of the bags."""

    ids: Tensor
    starts: Tensor
    upstream: Tensor


def make_table(case: Case) -> Tensor:
    return torch.randn(V, case.D, generator=torch.Generator().manual_seed(1)).to(case.dtype)


def make_batch(case: Case, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *case.lengths]).cumsum(0)
    ids = (V * torch.rand(sum(case.lengths), generator=generator) ** 2).int()
    ids[::3] = HOT
    ids[::7] = NONE
    upstream = torch.randn(len(case.lengths), case.D, generator=generator).to(case.dtype)
    return Batch(ids, starts, upstream)


def by_torch(table: Tensor, batch: Batch, mode: str) -> tuple[Tensor, Tensor]:
    """Bags and gradient of torch's own embedding_bag; NONE is a row of zeros at the end."""
    table = table.clone().requires_grad_()
    longer = torch.cat([table, table.new_zeros(1, table.shape[1])])
    rows = torch.where(batch.ids == NONE, V, batch.ids).long()
    bags = torch.nn.functional.embedding_bag(rows, longer, batch.starts[:-1], mode=mode, padding_idx=V)
    bags.backward(batch.upstream.to(table.dtype))
    return bags.detach(), table.grad


def by_op(table: Tensor, batch: Batch, mode: str, backend: str, sparse: bool = True) -> tuple[Tensor, Tensor]:
    """Bags and gradient of the op."""
    table = table.clone().requires_grad_()
    bags = embedding_bag(table, batch.ids, batch.starts, mode=mode, sparse=sparse, backend=backend)
    bags.backward(batch.upstream.to(table.dtype))
    return bags.detach(), table.grad


def all_equal(*pairs: tuple[Tensor, Tensor]) -> np.ndarray:
    return np.array(all(torch.equal(a, b) for a, b in pairs))


def run_case(name: str, store: dict[str, np.ndarray]) -> None:
    case = CASES[name]
    table, batch = make_table(case), make_batch(case, 0)
    before = [tensor.clone() for tensor in batch]
    runs = [by_op(table, batch, case.mode, "triton", sparse) for sparse in (True, True, True, False)]
    store[f"{name}/same-bits"] = all_equal(
        *((run[0], runs[0][0]) for run in runs),
        *((run[1].to_dense(), runs[0][1].to_dense()) for run in runs),
        *zip(batch, before, strict=True),
    )
    bags, gradient = runs[0]
    rows = sorted(set(batch.ids.tolist()) - {NONE})
    store[f"{name}/form"] = np.array(bags.dtype is case.dtype and gradient._indices()[0].tolist() == rows)
    truth = by_torch(table.double(), batch, case.mode)
    torchs = [result.to_dense() for result in by_op(table, batch, case.mode, "reference")]
    for kind, results in (("ours", (bags, gradient.to_dense())), ("torch", torchs), ("truth", truth)):
        for key, value in zip(("bags", "gradient"), results, strict=True):
            store[f"{name}/{key}/{kind}"] = value.double().numpy()


# --- steps of rows ---------------------------------------------------------------------------------------


def state_for(rule: RowRule, table: Tensor, dtype: torch.dtype = torch.float32) -> RowState:
    return rule.kind.new_state(lambda _, shape: torch.zeros(shape, dtype=dtype), *table.shape)


class Stepped:
    """A table and its state after three batches, each by its own way to step."""

    def __init__(
        self, case: Case, rule: RowRule, dtype: torch.dtype, state_dtype: torch.dtype = torch.float32
    ):
        self.case, self.steps = case, torch.tensor(40.0)
        numbers = dict(zip(rule.kind.numbers, rule.numbers, strict=True))
        self.rule = RowRule(rule.kind, rule.lr, table_steps=self.steps, **numbers)
        self.table = make_table(case).to(dtype)
        self.state = state_for(rule, self.table, state_dtype)

    def by_op(self, backend: str, fused: bool) -> Stepped:
        """The op's backward pass, then `update_rows`, unless the backward pass steps itself."""
        self.table.requires_grad_()
        if fused:
            fuse_update(self.table, FusedUpdate(lambda: self.rule, self.state, steps=lambda: self.steps))
        for seed in range(N_STEPS):
            ids, starts, upstream = make_batch(self.case, seed)
            self.table.grad = None
            bags = embedding_bag(self.table, ids, starts, mode=self.case.mode, sparse=True, backend=backend)
            bags.backward(upstream)
            if not fused:
                self.steps += 1
                update_rows(self.rule, self.table, self.table.grad, self.state, backend)
        self.table = self.table.detach()
        return self

    def by_oracle(self) -> Stepped:
        """Plain torch in the table's dtype, scales of means included."""
        for seed in range(N_STEPS):
            ids, starts, upstream = make_batch(self.case, seed)
            scales = None
            if self.case.mode == "mean":
                bag = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
                counts = torch.zeros(len(starts) - 1, dtype=torch.float64).index_add_(
                    0, bag, (ids != NONE).double()
                )
                scales = 1.0 / counts.clamp_min(1.0)
            reference_embedding.update_from_bags(
                self.rule, self.table, Bags(ids, starts, scales), upstream.to(self.table.dtype), self.state,
                self.steps,
            )  # fmt: skip
        return self

    @property
    def results(self) -> dict[str, Tensor]:
        found = {"table": self.table, "steps": self.steps[None], **self.state._asdict()}
        return {key: value for key, value in found.items() if value is not None}


def run_rule(name: str, rule_name: str, store: dict[str, np.ndarray]) -> None:
    case, rule = CASES[name], RULES[rule_name]
    fused, unfused = (Stepped(case, rule, case.dtype).by_op("triton", fused) for fused in (True, False))
    torchs = Stepped(case, rule, case.dtype).by_op("reference", fused=False)
    truth = Stepped(case, rule, torch.float64, torch.float64).by_oracle()
    key = f"{name}/{rule_name}"
    # A float16 gradient is rounded on its way to `update_rows`.
    again = (
        unfused
        if case.dtype is torch.float32
        else Stepped(case, rule, case.dtype).by_op("triton", fused=True)
    )
    store[f"{key}/same-bits"] = all_equal(*((fused.results[k], again.results[k]) for k in fused.results))
    touched = torch.cat([make_batch(case, seed).ids for seed in range(N_STEPS)]).unique()
    untouched = torch.ones(V, dtype=torch.bool)
    untouched[touched[touched != NONE].long()] = False
    initial = Stepped(case, rule, case.dtype).results
    store[f"{key}/untouched"] = np.array(
        bool(untouched.any())
        and all(
            torch.equal(value[untouched], initial[k][untouched])
            for stepped in (fused, unfused)
            for k, value in stepped.results.items()
            if k != "steps"
        )
        and bool((fused.table[~untouched] != initial["table"][~untouched]).any(1).all())
    )
    kinds = {"fused": fused, "unfused": unfused, "torch": torchs, "truth": truth}
    for kind, stepped in kinds.items():
        for result, value in stepped.results.items():
            store[f"{key}/{result}/{kind}"] = value.double().numpy()


def run_repeated(store: dict[str, np.ndarray]) -> None:
    """Rows of a gradient that is not coalesced are added up before a step, as torch's own sparse layers need it."""
    values = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    repeated = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3, 3]]), values, (5, 20), check_invariants=True)
    found = []
    for gradient in (repeated, repeated.coalesce()):
        table = torch.zeros(5, 20)
        update_rows(RULES["adagrad"], table, gradient, state_for(RULES["adagrad"], table), "triton")
        found.append(table)
    store["repeated"] = np.array(
        torch.allclose(*found, rtol=1e-6, atol=1e-7) and bool((found[0][3] != 0).all())
    )


# --- edges -----------------------------------------------------------------------------------------------


def everything(case: Case, batch: Batch) -> list[Tensor]:
    """What the protocol makes of a batch."""
    table = make_table(case)
    state = state_for(RULES["adam"], table)
    pooled, scales = triton_embedding.pool_means(table, Bags(batch.ids, batch.starts, None))
    bags = Bags(batch.ids, batch.starts, scales)
    gradients = triton_embedding.row_gradient(batch.upstream, bags, V)
    triton_embedding.update_from_bags(RULES["adam"], table, bags, batch.upstream, state)
    dense = triton_embedding.dense_gradient(batch.upstream, bags, V)
    unique = unique_ids(batch.ids, V, "triton")
    return [scales, pooled, *gradients, *unique, triton_embedding.pool(table, bags), dense, table, *state]


FEW = Case(5, lengths=(2, 0, 1))  # positions: fewer than a piece


def steps_after(case: Case, batch: Batch) -> float:
    """The count after an update that counts itself as the 41st."""
    table, steps = make_table(case), torch.tensor(40.0)
    rule = RowRule(ROW_RULES["adam"], 0.1, table_steps=steps)
    bags = Bags(batch.ids, batch.starts, None)
    triton_embedding.update_from_bags(rule, table, bags, batch.upstream, state_for(rule, table), steps)
    return float(steps)


def run_edges(store: dict[str, np.ndarray]) -> None:
    case = Case(5)
    batch = make_batch(case, 0)
    expected = everything(case, batch)
    # On a GPU nobody looks: ids outside the table count as none and read nothing.
    outside = batch.ids.clone()
    none = (outside == NONE).nonzero()[:, 0]
    wrong = torch.tensor([V, -2, 2**31 - 1, -(2**31), V + 1, 10**9], dtype=torch.int32)
    outside[none] = wrong.repeat(len(none))[: len(none)]
    found = everything(case, batch._replace(ids=outside))
    store["outside"] = all_equal(*zip(found, expected, strict=True))
    # Positions before the first bag and after the last one belong to none.
    more = torch.tensor([3, HOT, 0], dtype=torch.int32)
    longer = batch._replace(ids=torch.cat([more, batch.ids, more]), starts=batch.starts + len(more))
    shorter = torch.cat([more * 0 + NONE, batch.ids, more * 0 + NONE])
    found, expected = (everything(case, longer._replace(ids=ids)) for ids in (longer.ids, shorter))
    del found[4:6], expected[4:6]  # the unique ids, which know no bags
    store["no-bag"] = all_equal(*zip(found, expected, strict=True))
    # Starts past the ids, which only a CPU refuses: nothing past them is read, whatever comes out.
    beyond = everything(case, batch._replace(starts=batch.starts + torch.tensor([-3, *[0] * 6, 10**6])))
    store["beyond"] = np.array(all(bool(tensor.isfinite().all()) for tensor in beyond))
    # int64 ids that are a row in their lower 32 bits alone.
    table, wrapped = make_table(case), torch.tensor([3, 2**32 + 3, 3 - 2**32, 2**31 + 3, -(2**63)])
    pooled = embedding_bag_of_types(table, None, wrapped, backend="triton")
    store["wrapped"] = np.array(torch.equal(pooled[0], table[3]) and not pooled[1:].any())
    empty = Batch(batch.ids[:0], torch.zeros(8, dtype=torch.int64), batch.upstream)
    for name, nothing in (
        ("no-ids", empty),
        ("all-none", batch._replace(ids=torch.full_like(batch.ids, NONE))),
    ):
        scales, bags, rows, gradient, unique, inverse, again, dense, table, *state = everything(case, nothing)
        store[name] = np.array(
            not scales.any()
            and not bags.any()
            and not again.any()
            and not dense.any()
            and bags.shape == (7, 5)
            and rows.shape == unique.shape == (0,)
            and gradient.shape == (0, 5)
            and (inverse == NONE).all()
            and torch.equal(table, make_table(case))
            and not any(tensor.any() for tensor in state)
        )
    store["counted"] = np.array([steps_after(case, some) for some in (empty, batch, make_batch(FEW, 0))])
    no_bags = triton_embedding.pool(
        make_table(case), Bags(batch.ids[:0], torch.zeros(1, dtype=torch.int64), None)
    )
    store["no-bags"] = np.array(no_bags.shape == (0, 5))


def run_unique(store: dict[str, np.ndarray]) -> None:
    """Ids of any size, over several blocks of positions."""
    for largest in (0, 70_000, 2**31 - 2):
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(0, largest + 1, (2500,), generator=generator, dtype=torch.int64)
        ids[17] = largest
        ids[::9] = NONE
        unique, inverse = unique_ids(ids, largest + 1, "triton")
        known = ids != NONE
        store[f"unique/{largest}"] = np.array(
            torch.equal(unique.long(), ids[known].unique())
            and torch.equal(unique[inverse[known].long()].long(), ids[known])
            and bool((inverse[~known] == NONE).all())
        )


def run_long_table(store: dict[str, np.ndarray]) -> None:
    """A row past 2^31 elements is read and stepped; of the 4 GB only the pages of that row are ever used."""
    D, row = 1024, 2**21 + 3
    torch.utils.deterministic.fill_uninitialized_memory = False
    memory = torch.empty(row + 1, D, dtype=torch.float16)
    torch.utils.deterministic.fill_uninitialized_memory = True
    memory[row] = torch.randn(D)
    expected = memory[row] - 0.5
    bags, blocks = torch.empty(1, D, dtype=torch.float16), triton_blocks.choose_blocks(D, 1024)
    ids, starts = torch.tensor([row], dtype=torch.int32), torch.tensor([0, 1])
    # The interpreter copies what an argument shows: a view of one row.
    table, nothing = memory[:1], torch.zeros(1)
    triton_pooling.pool_kernel[(1, 1)](
        table, ids, starts, ids, ids, nothing, bags, 1, len(memory), 1,
        D=D, HAS_STARTS=True, HAS_TYPES=False, M=1, SCALING=0, **blocks.constexprs,
    )  # fmt: skip
    store["long-table/pool"] = all_equal((bags[0], memory[row]))
    triton_updates.update_kernel[(1,)](
        table, nothing, nothing, nothing, ids, torch.ones(1, D), nothing, nothing, nothing,
        1, 1, len(memory), 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        D=D, **functions_of(SGD).constexprs, RATE_ON_DEVICE=False, STEPS_ON_DEVICE=False, FROM_BAGS=False,
        ALL_ROWS=False, HAS_WEIGHTS=False, PIECE=8, SCAN=32, **blocks.constexprs,
    )  # fmt: skip
    store["long-table/update"] = all_equal((memory[row], expected))


def main(out: str, share: int, shares: int) -> None:
    poison_fresh_memory(True)
    store: dict[str, np.ndarray] = {}
    # The batches of 33 positions are then of three chunks, of which the last one is not full.
    triton_blocks.CHUNK, triton_blocks.RANK_BLOCK, triton_blocks.MERGE_BLOCK, triton_blocks.MERGE_CHUNKS = (
        16,
        4,
        8,
        2,
    )
    triton_blocks.SCAN = 4
    shared, whole = triton_blocks.SHARED_COLUMNS, triton_blocks.WHOLE_COLUMNS
    for name in list(CASES)[share::shares]:
        case = CASES[name]
        triton_blocks.PIECE, triton_blocks.MOST_RANKED = case.piece, case.ranked
        triton_blocks.CHUNK, triton_blocks.MERGE_BLOCK = (256, 64) if sum(case.lengths) > 100 else (16, 8)
        triton_blocks.SHARED_COLUMNS, triton_blocks.WHOLE_COLUMNS = (
            case.columns or shared,
            case.columns or whole,
        )
        run_case(name, store)
        for rule in RULES if case.rules else ():
            run_rule(name, rule, store)
    triton_blocks.PIECE, triton_blocks.SHARED_COLUMNS, triton_blocks.WHOLE_COLUMNS = 4, 16, 16
    triton_blocks.MOST_RANKED = 1000
    triton_blocks.CHUNK, triton_blocks.MERGE_BLOCK = 16, 8
    if share == shares - 1:
        run_repeated(store)
        run_edges(store)
        triton_blocks.CHUNK, triton_blocks.RANK_BLOCK, triton_blocks.MERGE_BLOCK = 1024, 64, 256
        run_unique(store)
        run_long_table(store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(sys.argv[1], share=int(sys.argv[2]), shares=int(sys.argv[3]))
