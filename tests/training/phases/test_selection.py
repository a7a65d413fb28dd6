"""AdaptiveTaskSelector: what is frozen where the last auxiliary task retires, by every engine, and after resuming."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from mt2st_fast import (
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    AdaTask,
    Alternate,
    Classification,
    MultiTaskHeads,
    RowwiseAdagrad,
    SingleTask,
    Switch,
    Trainer,
    Uncertainty,
)
from mt2st_fast.errors import InputError
from mt2st_fast.training.history import History
from mt2st_fast.training.schedules import RunFacts, find_strategy
from mt2st_fast.training.schedules.shown import Importances, ModelPart
from tests.training.engines.kernel_calls import test_bag_training as bag
from tests.training.engines.kernel_calls import test_text_training as window
from tests.training.small_runs import Stop

SWITCH = Switch(at=0.5)
VAL = [window.batch(90, seed=seed) for seed in range(20, 24)]


def trainer_of(skip=0.7, backward="auto", dropout=0.3, schedule=None, callbacks=()):
    torch.manual_seed(3)
    encoder, heads = window.model(dropout=dropout)
    schedule = AdaptiveTaskSelector(schedule=SWITCH if schedule is None else schedule, skip=skip)
    return Trainer(
        encoder, heads, schedule=schedule, lr=0.01, device="cpu", backward=backward, callbacks=callbacks,
        log_every=4,
    )  # fmt: skip


def fit(trainer, epochs=4, **options):
    return trainer.fit(window.BATCHES, val=VAL, epochs=epochs, **options)


class Keeping(Stop):
    """Keeps the parameters as they were after each step."""

    def __init__(self):
        super().__init__(-1)
        self.kept = []

    def on_step(self, trainer):
        self.kept.append(window.parameters(trainer.encoder, trainer.heads))


# --- the choice ------------------------------------------------------------------------------------------


def importances_of(*parts):
    """Of (name, cost, importance to the main task, whose head)."""
    made = tuple(ModelPart(name, (), cost, None, task) for name, cost, _, task in parts)
    return Importances("main", made, {"main": tuple(float(p[2]) for p in parts)})


FOUND = importances_of(
    ("unused", 0, 0, None), ("rare", 40, 1, None), ("frequent", 20, 2, None), ("layer", 30, 60, None),
    ("free", 0, 1, None), ("head", 10, 36, "main"), ("other", 1000, 0, "aux"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("skip", "frozen"),
    [
        (0.0, []),
        (0.3, ["unused", "rare"]),
        (0.4, ["unused", "rare"]),
        (0.41, ["unused", "rare", "frequent"]),
        (0.7, ["unused", "rare", "frequent", "layer"]),
        (1.0, ["unused", "rare", "frequent", "layer", "head"]),  # what matters most is trained in any case
    ],
)
def test_what_matters_least_by_number_is_frozen_up_to_the_share(skip, frozen):
    assert AdaptiveTaskSelector(skip=skip).select(FOUND) == frozen


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"skip": 1.5}, ValueError, "skip must be"),
        ({"skip": float("nan")}, ValueError, "skip must be"),
        ({"measure": "magnitude"}, ValueError, "measure 'magnitude' is unknown; available: fisher, taylor"),
        ({"schedule": nn.Linear(2, 2)}, TypeError, "schedule must be a schedule, .* not Linear"),
        ({"schedule": Uncertainty()}, InputError, "Uncertainty learns its weights"),
        (
            {"schedule": Alternate(1, 1)},
            InputError,
            "Alternate trains the encoder and the tasks in turns",
        ),
        ({"schedule": AdaTask()}, InputError, "AdaTask keeps optimizer moments per task"),
        (
            {"schedule": AdaptiveTaskSelector()},
            InputError,
            "AdaptiveTaskSelector selects which parts of the model train",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        AdaptiveTaskSelector(**options)


def test_the_command_lines_strategy_is_switch_and_the_share():
    made = find_strategy("selector").make({"switch_at": 0.3, "skip": 0.5}, RunFacts(2.0))
    assert made == AdaptiveTaskSelector(schedule=Switch(at=0.3, weights=1.0), skip=0.5)
    with pytest.raises(InputError, match="--skip must be"):
        find_strategy("selector").make({"skip": 1.5}, RunFacts(2.0))


# --- in a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0.1, 0.7, 1.0])
def test_what_is_frozen_stays_and_all_else_goes_on(skip):
    keeping = Keeping()
    trainer = trainer_of(skip, callbacks=[keeping])
    history = fit(trainer)
    (selection,) = history.selections
    assert selection.step == history.phases[1].first_step == 12
    assert [phase.engine for phase in history.phases] == ["one kernel call"] * 2
    named = [*trainer.encoder.named_parameters(), *trainer.heads.named_parameters()]
    moved = {
        name: (old != new).reshape(len(old), -1).any(1)
        for name, old, new in zip(dict(named), keeping.kept[11], keeping.kept[-1], strict=True)
    }
    state_of = {part.name: part.becomes for part in selection.parts}
    for part in selection.parts:
        if part.rows is None:
            for name in part.parameters:
                assert moved[name.partition("/")[2]].any() == (part.becomes == "trained"), name
    rows = [part for part in selection.parts if part.rows is not None]
    frozen_rows = sum(part.rows for part in rows if part.becomes == "frozen")
    assert sum(part.rows for part in rows) == window.V
    assert 0 < frozen_rows <= int((~moved["table"]).sum())
    assert moved["table"].any() == (frozen_rows < window.V) == (skip == 0.1)
    assert state_of["heads/main"] == "trained"
    assert state_of["heads/wide"] == "retired"
    frozen = sum(p.cost for p in selection.parts if p.becomes == "frozen")
    assert frozen >= min(skip, 0.9) * sum(p.cost for p in selection.parts if p.becomes != "retired")


@pytest.mark.parametrize("skip", [0.1, 0.7])
def test_the_eager_engine_freezes_the_same_and_moves_the_same(skip):
    runs = {backward: trainer_of(skip, backward, dropout=0.0) for backward in ("auto", "autograd")}
    histories = {backward: fit(trainer, epochs=2) for backward, trainer in runs.items()}
    assert histories["autograd"].phases[1].engine == "eager"
    becomes = {
        backward: [(p.name, p.rows, p.becomes) for p in history.selections[0].parts]
        for backward, history in histories.items()
    }
    assert becomes["auto"] == becomes["autograd"]
    for ours, eager in zip(
        window.parameters(runs["auto"].encoder, runs["auto"].heads),
        window.parameters(runs["autograd"].encoder, runs["autograd"].heads),
        strict=True,
    ):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def test_a_bag_encoder_trains_on_in_its_kernel():
    encoder, heads, _ = bag.model(tasks=("topic", "tone"))
    before = encoder.table.detach().clone()
    trainer = Trainer(
        encoder, heads, schedule=AdaptiveTaskSelector(schedule=SWITCH, skip=0.3), device="cpu",
        optimizer=lambda p: RowwiseAdagrad(p, lr=0.1),
    )  # fmt: skip
    held_out = [bag.batch(40, ("topic", "tone"), seed) for seed in range(9, 13)]
    history = trainer.fit(
        [bag.batch(50, ("topic", "tone"), seed) for seed in range(4)], val=held_out, epochs=2
    )
    assert [phase.engine for phase in history.phases] == ["one kernel call"] * 2
    becomes = {part.becomes for part in history.selections[0].parts if part.rows is not None}
    assert becomes == {"trained", "frozen"}
    assert not torch.equal(before, encoder.table)


def test_layers_of_any_module_are_frozen_and_leave_the_optimizer():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 8))
    heads = MultiTaskHeads(8, {"main": Classification(3), "aux": Classification(2)}, "main")
    trainer = Trainer(encoder, heads, schedule=AdaptiveTaskSelector(schedule=SWITCH, skip=0.4), device="cpu")
    x = torch.randn(32, 6)
    data = [(x, {"main": torch.randint(0, 3, (32,)), "aux": torch.randint(0, 2, (32,))})] * 4
    held = {}

    class Looking(Stop):
        def on_phase(self, trainer, phase):
            held[phase.active] = sum(len(g["params"]) for g in trainer.run.optimizer.param_groups)

    trainer.callbacks.append(Looking(-1))
    history = trainer.fit(data, val=data, epochs=2)
    frozen = [p for part in history.selections[0].parts if part.becomes == "frozen" for p in part.parameters]
    assert frozen
    assert held == {("main", "aux"): 8, ("main",): 6 - len(frozen)}
    assert all(p.requires_grad for p in encoder.parameters())  # for the next run
    assert trainer.fit(data, val=data, epochs=1).selections


def test_choosing_counts_as_training_time():
    trainer = trainer_of()
    history = fit(trainer)
    before = next(s for s in reversed(history.steps) if s.step <= 12)
    after = next(s for s in history.steps if s.step > 12)
    assert history.selections[0].seconds > 0
    assert after.train_seconds - before.train_seconds >= history.selections[0].seconds


@pytest.mark.parametrize("skip", [0.1, 0.7])
@pytest.mark.parametrize("stop", [5, 12, 13, 19])  # before, at and after the choice
def test_a_resumed_run_gives_the_same_bits(stop, skip, tmp_path):
    whole = trainer_of(skip)
    expected = fit(whole)
    fit(trainer_of(skip, callbacks=[Stop(stop)]), checkpoint=tmp_path / "c")
    resumed = trainer_of(skip)
    history = fit(resumed, checkpoint=tmp_path / "c", resume=True)
    assert history == expected
    assert len(history.selections) == 1
    assert history.phases[-1].engine == "one kernel call"
    for a, b in zip(
        window.parameters(whole.encoder, whole.heads),
        window.parameters(resumed.encoder, resumed.heads),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert all(p.requires_grad for p in resumed.encoder.parameters())


def test_a_resumed_run_has_the_options_of_then(tmp_path):
    fit(trainer_of(0.7, callbacks=[Stop(13)]), checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match=r"made with schedule .*skip=0\.7.*, this run has .*skip=0\.5"):
        fit(trainer_of(0.5), checkpoint=tmp_path / "c", resume=True)


def test_without_development_data_it_is_refused():
    for begin in (trainer_of().fit, trainer_of().begin):
        with pytest.raises(
            ValueError, match=r"AdaptiveTaskSelector decides based on held-out batches; pass fit\(val="
        ):
            begin(window.BATCHES)


def test_a_run_without_a_multi_task_phase_chooses_nothing():
    history = fit(trainer_of(schedule=SingleTask()), epochs=1)
    # Tasks have retired before the first step: nothing has been trained that could matter.
    assert history.selections == []


def test_it_finishes_what_an_adaptive_switch_began():
    inner = AdaptiveSwitch(patience=2, margin=1.0)
    trainer = trainer_of(schedule=inner)
    history = fit(trainer, epochs=4, evaluate_every=2)
    assert inner.reasons
    assert trainer.schedule.reasons == inner.reasons
    assert trainer.schedule.evidence == inner.evidence != []
    assert history.phases[-1].active == ("main",)
    assert history.selections[0].step == history.phases[-1].first_step
    assert trainer.schedule.state_dict()["state"]["reasons"] == inner.reasons
    other = AdaptiveTaskSelector(schedule=AdaptiveSwitch(patience=2, margin=1.0))
    other.load_state_dict(copy.deepcopy(trainer.schedule.state_dict()))
    assert other.schedule.reasons == inner.reasons


def test_the_choice_is_kept_with_the_history(tmp_path):
    history = fit(trainer_of(), epochs=2)
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    history.write_jsonl(tmp_path / "h.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["kind"] == "selection"]
    assert line["step"] == 6
    assert {part["becomes"] for part in line["parts"]} == {"trained", "frozen", "retired"}
