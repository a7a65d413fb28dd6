"""Schedules that see losses and gradients, or learn their weights: written by a user, resumed bit for bit."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, OpenTask, Trainer
from mt2st_fast.training.learnt_weights import learnt_schedule
from mt2st_fast.training.phases.observations import _labels_of_others
from mt2st_fast.training.schedules.shown import Observation
from tests.training.small_runs import Stop, batches, trainer_of


class DynamicAverage:
    """Weights by how much slower a task's loss falls than before (Liu et al. 2019, section 3.3)."""

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature, self.losses = temperature, []

    def task_weights(self, moment, main, auxiliary):
        names = [main, *auxiliary]
        if len(self.losses) < 2:
            return dict.fromkeys(names, 1.0)
        before, now = self.losses[-2:]
        raw = torch.tensor([now[name] / before[name] for name in names], dtype=torch.float64)
        shares = torch.softmax(raw / self.temperature, dim=0) * len(names)
        return dict(zip(names, shares.tolist(), strict=True))

    def observe(self, observation):
        self.losses.append(dict(observation.losses))

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])


class LetGoOfOpponents:
    """A task retires once its gradient points away from the main task's in two observations."""

    wants_gradients = True

    def __init__(self, least_cosine: float) -> None:
        self.least_cosine, self.against, self.seen = least_cosine, {}, []

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0} | {name: 1.0 for name in auxiliary if self.against.get(name, 0) < 2}

    def observe(self, observation):
        self.seen.append(observation)
        for name, gradient in (observation.gradients or {}).items():
            self.against[name] = self.against.get(name, 0) + (gradient.cosine < self.least_cosine)

    def state_dict(self):
        return {"against": self.against}

    def load_state_dict(self, state):
        self.against = dict(state["against"])


class Uncertainty(nn.Module):
    """exp(-s_k) L_k + s_k / 2, with s_k learnt (Kendall et al. 2018, equation 10)."""

    def __init__(self, names) -> None:
        super().__init__()
        self.s = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(torch.zeros(())) for name in names})

    def _of(self, active):
        return torch.stack([self.s[name.replace(".", "_")] for name in active])

    def task_weights(self, moment, main, auxiliary):
        names = [main, *auxiliary] if moment.step < 16 else [main]
        return dict.fromkeys(names, 1.0)

    def weights(self, active):
        return torch.exp(-self._of(active))

    def penalty(self, active):
        return self._of(active).sum() / 2


SCHEDULES = {
    "losses": DynamicAverage,
    "gradients": lambda: LetGoOfOpponents(2.0),  # everybody is an opponent: they go at the third record
    "learnt": lambda: Uncertainty(("tag", "feats.Number", "score")),
}


def make(toy, schedule, *callbacks):
    torch.manual_seed(5)
    return Trainer(
        toy.encoder(dropout=0.2),
        toy.heads(),
        schedule=schedule,
        log_every=4,
        callbacks=callbacks,
        device="cpu",
    )


def state_of(trainer):
    modules = [trainer.encoder, trainer.heads]
    modules += [trainer.schedule] if isinstance(trainer.schedule, nn.Module) else []
    return [value.clone() for module in modules for value in module.state_dict().values()]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [3, 9, 17])
def test_a_resumed_run_ends_with_the_same_bits(toy, name, stop, tmp_path):
    whole = make(toy, SCHEDULES[name]())
    history = whole.fit(toy.batches(6), epochs=4)
    path = tmp_path / "checkpoint"
    make(toy, SCHEDULES[name](), Stop(stop)).fit(toy.batches(6), epochs=4, checkpoint=path)
    resumed = make(toy, SCHEDULES[name]())
    assert resumed.fit(toy.batches(6), epochs=4, checkpoint=path, resume=True) == history
    assert all(torch.equal(a, b) for a, b in zip(state_of(resumed), state_of(whole), strict=True))


def test_weights_follow_the_losses(toy):
    trainer = make(toy, DynamicAverage())
    history = trainer.fit(toy.batches(6), epochs=4)
    seen = trainer.schedule.losses
    assert [record.losses for record in history.steps] == seen
    assert history.steps[0].weights == {"tag": 1.0, "feats.Number": 1.0, "score": 1.0}
    later = history.steps[-1].weights
    assert len(set(later.values())) == 3
    assert sum(later.values()) == pytest.approx(3.0)


def test_gradients_are_those_of_the_tasks_alone(toy):
    trainer = make(toy, LetGoOfOpponents(-2.0))
    trainer.fit(toy.batches(4), epochs=2)
    observations: list[Observation] = trainer.schedule.seen
    assert [o.step for o in observations] == [4, 8]
    found = observations[-1].gradients
    assert found["tag"].cosine == pytest.approx(1.0, abs=1e-5)
    inputs, targets = toy.batches(4)[-1]
    trainer.encoder.eval()
    features = trainer.encoder(inputs).detach().requires_grad_()
    loss = nn.functional.cross_entropy(trainer.heads.logits(features, "tag"), targets["tag"])
    (gradient,) = torch.autograd.grad(loss, features)
    assert found["tag"].norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_tasks_retire_by_what_was_seen(toy):
    history = make(toy, LetGoOfOpponents(2.0)).fit(toy.batches(6), epochs=4)
    assert [(phase.first_step, len(phase.active)) for phase in history.phases] == [(0, 3), (6, 1)]


def test_learnt_weights_move_and_stand_in_the_history(toy):
    trainer = make(toy, Uncertainty(("tag", "feats.Number", "score")))
    history = trainer.fit(toy.batches(6), epochs=4)
    weights = history.steps[2].weights
    assert all(value != 1.0 for value in weights.values())
    # The main task alone is weighted after the switch; the others' numbers rest.
    assert set(history.steps[-1].weights) == {"tag"}
    assert history.phases[0].engine == "one kernel call"


def test_a_module_without_weights_is_no_schedule(toy):
    class Nothing(nn.Module):
        def task_weights(self, moment, main, auxiliary):
            return {main: 1.0}

    with pytest.raises(TypeError, match="the schedule Nothing is a module, and so needs weights"):
        make(toy, Nothing()).fit(toy.batches(2), epochs=1)


def test_engines_say_who_took_a_phase_and_why(toy):
    trainer = make(toy, DynamicAverage())
    trainer.encoder.append(nn.Softmax(-1))
    phase = trainer.fit(toy.batches(2), epochs=1).phases[0]
    assert phase.engine == "eager"
    taken = (
        "nn.Linear, LayerNorm, RMSNorm, BatchNorm1d, Dropout, Identity, ReLU, Tanh, GELU, SiLU, LeakyReLU, ELU, CELU, "
        "SELU, Sigmoid, LogSigmoid, Softplus, Mish, Hardsigmoid, Hardswish, Hardtanh, ReLU6, Softsign, Tanhshrink"
    )
    assert phase.passed_over == {
        "one kernel call": f"it is for an nn.Sequential of {taken}, and the encoder has a Softmax",
        "gradients in one kernel call": "it needs a WindowEncoder or a BagEncoder and MultiTaskHeads, not subclasses",
        "cuda graph": "not asked for (graph=False)",
    }


class Forgetful:
    """Observes, and has nothing to put into a checkpoint."""

    def __init__(self) -> None:
        self.observations = 0

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0} | dict.fromkeys(auxiliary, 1.0 / (1 + self.observations))

    def observe(self, observation):
        self.observations += 1


def test_a_schedule_that_forgets_what_it_saw_is_refused_a_checkpoint(toy, tmp_path):
    path, message = (
        tmp_path / "checkpoint",
        ("the schedule Forgetful makes observations that a resumed run would lose; give it state_dict"),
    )
    with pytest.raises(ValueError, match=message):
        make(toy, Forgetful()).fit(toy.batches(4), epochs=1, checkpoint=path)
    trainer = make(toy, Forgetful())
    trainer.fit(toy.batches(4), epochs=1)
    with pytest.raises(ValueError, match=message):
        trainer.run.save(path)
    assert not path.exists()


def test_learnt_weights_go_to_the_device(toy):
    schedule = learnt_schedule(Uncertainty(("tag", "score")), toy.heads(), torch.device("meta"))
    assert {parameter.device.type for parameter in schedule.parameters()} == {"meta"}


class HeldOutLooks:
    """Remembers what it sees."""

    wants_held_out_gradients = True

    def __init__(self) -> None:
        self.seen = []

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0} | dict.fromkeys(auxiliary, 1.0)

    def observe_held_out(self, seen):
        self.seen.append(seen)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_what_a_task_has_learnt_is_what_it_can_tell_from_a_row(toy):
    trainer = make(toy, HeldOutLooks())
    trainer.fit(toy.batches(8), val=toy.batches(2), epochs=8, evaluate_every=64)
    found = trainer.schedule.seen[-1].gradients
    assert all(0.1 < found[name].learnt <= 1.0 for name in ("tag", "score"))


def test_a_head_that_does_not_look_at_its_row_has_learnt_nothing(toy):
    trainer = make(toy, HeldOutLooks())
    for linear in trainer.heads.linears.values():
        nn.init.zeros_(linear.weight)
        nn.init.normal_(linear.bias)
    for parameter in trainer.heads.parameters():
        parameter.requires_grad_(False)
    trainer.fit(toy.batches(2), val=toy.batches(2), epochs=1, evaluate_every=1)
    learnt = [gradient.learnt for gradient in trainer.schedule.seen[-1].gradients.values()]
    assert learnt == pytest.approx([0.0] * 3, abs=1e-6)


def test_labels_of_others_are_the_same_labels_each_at_another_labelled_place():
    head = Classification(5).head
    target = torch.tensor([[0, 1, -100, 2], [3, -100, 4, 0]])
    others = _labels_of_others(target, head)
    assert torch.equal(others == -100, target == -100)
    assert sorted(others[others >= 0].tolist()) == sorted(target[target >= 0].tolist())
    numbered = torch.arange(100)  # every label once: none at its own place
    assert not (_labels_of_others(numbered, Classification(100).head) == numbered).any()
    marks = torch.tensor([[1.0, 0.0], [float("nan")] * 2, [0.0, 1.0], [0.0, float("nan")]])
    shifted = _labels_of_others(marks, MultiLabel(2).head)
    assert shifted[1].isnan().all()
    assert sorted(map(str, shifted.tolist())) == sorted(map(str, marks.tolist()))
    assert not any(torch.equal(shifted[i].nan_to_num(9), marks[i].nan_to_num(9)) for i in (0, 2, 3))
    assert _labels_of_others(torch.tensor([1, -100, -100]), head) is None


class OfPairs(OpenTask):
    """Its target is no tensor of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def loss(self, features, targets, mask=None):
        return F.mse_loss(self.out(features), targets["of"])


def test_what_a_task_of_its_own_loss_has_learnt_nobody_knows(toy):
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {"tag": Classification(4), "own": OfPairs()}, "tag")
    schedule = HeldOutLooks()
    batches = [(x, {"tag": y["tag"], "own": {"of": x[:, :2]}}) for x, y in toy.batches(2)]
    trainer = Trainer(toy.encoder(), heads, schedule=schedule, device="cpu")
    trainer.fit(batches, val=[(x, {"tag": y["tag"], "own": y["own"]}) for x, y in batches], epochs=1)
    found = schedule.seen[-1].gradients
    assert found["own"].learnt is None
    assert found["tag"].learnt is not None


@pytest.mark.parametrize(("decay", "expected"), [("linear", [0.75, 0.5, 0.25, 0.0]), ("none", [None] * 4)])
def test_held_out_looks_say_what_is_left_of_a_rate_that_falls_to_nothing(decay, expected):
    schedule = HeldOutLooks()
    trainer = trainer_of(schedule=schedule, lr_decay=decay)
    trainer.fit(batches()[:4], val=batches()[:1], epochs=1, evaluate_every=1)
    assert [seen.rate_left for seen in schedule.seen] == expected


class HeldOutNorms:
    """The main task alone; remembers its gradients on held-out rows."""

    wants_held_out_gradients = True

    def __init__(self) -> None:
        self.norms = []

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0}

    def observe_held_out(self, seen):
        self.norms.append(seen.gradients[seen.main].norm)


@pytest.mark.parametrize("loaded", [False, True])
def test_held_out_gradients_are_of_another_batch_each_time(loaded):
    schedule, held_out = HeldOutNorms(), batches()[:2]
    val = torch.utils.data.DataLoader(held_out, batch_size=None) if loaded else held_out
    trainer_of(schedule=schedule, lr=1e-9).fit(batches(), val=val, epochs=1, evaluate_every=2)
    first, second, third, fourth = schedule.norms  # of weights that hardly move
    assert (first, second) == (pytest.approx(third, rel=1e-4), pytest.approx(fourth, rel=1e-4))
    assert first != pytest.approx(second, rel=1e-3)


def test_what_a_schedule_looks_at_counts_as_its_time():
    class Slow(HeldOutNorms):
        def observe_held_out(self, seen):
            super().observe_held_out(seen)
            time.sleep(0.2)

    trainer = trainer_of(schedule=Slow(), lr=1e-9)
    trainer.log_every = 1
    history = trainer.fit(batches(), val=batches()[:2], epochs=1, evaluate_every=2)
    n_before_the_last_record = len(history.evaluations) - 1
    assert n_before_the_last_record > 0
    assert history.train_seconds > 0.2 * n_before_the_last_record
