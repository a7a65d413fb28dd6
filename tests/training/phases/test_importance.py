"""Importance of parts, against the loss itself: what zeroing a part, or moving it alone, changes to first order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTaskHeads,
    SingleTask,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.training.phases.importance import (
    MOST_AUXILIARY_BATCHES,
    MOST_BATCHES,
    Importances,
    importances,
)
from mt2st_fast.training.schedules.shown import ModelPart

V, W = 12, 3
TASKS = {"main": Classification(4), "aux": Classification(3)}


class Deep(nn.Module):
    """Two layers and a bias on a table; in float64, where differences of losses are exact enough to divide."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(V, 5, sparse=sparse)
        self.first = nn.Linear(W * 5, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, words: Tensor) -> Tensor:
        return torch.tanh(self.second(self.dropout(torch.relu(self.first(self.table(words).flatten(1))))))


def model(sparse: bool = True) -> Trainer:
    torch.manual_seed(0)
    heads = MultiTaskHeads(6, TASKS, "main", backend="reference")
    return Trainer(
        Deep(sparse).double(), heads.double(), schedule=SingleTask(), device="cpu",
        optimizer=lambda p: LazyAdam(p) if sparse else torch.optim.AdamW(p),
    )  # fmt: skip


def batches(n: int = 3, rows: int = 20, words: int = V - 2) -> list[tuple[Tensor, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randint(0, words - 2 * b, (rows, W), generator=generator),
            {name: torch.randint(0, t.head.size, (rows,), generator=generator) for name, t in TASKS.items()},
        )
        for b in range(n)
    ]


def found(trainer: Trainer, held_out, measure) -> Importances:
    run = trainer.begin(batches())
    return importances(run._parts, held_out, measure)


def looked_at(held_out, task):
    """What a task is measured on: the others have less of it."""
    return held_out if task == "main" else held_out[:MOST_AUXILIARY_BATCHES]


def loss(trainer: Trainer, batch, task: str) -> float:
    inputs, targets = batch
    was_training = trainer.encoder.training
    trainer.encoder.eval()
    with torch.no_grad():
        total = trainer.heads(trainer.encoder(inputs), {task: targets[task]}, {task: 1.0}).total
    trainer.encoder.train(was_training)
    return float(total)


def scaled(part: ModelPart, factor: float) -> None:
    """Multiply what a part is by a factor."""
    with torch.no_grad():
        for parameter in part.parameters:
            if part.rows is None:
                parameter.mul_(factor)
            else:
                parameter[part.rows] *= factor


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_taylor_is_the_loss_change_where_a_part_goes_to_zero_to_first_order(task, sparse):
    trainer, held_out, step = model(sparse), batches(), 1e-6
    measured = found(trainer, held_out, "taylor")
    assert len(measured.parts) == (4 + 4 if sparse else 5)
    for part, importance in zip(measured.parts, measured.by_task[task], strict=True):
        changes = []
        for batch in looked_at(held_out, task):
            scaled(part, 1 - step)
            less = loss(trainer, batch, task)
            scaled(part, (1 + step) / (1 - step))
            more = loss(trainer, batch, task)
            scaled(part, 1 / (1 + step))
            changes.append(((more - less) / (2 * step)) ** 2)
        assert importance == pytest.approx(sum(changes) / len(changes), rel=1e-4, abs=1e-12), part.name


@pytest.mark.parametrize("task", TASKS)
def test_fisher_is_how_fast_the_loss_falls_where_a_gradient_step_moves_a_part_alone(task):
    trainer, held_out, step = model(), batches(), 1e-6
    measured = found(trainer, held_out, "fisher")
    for part, importance in zip(measured.parts, measured.by_task[task], strict=True):
        falls = []
        for batch in looked_at(held_out, task):
            inputs, targets = batch
            trainer.encoder.eval()
            total = trainer.heads(trainer.encoder(inputs), {task: targets[task]}, {task: 1.0}).total
            gradients = torch.autograd.grad(total, part.parameters, allow_unused=True)
            dense = [
                torch.zeros_like(p) if g is None else g.to_dense()
                for g, p in zip(gradients, part.parameters, strict=True)
            ]
            if part.rows is not None:
                dense = [g * part.rows[:, None] for g in dense]
            values = []
            for sign in (-1.0, 1.0):
                for parameter, g in zip(part.parameters, dense, strict=True):
                    parameter.data += sign * step * g
                values.append(loss(trainer, batch, task))
                for parameter, g in zip(part.parameters, dense, strict=True):
                    parameter.data -= sign * step * g
            falls.append((values[1] - values[0]) / (2 * step))
        assert importance == pytest.approx(sum(falls) / len(falls), rel=1e-4, abs=1e-12), part.name


def test_a_part_that_a_task_does_not_use_matters_nothing_to_it():
    measured = found(model(), batches(), "fisher")
    by_name = dict(zip((p.name for p in measured.parts), measured.by_task["main"], strict=True))
    assert by_name["heads/aux"] == 0.0 < by_name["heads/main"]
    assert sum(measured.shares("main")) == pytest.approx(1.0)


def test_rows_are_grouped_by_how_many_batches_use_them_and_cost_what_a_batch_uses():
    held_out = batches()
    trainer = model()
    measured = found(trainer, held_out, "fisher")
    rows = [part for part in measured.parts if part.rows is not None]
    used = [set(inputs.flatten().tolist()) for inputs, _ in held_out]
    names = {0: "0", 1: "1", 2: "2", 3: "3"}
    for part in rows:
        times = {sum(word in batch for batch in used) for word in part.rows.nonzero().flatten().tolist()}
        assert len(times) == 1
        (n,) = times
        assert part.name == f"encoder/table.weight, rows in {names[n]} of 3 batches"
        assert part.cost == pytest.approx(5 * n * int(part.rows.sum()) / 3)
    assert torch.stack([part.rows for part in rows]).sum(0).eq(1).all()
    dense = {part.name: part.cost for part in measured.parts if part.rows is None}
    assert dense == {"encoder/first": 96, "encoder/second.weight": 36, "heads/main": 28, "heads/aux": 21}


def test_a_table_that_the_backward_pass_steps_is_one_part_and_stays_where_it_is():
    torch.manual_seed(0)
    encoder = BagEncoder(V, 5, sparse=True)
    heads = MultiTaskHeads(5, TASKS, "main")
    trainer = Trainer(encoder, heads, schedule=SingleTask(), device="cpu", backward="fused")
    bags = [
        ((inputs.flatten().int(), torch.arange(0, inputs.numel() + 1, W)), targets)
        for inputs, targets in batches()
    ]
    run = trainer.begin(bags)
    before = encoder.table.detach().clone()
    measured = importances(run._parts, bags, "fisher")
    assert torch.equal(encoder.table, before)
    assert [part.name for part in measured.parts] == ["encoder/table", "heads/main", "heads/aux"]
    assert measured.by_task["main"][0] > 0
    run.step()
    assert encoder.table.grad is None  # stepped again
    assert not torch.equal(encoder.table, before)
    run.close()


def test_measuring_moves_and_draws_nothing():
    trainer = model()
    run = trainer.begin(batches())
    run.step()
    before = [p.detach().clone() for p in (*trainer.encoder.parameters(), *trainer.heads.parameters())]
    state = torch.get_rng_state()
    importances(run._parts, batches(), "taylor")
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.encoder.training
    after = [*trainer.encoder.parameters(), *trainer.heads.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_it_looks_at_some_rows_of_a_few_batches():
    class Counting(list):
        read = 0

        def __iter__(self):
            for each in super().__iter__():
                Counting.read += 1
                yield each

    trainer = model()
    rows = []
    trainer.encoder.register_forward_hook(lambda module, inputs, features: rows.append(len(features)))
    found(trainer, Counting(batches(n=1, rows=1500) * (MOST_BATCHES + 3)), "fisher")
    assert rows == [500] * MOST_BATCHES
    assert Counting.read == MOST_BATCHES


def test_what_is_frozen_is_no_part():
    trainer = model()
    trainer.encoder.first.requires_grad_(False)
    assert "encoder/first" not in [part.name for part in found(trainer, batches(), "fisher").parts]


def test_without_a_target_of_the_main_task_it_says_so():
    held_out = [(inputs, {"aux": targets["aux"]}) for inputs, targets in batches()]
    with pytest.raises(ValueError, match="no held-out batch has a target of the main task main"):
        found(model(), held_out, "fisher")


def test_layers_that_are_homogeneous_are_alike_to_taylor_and_not_to_fisher():
    """Euler's theorem, which is why Fisher is the default: sum g w is the same for table, hidden layer and head."""
    torch.manual_seed(1)
    encoder = WindowEncoder(V, 4, window=1, hidden=8, sparse=True).double()
    heads = MultiTaskHeads(8, {"main": TASKS["main"]}, "main", bias=False, backend="reference").double()
    encoder.hidden.bias.data.zero_()
    encoder.hidden.bias.requires_grad_(False)
    encoder.backend = "reference"
    trainer = Trainer(encoder, heads, schedule=SingleTask(), device="cpu", optimizer=torch.optim.SGD)
    held_out = [(inputs, {"main": targets["main"]}) for inputs, targets in batches()]
    run = trainer.begin(held_out)
    taylor, fisher = (importances(run._parts, held_out, m).by_task["main"] for m in ("taylor", "fisher"))
    assert len(taylor) == 3
    assert max(taylor) == pytest.approx(min(taylor), rel=1e-9)
    assert max(fisher) > 1.5 * min(fisher)
