"""Steps as graphs: the same history as without, and when a step is captured.

No GPU: see graphs_on_cpu. tests/on_gpu/test_trainer.py does the same with CUDA graphs.
"""

from __future__ import annotations

import copy
import json
import weakref

import pytest
import torch
from torch import nn

from mt2st_fast import SGD, Callback, Diminish, History, MultiTask, Switch, Trainer
from mt2st_fast.training.engines.graphs.graphed_steps import MOST_GRAPHS, WARM_UP_STEPS
from tests.training.engines.kernel_calls import test_text_training as window
from tests.training.graphs_on_cpu import RATE, GraphedOnCpu, assert_same, both
from tests.training.small_runs import Stop

# --- the same numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": MultiTask(0.5)},
        {"schedule": Diminish(eta=1.0, floor=0.2)},
        {"schedule": Switch(at_step=9), "clip_norm": 0.5, "weight_decay": 0.1},
        {"accumulate": 2},
        {"precision": "bfloat16"},
        {"precision": "float16", "clip_norm": 1.0},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)},
    ],
    ids=lambda options: ", ".join(options) or "default",
)
def test_history_and_weights_are_those_without_graphs(toy, options):
    eager, graphed, trainer = both(toy, toy.batches(6), **options)
    assert_same(eager, graphed)
    assert trainer.capturer.replayed > 0
    assert {phase.graph for phase in graphed[0].phases} == {"captured"}


def test_a_falling_learning_rate_is_data(toy):
    eager, graphed, trainer = both(toy, toy.batches(6), lr_decay="linear", schedule=MultiTask())
    assert trainer.capturer.captured == 1
    rates = [[record.learning_rate for record in run[0].steps] for run in (eager, graphed)]
    assert rates[0] == rates[1]
    for ours, theirs in zip(graphed[0].steps, eager[0].steps, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)  # the rate is rounded to float32


def test_the_rate_in_the_history_is_the_rate_that_was_asked_for(toy):
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), lr=2e-3)
    assert {record.learning_rate for record in trainer.fit(toy.batches(6), epochs=1).steps} == {2e-3}


def test_a_smaller_last_batch_and_missing_tasks_have_graphs_of_their_own(toy):
    batches = toy.batches(6)
    batches[2] = (batches[2][0], {"tag": batches[2][1]["tag"]})
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    eager, graphed, trainer = both(toy, batches, epochs=6, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 3
    # 4 whole batches, 1 with a task missing, 1 small one an epoch: the first three of each are eager.
    assert trainer.capturer.replayed == (24 - 3) + (6 - 3) + (6 - 3)


def test_a_loader_a_task(toy):
    batches = toy.batches(6)
    train = {name: [(x, {name: y[name]}) for x, y in batches] for name in toy.tasks}
    assert_same(*both(toy, train, schedule=Switch(at_step=9))[:2])


# --- when it is captured -------------------------------------------------------------------------------


def test_every_phase_is_captured_anew_after_its_warm_up(toy):
    _, (history, _), trainer = both(toy, toy.batches(10), epochs=2, schedule=Switch(at_step=8))
    capturer = trainer.capturer
    assert (capturer.captured, capturer.probed) == (2, 2)
    assert capturer.warmed_up == 2 * (WARM_UP_STEPS - 1)
    assert capturer.replayed == (8 - WARM_UP_STEPS) + (12 - WARM_UP_STEPS)
    assert capturer.released == 1 + 2  # made, and once a phase
    assert [phase.graph for phase in history.phases] == ["captured", "captured"]


def test_the_last_step_before_a_capture_reads_the_memory_that_the_graph_will_read(toy):
    """So that kernels compiled for its alignment are there: none may be compiled in a capture."""

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.encoder()

        def forward(self, inputs):
            read.append(inputs.data_ptr())
            return self.inner(inputs)

    read: list = []
    trainer = GraphedOnCpu(Looks(), toy.heads(), schedule=MultiTask())
    trainer.fit(toy.batches(6), epochs=1)
    assert trainer.capturer.replayed == 6 - WARM_UP_STEPS
    before, in_graph = read[: WARM_UP_STEPS - 1], read[WARM_UP_STEPS - 1 :]
    assert len({*in_graph}) == 1
    assert not {*in_graph} & {*before}


def test_a_phase_that_is_too_short_says_so(toy):
    _, (history, _), trainer = both(toy, toy.batches(WARM_UP_STEPS), epochs=1, schedule=MultiTask())
    assert trainer.capturer.captured == 0
    assert history.phases[0].graph == "not captured: no batch shape occurred more than 3 times"


def test_without_graphs_nothing_is_said(toy):
    history = Trainer(toy.encoder(), toy.heads()).fit(toy.batches(2), epochs=1)
    assert [phase.graph for phase in history.phases] == [None] * len(history.phases)


def test_batches_of_ever_new_shapes_run_eagerly(toy):
    batches = [(x[: 3 + i], {n: t[: 3 + i] for n, t in y.items()}) for i, (x, y) in enumerate(toy.batches(9))]
    eager, graphed, trainer = both(toy, batches, epochs=2, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 0


def test_a_phase_holds_a_bounded_number_of_graphs(toy):
    batches = toy.batches(MOST_GRAPHS + 2)
    batches = [(x[: 9 + i], {n: t[: 9 + i] for n, t in y.items()}) for i, (x, y) in enumerate(batches)]
    eager, graphed, trainer = both(toy, batches, epochs=5, schedule=MultiTask())
    assert_same(eager, graphed)
    assert trainer.capturer.captured == MOST_GRAPHS
    assert graphed[0].phases[0].graph == f"captured, except where: a phase keeps at most {MOST_GRAPHS} graphs"


def _load_state(trainer):
    optimizer = trainer.run.optimizer
    optimizer.load_state_dict(optimizer.state_dict())


def _move_weight(trainer):
    weight = trainer.encoder[0].weight
    weight.data = weight.data.clone()


CHANGES = {
    "rate": lambda trainer: trainer.run.optimizer.param_groups[0].update(lr=RATE / 4),
    "rate on the device": lambda trainer: trainer.run.optimizer.param_groups[0].update(lr=torch.tensor(RATE)),
    "freeze": lambda trainer: trainer.encoder[0].weight.requires_grad_(False),
    # A graph reads the memory that it was captured on, which nobody else may hold any longer.
    "state": _load_state,
    "weight": _move_weight,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_makes_another_graph(toy, change):
    class Change(Callback):
        def on_step(self, trainer):
            if trainer.step == 8:
                CHANGES[change](trainer)

    rate = torch.tensor(RATE) if change == "rate on the device" else RATE
    eager, graphed, trainer = both(
        toy,
        toy.batches(6),
        schedule=MultiTask(),
        optimizer=lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
        callbacks=lambda: [Change()],
    )
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 2


def test_a_state_that_a_callback_replaces_again_and_again_is_freed_with_its_graphs(toy):
    class Reload(Callback):
        def on_step(self, trainer):
            optimizer = trainer.run.optimizer
            if trainer.step % 4:
                return
            earlier.extend(weakref.ref(state["momentum_buffer"]) for state in optimizer.state.values())
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            alive.append(sum(one() is not None for one in earlier) / len(optimizer.state))

    alive: list[float] = []
    earlier: list[weakref.ref] = []
    eager, graphed, trainer = both(
        toy,
        toy.batches(6),
        epochs=MOST_GRAPHS,
        schedule=MultiTask(),
        optimizer=lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9),
        callbacks=lambda: [Reload()],
    )
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 6 * MOST_GRAPHS // 4
    assert graphed[0].phases[0].graph == "captured"
    assert max(alive) == 1  # the state just replaced, of which the engine lets go in the next step


def test_rows_that_freeze_make_another_graph():
    """A graph reads which rows are frozen where they were when it was captured."""
    ends = []
    for kind in (Trainer, GraphedOnCpu):
        torch.manual_seed(3)
        encoder, heads = window.model(dropout=0.0)
        heads.plan = "tile"  # a plan of their own keeps the CPU's one kernel call away
        start = encoder.table.detach().clone()

        class FreezesRows(Callback):
            def on_step(self, trainer):
                if trainer.step in (8, 16):
                    frozen = torch.arange(window.V) % 2 == int(trainer.step == 8)
                    trainer.run.optimizer.freeze_rows(encoder.table, frozen)  # noqa: B023 (of this run)
                    tables.append(encoder.table.detach().clone())  # noqa: B023

        tables: list = []
        trainer = kind(
            encoder, heads, schedule=MultiTask(), optimizer=lambda p: SGD(p, lr=0.01), device="cpu",
            backward="fused", callbacks=[FreezesRows()],
        )  # fmt: skip
        history = trainer.fit(window.BATCHES, steps=24)
        first, second = tables
        assert torch.equal(second[1::2], first[1::2])
        assert torch.equal(encoder.table[::2], second[::2])
        assert (encoder.table != start).any(1).sum() > window.V / 2
        ends.append(encoder.table.detach())
    assert trainer.capturer.captured == 3
    assert history.phases[-1].graph == "captured"
    assert torch.equal(*ends)


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 12, 17])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": lambda p: torch.optim.AdamW(p, lr=torch.tensor(RATE), capturable=True, fused=True)}],
    ids=["own optimizer", "rate on the device"],
)
def test_a_run_resumes_before_and_after_the_switch(toy, tmp_path, stop, options):
    def make(*callbacks):
        torch.manual_seed(3)
        return GraphedOnCpu(
            toy.encoder(dropout=0.1),
            toy.heads(),
            schedule=Switch(at_step=12),
            lr=RATE,
            lr_decay="linear",
            callbacks=callbacks,
            **options,
        )

    whole = make().fit(toy.batches(6), epochs=4)
    path = tmp_path / "checkpoint"
    make(Stop(stop)).fit(toy.batches(6), epochs=4, checkpoint=path)
    resumed = make()
    history = resumed.fit(toy.batches(6), epochs=4, checkpoint=path, resume=True)
    assert history == whole
    assert isinstance(resumed.run.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert history.phases[-1].graph == "captured"


def test_the_history_keeps_it_through_json(toy):
    history = GraphedOnCpu(toy.encoder(), toy.heads()).fit(toy.batches(6), epochs=3)
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert [phase.graph for phase in again.phases] == ["captured", "captured"]
