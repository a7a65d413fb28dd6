"""Parameters that several tasks, or a task and the encoder, share: they retire with the last that uses them."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mt2st_fast import (
    AdaTask,
    BagEncoder,
    Classification,
    MultiTask,
    MultiTaskHeads,
    PhaseController,
    Switch,
    Trainer,
)
from mt2st_fast.training.engines.taskwise import OF_TASK

V, D = 20, 6
TASKS = {"tag": Classification(4), "lm": Classification(V)}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layer = nn.Linear(D, D)

    def forward(self, ids):
        return torch.tanh(self.layer(self.embedding(ids)))


class Whole(nn.Module):
    """An encoder that holds the heads as well, as a model of transformers does."""

    def __init__(self, encoder, heads):
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, ids):
        return self.encoder(ids)


def tied():
    torch.manual_seed(0)
    encoder, heads = Encoder(), MultiTaskHeads(D, TASKS, main="tag")
    heads.linear("lm").weight = encoder.embedding.weight
    return encoder, heads


def batches(n=8):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (n, 16), generator=generator)
    return [(each, {"tag": each % 4, "lm": (each + 1) % V}) for each in ids]


def plain_losses(switch_at):
    """The main task's losses by torch alone: after the switch only the loss of the auxiliary task is gone."""
    encoder, heads = tied()
    parameters = list(nn.ModuleList([encoder, heads]).parameters())
    optimizer, losses = torch.optim.SGD(parameters, lr=0.1), []
    for step, (ids, targets) in enumerate(batches()):
        features = encoder(ids)
        each = {
            name: nn.functional.cross_entropy(heads.linear(name)(features), targets[name])
            for name in (("tag", "lm") if step < switch_at else ("tag",))
        }
        losses.append(each["tag"].item())
        sum(each.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("whole", [False, True])
def test_a_tied_embedding_trains_on_when_its_head_retires(whole):
    encoder, heads = tied()
    model = Whole(encoder, heads) if whole else encoder
    trainer = Trainer(
        model,
        heads,
        schedule=Switch(at_step=4),
        device="cpu",
        log_every=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    history = trainer.fit(batches(), epochs=1)
    assert [step.losses["tag"] for step in history.steps] == pytest.approx(plain_losses(4), rel=1e-5)
    assert encoder.embedding.weight.requires_grad
    assert not heads.linear("lm").bias.requires_grad


@pytest.mark.parametrize("whole", [False, True])
def test_a_loop_of_ones_own_keeps_it_and_its_moments(whole):
    encoder, heads = tied()
    model = Whole(encoder, heads) if whole else encoder
    modules = [model] if whole else [model, heads]
    optimizer = torch.optim.AdamW(nn.ModuleList(modules).parameters(), lr=1e-2)
    controller = PhaseController(heads, Switch(at_step=4), optimizer, model)
    moved = []
    for step, (ids, targets) in enumerate(batches()):
        before = encoder.embedding.weight.detach().clone()
        controller.step(step, 8, 8)
        heads(model(ids), targets).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append(not torch.equal(before, encoder.embedding.weight))
    assert all(moved)
    assert optimizer.state[encoder.embedding.weight]["step"] == 8
    assert heads.linear("lm").bias not in optimizer.state


def test_two_heads_of_one_weight_retire_with_the_last_of_them():
    tasks = {name: Classification(5) for name in ("main", "a", "b")}
    heads = MultiTaskHeads(D, tasks, main="main", bias=False)
    heads.linear("b").weight = heads.linear("a").weight
    shared = heads.linear("a").weight
    shared.grad = torch.ones_like(shared)
    heads.set_active(["main", "a"])
    assert shared.requires_grad
    assert shared.grad is not None, "its gradient is that of a task that trains"
    heads.set_active(["main"])
    assert not shared.requires_grad
    assert shared.grad is None
    heads.set_active(["main", "b"])
    assert shared.requires_grad
    heads.set_active(["main"])
    heads.set_active(["main", "a", "b"])
    assert shared.requires_grad


def test_a_main_head_that_is_an_auxiliary_one_as_well_trains_on():
    layer = nn.Linear(D, 5)
    tasks = {"main": Classification(5), "aux": Classification(5)}
    heads = MultiTaskHeads.from_modules({"main": layer, "aux": layer}, tasks, main="main")
    heads.set_active(["main"])
    features, target = torch.randn(7, D), torch.arange(7) % 5
    heads(features, {"main": target}).total.backward()
    expected = torch.autograd.grad(nn.functional.cross_entropy(layer(features), target), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected)


def test_what_the_user_froze_stays_frozen_though_it_is_shared():
    encoder, heads = tied()
    encoder.embedding.weight.requires_grad_(False)
    heads.set_active(["tag"], shared=encoder.parameters())
    heads.set_active(["tag", "lm"], shared=encoder.parameters())
    assert not encoder.embedding.weight.requires_grad


def test_what_is_frozen_after_a_retirement_stays_frozen_at_the_next_one():
    torch.manual_seed(0)
    tasks = {**TASKS, "aux": Classification(3)}
    encoder, heads = Encoder(), MultiTaskHeads(D, tasks, main="tag")
    heads.linear("lm").weight = encoder.embedding.weight
    heads.set_active(["tag", "aux"], shared=encoder.parameters())
    encoder.embedding.weight.requires_grad_(False)
    heads.set_active(["tag"], shared=encoder.parameters())
    assert not encoder.embedding.weight.requires_grad
    heads.set_active(["tag", "aux", "lm"], shared=encoder.parameters())
    assert not encoder.embedding.weight.requires_grad, "nothing here has frozen it"
    assert all(p.requires_grad for p in heads.linear("aux").parameters())


def test_a_head_comes_back_though_another_one_of_its_weight_stays_retired():
    tasks = {name: Classification(5) for name in ("main", "a", "b")}
    heads = MultiTaskHeads(D, tasks, main="main")
    heads.linear("b").weight = heads.linear("a").weight
    heads.set_active(["main", "a"])
    heads.set_active(["main"])
    heads.set_active(["main", "b"])
    assert heads.linear("b").weight.requires_grad
    assert not heads.linear("a").bias.requires_grad
    heads.set_active(["main"])
    assert not heads.linear("b").weight.requires_grad


class Chosen(Switch):
    """Freezes the embedding when the last auxiliary task retires."""

    measure = "fisher"

    def select(self, found):
        return [part.name for part in found.parts if part.name.startswith("encoder/embedding")]


def test_a_tied_embedding_is_a_part_of_the_encoder_and_stays_as_selected():
    encoder, heads = tied()
    trainer = Trainer(encoder, heads, schedule=Chosen(at_step=4), device="cpu", lr=1e-2)
    run = trainer.begin(batches(), val=batches(2), epochs=1)
    for _ in range(5):
        run.step()
    before = encoder.embedding.weight.detach().clone()
    run.step()
    assert torch.equal(before, encoder.embedding.weight)
    parts = {part.name: part.becomes for part in trainer.history.selections[0].parts}
    assert parts["encoder/embedding.weight"] == "frozen"
    assert parts["heads/lm"] == "retired"


@dataclass(frozen=True)
class OneTurn(MultiTask):
    """Only one part trains, in every step."""

    of: str = "shared"

    def part(self, moment):
        return self.of


@pytest.mark.parametrize("of", ["shared", "tasks"])
def test_a_tied_embedding_has_its_turn_with_the_encoder(of):
    encoder, heads = tied()
    before = {name: p.detach().clone() for name, p in nn.ModuleList([encoder, heads]).named_parameters()}
    Trainer(encoder, heads, schedule=OneTurn(of=of), device="cpu", lr=1e-2).fit(batches(), epochs=1)
    moved = {
        name
        for name, p in nn.ModuleList([encoder, heads]).named_parameters()
        if not torch.equal(p, before[name])
    }
    of_encoder = {"0.embedding.weight", "0.layer.weight", "0.layer.bias"}
    of_heads = {"1.linears.tag.weight", "1.linears.tag.bias", "1.linears.lm.bias"}
    assert moved == (of_encoder if of == "shared" else of_heads)
    assert all(p.requires_grad for p in nn.ModuleList([encoder, heads]).parameters())


def test_a_tied_embedding_has_moments_for_every_task():
    encoder, heads = tied()
    trainer = Trainer(encoder, heads, schedule=AdaTask(), device="cpu", weight_decay=0.0)
    run = trainer.begin(batches(), epochs=1)
    for _ in range(2):
        run.step()
    of_tasks = {name for name in run.optimizer.state[encoder.embedding.weight] if OF_TASK in name}
    assert {name.partition(OF_TASK)[2] for name in of_tasks} == {"0", "1"}


def test_a_table_that_is_a_head_as_well_is_stepped_once_by_any_engine():
    def trained(backward):
        torch.manual_seed(0)
        encoder, heads = BagEncoder(V, D, sparse=False), MultiTaskHeads(D, TASKS, main="tag")
        heads.linear("lm").weight = encoder.table
        data = [
            ((torch.arange(i, i + 12) % V, torch.tensor([0, 3, 7, 12])),
             {"tag": torch.tensor([0, 1, i % 4]), "lm": torch.tensor([i % V, 3, 5])})
            for i in range(8)
        ]  # fmt: skip
        trainer = Trainer(encoder, heads, schedule=Switch(at_step=4), device="cpu", backward=backward)
        trainer.fit(data, epochs=2)
        return encoder.table.detach().clone()

    torch.testing.assert_close(trained("auto"), trained("autograd"))


@pytest.mark.parametrize("retired_before", [True, False])
def test_loading_between_backward_and_step_keeps_the_gradient_of_a_tied_embedding(retired_before):
    encoder, heads = tied()
    other = tied()[1]
    other.set_active(["tag"])
    heads.set_active(["tag"] if retired_before else ["tag", "lm"], shared=encoder.parameters())
    ids, targets = batches(1)[0]
    heads(encoder(ids), targets).total.backward()
    before = encoder.embedding.weight.grad.clone()
    assert before.abs().sum() > 0
    heads.load_state_dict(other.state_dict())
    assert heads.active == ("tag",)
    assert torch.equal(encoder.embedding.weight.grad, before)
    assert heads.linear("lm").bias.grad is None  # nothing else reads it
    assert heads.linear("tag").weight.grad is not None


def test_what_a_loop_has_unfrozen_itself_keeps_its_gradient_when_a_state_is_loaded():
    encoder, heads = tied()
    heads.set_active(["tag"])
    encoder.embedding.weight.requires_grad_(True)
    ids, targets = batches(1)[0]
    heads(encoder(ids), targets).total.backward()
    heads.load_state_dict(heads.state_dict())
    assert encoder.embedding.weight.grad is not None
