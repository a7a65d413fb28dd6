"""The heads that a run leaves to its model: never one that still has its initial weights."""

from __future__ import annotations

import pytest

from mt2st_fast import InputError, MultiTask, SingleTask, Switch, load_model, train_supervised
from mt2st_fast.words.trained_heads import heads_without, untrained
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


def test_a_task_without_a_label_is_not_trained():
    trainer = trainer_of(schedule=MultiTask())
    trainer.fit(batches(), epochs=1)
    assert "b" in trainer.history.steps[-1].losses
    assert untrained(trainer.heads, trainer.history) == ("b",)
    kept = heads_without(trainer.heads, ("b",))
    assert kept.names == kept.active == ("a",)
    assert kept.linear("a").weight is trainer.heads.linear("a").weight
    assert heads_without(trainer.heads, ()) is trainer.heads
