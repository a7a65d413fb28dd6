"""The heads that a run leaves to its model: never one that still has its initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import (
    FAMO,
    Classification,
    InputError,
    MultiTask,
    MultiTaskHeads,
    Regression,
    SingleTask,
    Switch,
    Trainer,
    Uncertainty,
    load_model,
    train_supervised,
)
from mt2st_fast.training.trained_heads import heads_without, untrained
from tests.training.small_runs import batches, trainer_of

LINES = "__label__a__x __label__b__u __label__c__one good\n__label__a__y __label__b__v __label__c__one bad\n"


@pytest.mark.parametrize(
    ("schedule", "left_out"),
    [
        (MultiTask(), ()),
        (Switch(at=0.5), ()),
        (Switch(at_step={"b": 0}), ("b",)),
        (MultiTask(weights={"b": 0.0}), ("b",)),
        (SingleTask(), ("b", "c")),
    ],
)
def test_a_family_that_no_step_trained_is_left_out_and_named(tmp_path, caplog, schedule, left_out):
    file = tmp_path / "t.txt"
    file.write_text(LINES * 20)
    model = train_supervised(
        file, dim=4, epoch=2, batch_size=8, schedule=schedule, families=True, device="cpu"
    )
    model.save(tmp_path / "m")
    kept = tuple(name for name in "abc" if name not in left_out)
    for each in (model, load_model(tmp_path / "m")):
        assert (tuple(each.labels), each.heads.names, each.main) == (kept, kept, "a")
        assert tuple(each.test(file)) == kept
        for family in left_out:
            with pytest.raises(
                InputError, match=f"unknown label family {family}; available: {', '.join(kept)}"
            ):
                each.predict("good", family=family)
    assert model.trainer.heads.names == ("a", "b", "c")
    told = f"the model leaves out {', '.join(left_out)}: no step trained the head"
    assert caplog.messages == ([told] if left_out else [])


class Fading:
    """Weights that are 0 when losses are read."""

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0, **dict.fromkeys(auxiliary, max(0.0, 1.0 - moment.step / 3))}


def with_labels(wanted, n=6, rows=8):
    """Batches of two classifications and a number, of which `wanted(i, name)` says who has labels in batch i."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        targets = {
            "main": torch.randint(0, 2, (rows,), generator=generator),
            "class": torch.randint(0, 3, (rows,), generator=generator),
            "number": torch.randn(rows, 1, generator=generator),
        }
        for name, missing in (("class", -100), ("number", float("nan"))):
            if not wanted(i, name):
                targets[name].fill_(missing)
        found.append((torch.randn(rows, 4, generator=generator), targets))
    return found


def trained_on(data, schedule):
    torch.manual_seed(0)
    tasks = {"main": Classification(2), "class": Classification(3), "number": Regression(1)}
    heads = MultiTaskHeads(4, tasks, main="main")
    before = {name: heads.linear(name).weight.detach().clone() for name in tasks}
    trainer = Trainer(nn.Linear(4, 4), heads, schedule=schedule, device="cpu", weight_decay=0.0)
    trainer.fit(data, epochs=1)
    moved = {name for name in tasks if not torch.equal(before[name], heads.linear(name).weight)}
    return moved, set(untrained(heads, trainer.history))


@pytest.mark.parametrize("schedule", [MultiTask, FAMO, Uncertainty, Fading])
@pytest.mark.parametrize(
    "wanted",
    [
        lambda i, name: True,
        lambda i, name: i == 0,
        lambda i, name: name == "class",
        lambda i, name: name == "number" and i == 1,
        lambda i, name: False,
    ],
)
def test_what_is_left_out_is_what_has_not_moved(schedule, wanted):
    moved, left_out = trained_on(with_labels(wanted), schedule())
    assert left_out == {"class", "number"} - moved


@pytest.mark.parametrize(
    ("fill", "names"),
    [
        ((), None),
        (("class",), "class"),
        (("class", "number"), "class, number"),
        (("main", "class"), "main, class"),
    ],
)
def test_a_task_that_no_row_has_a_label_of_is_named_at_the_end(caplog, fill, names):
    data = with_labels(lambda i, name: name not in fill)
    if "main" in fill:
        data = [(x, {**targets, "main": torch.full_like(targets["main"], -100)}) for x, targets in data]
    for schedule in (MultiTask(), Switch(at=0.5), Uncertainty()):
        caplog.clear()
        trained_on(data, schedule)
        said = (
            f"every loss of {names} was 0, as where no row has a label, so no step trained the head; check "
        )
        assert caplog.messages == ([] if names is None else [said + "the targets"])


def test_nothing_is_said_of_tasks_that_a_schedule_does_not_weigh(caplog):
    trained_on(with_labels(lambda i, name: False), SingleTask())
    trained_on(with_labels(lambda i, name: True), MultiTask(weights={"class": 0.0}))
    assert caplog.messages == []


def test_a_task_without_a_label_is_not_trained():
    trainer = trainer_of(schedule=MultiTask())
    trainer.fit(batches(), epochs=1)
    assert "b" in trainer.history.steps[-1].losses
    assert untrained(trainer.heads, trainer.history) == ("b",)
    kept = heads_without(trainer.heads, ("b",))
    assert kept.names == kept.active == ("a",)
    assert kept.linear("a").weight is trainer.heads.linear("a").weight
    assert heads_without(trainer.heads, ()) is trainer.heads
