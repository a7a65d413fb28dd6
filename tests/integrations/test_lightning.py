"""Lightning, by its own Trainer: needs the extra `lightning`, and is skipped without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mt2st_fast import InputError, Switch
from tests.integrations.examples import load

L = pytest.importorskip("lightning")

from mt2st_fast.integrations.lightning import PhaseCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there

EXAMPLE = load("lightning_tagger")
BATCHES, EPOCHS = 8, 3  # of 32 rows; 24 steps, and the switch at 14.4


class Saving(L.Callback):
    """A checkpoint an epoch: within one, Lightning does not know where a loader stood."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class GroupsTagger(EXAMPLE.Tagger):
    """A parameter group a head, and a scheduler that counts them."""

    def configure_optimizers(self):
        groups = [{"params": part.parameters()} for part in (self.encoder, *self.heads.linears.values())]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0 - i / 50)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def run(monkeypatch, module=EXAMPLE.Tagger, **options):
    monkeypatch.setattr(EXAMPLE, "Tagger", module)
    return EXAMPLE.main(epochs=EPOCHS, **options)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


class Differing(L.Callback):
    """As if there were two processes, the second with a shorter loader."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def setup(self, trainer, pl_module, stage):
        strategy = trainer.strategy
        self.monkeypatch.setattr(type(trainer), "world_size", 2)
        self.monkeypatch.setattr(
            strategy, "all_gather", lambda own: torch.stack([own, own - 2]), raising=False
        )


def test_processes_whose_loaders_differ_in_length_are_refused(monkeypatch):
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Differing(monkeypatch), PhaseCallback(Switch(at=0.6))],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(EXAMPLE.made_up(), batch_size=32)
    n = len(loader)
    with pytest.raises(
        InputError, match=f"for {n} steps, {n} of them an epoch, and process 1 of 2 for {n - 2} steps"
    ):
        trainer.fit(EXAMPLE.Tagger(), loader)


def test_the_example_learns_and_lets_the_other_task_go():
    trainer, module = EXAMPLE.main(epochs=8)
    inputs, sign, _ = EXAMPLE.made_up().tensors
    assert module.heads.active == ("sign",)
    assert (module.heads.logits(module.encoder(inputs), "sign").argmax(1) == sign).float().mean() > 0.9
    retired = [*module.heads.linear("quarter").parameters()]
    (optimizer,) = trainer.optimizers
    assert not any(p.requires_grad or p.grad is not None or p in optimizer.state for p in retired)
    assert all(p in optimizer.state for p in module.heads.linear("sign").parameters())


@pytest.mark.parametrize("module", [EXAMPLE.Tagger, GroupsTagger])
@pytest.mark.parametrize("switch", [9, 15, 16, 17])
def test_resumed_before_at_and_after_the_switch_it_goes_on_bit_for_bit(tmp_path, monkeypatch, module, switch):
    at = switch / (EPOCHS * BATCHES)
    trainer, whole = run(monkeypatch, module, at=at, callbacks=[Saving(tmp_path)])
    phase = trainer.callbacks[0].controller.phase
    assert (phase.first_step, phase.retired) == (switch, ("quarter",))
    for step in (8, 16):
        resumed_by, resumed = run(monkeypatch, module, at=at, resume=str(tmp_path / f"{step}.ckpt"))
        assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True)), step
        assert resumed.heads.active == ("sign",)
        assert len(resumed_by.optimizers[0].state) == len(trainer.optimizers[0].state)
        assert resumed_by.callbacks[0].controller.phase == phase


def test_a_loop_written_by_hand_takes_the_same_steps(monkeypatch):
    """Before the switch as two linear layers and torch's losses, after it as one."""
    L.seed_everything(0, verbose=False)
    tagger = EXAMPLE.Tagger()
    layers = {name: nn.Linear(32, task.classes) for name, task in EXAMPLE.TASKS.items()}
    for name, layer in layers.items():
        layer.load_state_dict(tagger.heads.linear(name).state_dict())
    parameters = [*tagger.encoder.parameters(), *(p for layer in layers.values() for p in layer.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    inputs, sign, quarter = EXAMPLE.made_up().tensors
    targets = {"sign": sign, "quarter": quarter}
    for step in range(EPOCHS * BATCHES):
        rows = slice(step % BATCHES * 32, step % BATCHES * 32 + 32)
        features = tagger.encoder(inputs[rows])
        active = targets if step < 15 else {"sign": sign}
        loss = sum(nn.functional.cross_entropy(layers[n](features), t[rows]) for n, t in active.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, module = run(monkeypatch)
    own = [*module.encoder.parameters(), *(p for n in layers for p in module.heads.linear(n).parameters())]
    for ours, theirs in zip(own, parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-true"}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}]
)
def test_precisions_and_accumulation(monkeypatch, options):
    trainer, module = run(monkeypatch, **options)
    assert module.heads.active == ("sign",)
    assert all(p.isfinite().all() for p in module.parameters())
    steps = -(-BATCHES // options.get("accumulate_grad_batches", 1)) * EPOCHS
    assert trainer.callbacks[0].controller.phase.first_step == -(-steps * 6 // 10)


ON_TWO = """
import torch, lightning as L
from pathlib import Path
from tests.integrations.examples import load
def load_saving():
    from tests.integrations.test_lightning import Saving
    return Saving(Path(__file__).parent)
example = load("lightning_tagger")
class Compared(L.Callback):
    def on_train_end(self, trainer, module):
        own = torch.cat([p.detach().flatten() for p in module.parameters()])
        all_ranks = [torch.zeros_like(own) for _ in range(2)]
        torch.distributed.all_gather(all_ranks, own)
        assert torch.equal(*all_ranks)
        if trainer.global_rank == 0:
            print("active", *module.heads.active, "sum", own.double().sum().item())
if __name__ == "__main__":
    saving = load_saving()
    example.main(epochs=4, strategy="ddp", devices=2, callbacks=[Compared(), saving])
    for step in (8, 12):  # the switch is at 10
        example.main(epochs=4, strategy="ddp", devices=2, callbacks=[Compared()], resume=f"{saving.folder}/{step}.ckpt")
"""


def test_two_processes_go_over_the_switch_without_looking_for_unused_parameters(tmp_path):
    (tmp_path / "on_two.py").write_text(ON_TWO)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "on_two.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    ends = [line for line in done.stdout.splitlines() if line.startswith("active sign sum")]
    assert len(ends) == 3, done.stderr[-2000:]
    assert len(set(ends)) == 1  # resumed before and after the switch


class Watching(L.Callback):
    """Keeps how many tasks every batch trained."""

    def __init__(self):
        self.tasks = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.tasks.append(len(pl_module.heads.active))


class ManualTagger(EXAMPLE.Tagger):
    """Steps by itself: every `each` batches, `times` times."""

    each, times = 1, 1

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(self.times):
            self.manual_backward(super().training_step(batch, batch_idx) / self.each)
            if (batch_idx + 1) % self.each == 0:
                optimizer.step()
                optimizer.zero_grad()


class EveryFourthTagger(ManualTagger):
    each = 4


class TwiceTagger(ManualTagger):
    times = 2


class TwoOptimizersTagger(ManualTagger):
    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.encoder, self.heads)]

    def training_step(self, batch, batch_idx):
        encoder, heads = self.optimizers()
        self.manual_backward(super(ManualTagger, self).training_step(batch, batch_idx))
        for optimizer in (encoder, heads)[batch_idx % 2 :]:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("module", [ManualTagger, EveryFourthTagger, TwiceTagger, TwoOptimizersTagger])
def test_in_manual_optimization_a_step_is_a_batch(monkeypatch, module):
    watching = Watching()
    run(monkeypatch, module, callbacks=[watching])
    assert watching.tasks == [2] * 15 + [1] * 9  # of 24


def test_in_manual_optimization_the_last_step_is_lightnings(monkeypatch):
    watching = Watching()
    trainer, _ = run(monkeypatch, TwoOptimizersTagger, callbacks=[watching], max_steps=24)
    assert trainer.global_step == 24
    assert watching.tasks == [2] * 10 + [1] * 6


@pytest.mark.parametrize(
    ("schedule", "switch"), [(Switch(at=0.6), 8), (Switch(at_epoch=2), 10), (Switch(at_step=9), 9)]
)
def test_epochs_may_accumulate_differently(schedule, switch):
    scheduler = L.pytorch.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})  # 8, 2 and 2 steps
    callback = PhaseCallback(schedule)
    fit(EXAMPLE.Tagger(), callback, scheduler)
    assert callback.controller.phase.first_step == switch


def test_epochs_may_differ_in_length():
    class Growing(L.LightningDataModule):
        def train_dataloader(self):
            rows = (64, 64, 256)[self.trainer.current_epoch]
            data = torch.utils.data.TensorDataset(*(t[:rows] for t in EXAMPLE.made_up().tensors))
            return torch.utils.data.DataLoader(data, batch_size=32)

    for schedule, switch in ((Switch(at=0.6), 8), (Switch(at_epoch=2), 4)):  # of 12 steps
        callback = PhaseCallback(schedule)
        fit(EXAMPLE.Tagger(), callback, data=Growing(), reload_dataloaders_every_n_epochs=1)
        assert callback.controller.phase.first_step == switch


def test_a_task_that_comes_back_must_be_in_the_optimizer():
    class TrainableTagger(EXAMPLE.Tagger):
        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)

    module = TrainableTagger()
    fit(module, PhaseCallback(Switch(at=0.6)))
    for prune in (True, False):
        with pytest.raises(
            InputError, match=r"quarter had retired .* call heads.set_active\(heads.names\) before"
        ):
            fit(module, PhaseCallback(Switch(at=0.6), prune=prune))
        assert module.heads.active == ("sign", "quarter")
        module.heads.set_active(["sign"])
    module.heads.set_active(module.heads.names)
    before = module.heads.linear("quarter").weight.detach().clone()
    fit(module, PhaseCallback(Switch(at=0.6)))
    assert not torch.equal(module.heads.linear("quarter").weight, before)


def fit(module, *callbacks, data=None, **options):
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[*callbacks], **options,
    )  # fmt: skip
    trainer.fit(module, data or torch.utils.data.DataLoader(EXAMPLE.made_up(), batch_size=32))


def test_the_active_tasks_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    run(monkeypatch, callbacks=[Saving(tmp_path)])
    assert EXAMPLE.Tagger.load_from_checkpoint(tmp_path / "16.ckpt").heads.active == ("sign",)
    assert EXAMPLE.Tagger.load_from_checkpoint(tmp_path / "8.ckpt").heads.active == ("sign", "quarter")


def test_what_cannot_be_done_is_refused_by_name(monkeypatch):
    class Elsewhere(EXAMPLE.Tagger):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"heads": self.heads})
            del self.heads

        def training_step(self, batch, batch_idx):
            raise AssertionError("no step is taken")

    with pytest.raises(InputError, match=r"Elsewhere has no MultiTaskHeads at 'heads' \(nothing is there\)"):
        run(monkeypatch, Elsewhere)
    with pytest.raises(InputError, match="a schedule of phases needs an end"):
        EXAMPLE.main(epochs=-1, max_steps=-1)
    assert PhaseCallback(Switch()).state_dict() == {}
