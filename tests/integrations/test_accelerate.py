"""accelerate's loop over an encoder and our heads: the steps of a loop by hand, resumed bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, PhaseController, Switch
from tests.training.processes.together import run_together

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there

TASKS = {"tag": Classification(4), "genre": Classification(2)}
STEPS, SWITCH = 10, 6
ROWS = torch.randn(2 * STEPS, 8, 5, generator=torch.Generator().manual_seed(0))
TAGS = torch.randint(0, 4, (2 * STEPS, 8), generator=torch.Generator().manual_seed(1))
GENRES = torch.randint(0, 2, (2 * STEPS, 8), generator=torch.Generator().manual_seed(2))
GENRES[::3, 2:] = -100  # missing here more than there


def parts():
    torch.manual_seed(3)
    model = nn.ModuleDict({"encoder": nn.Linear(5, 6), "heads": MultiTaskHeads(6, TASKS, "tag")})
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def batches_of(step):
    """Both batches of a step."""
    return [(ROWS[i], {"tag": TAGS[i], "genre": GENRES[i]}) for i in (2 * step, 2 * step + 1)]


def counted(heads, batches):
    counts = [heads.label_counts(targets) for _, targets in batches]
    return {task: sum(count[task] for count in counts) for task in heads.active}


def by_hand():
    model, optimizer = parts()
    controller = PhaseController(model["heads"], Switch(at_step=SWITCH), optimizer)
    for step in range(STEPS):
        controller.step(step, STEPS, STEPS)
        denominators = counted(model["heads"], batches_of(step))
        for inputs, targets in batches_of(step):
            model["heads"](model["encoder"](inputs), targets, denominators=denominators).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


class Loop:
    """As accelerate's users write it."""

    def __init__(self):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer = parts()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.heads = self.accelerator.unwrap_model(self.model)["heads"]
        self.controller = PhaseController(self.heads, Switch(at_step=SWITCH), self.optimizer)
        self.accelerator.register_for_checkpointing(self.controller)

    def train(self, first, last):
        for step in range(first, last):
            self.controller.step(step, STEPS, STEPS)
            denominators = counted(self.heads, batches_of(step))
            for inputs, targets in batches_of(step):
                with self.accelerator.accumulate(self.model):
                    out = self.heads(self.model["encoder"](inputs), targets, denominators=denominators)
                    # accelerate divides by the batches of a step, which the denominators have done.
                    self.accelerator.backward(out.total * self.accelerator.gradient_accumulation_steps)
                    self.optimizer.step()
                    self.optimizer.zero_grad()


def test_two_processes_take_the_steps_of_one(tmp_path):
    from tests.integrations import accelerated

    alone = accelerated.trained(tmp_path)
    for of_one in run_together("integrations.accelerated", ["trained"], tmp_path)["trained"]:
        assert "error" not in of_one, of_one
        torch.testing.assert_close(of_one, alone, rtol=1e-5, atol=1e-6)


def assert_same(one, other):
    for (name, ours), theirs in zip(one.state_dict().items(), dict(other.state_dict()).values(), strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), name


def test_its_steps_are_those_of_a_loop_by_hand():
    loop = Loop()
    loop.train(0, STEPS)
    # Halves of a loss that is doubled are the same numbers.
    assert_same(loop.model, by_hand())
    assert loop.heads.active == ("tag",)
    retired = [*loop.heads.linear("genre").parameters()]
    assert all(p.grad is None and p not in loop.optimizer.state for p in retired)


@pytest.mark.parametrize("stop", [SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_stored_state_goes_on_bit_for_bit(tmp_path, stop):
    loop = Loop()
    loop.train(0, stop)
    loop.accelerator.save_state(tmp_path)
    loop.train(stop, STEPS)
    resumed = Loop()
    resumed.accelerator.load_state(tmp_path)
    resumed.train(stop, STEPS)
    assert_same(resumed.model, loop.model)
    assert resumed.heads.active == ("tag",)
