"""What cannot go well is refused before anything is trained, in a line that names it and the fix."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    EarlyStopping,
    InputError,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    Switch,
    Trainer,
    WindowEncoder,
    load_modules,
    save_modules,
    tasks_to_json,
)

INPUTS = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
TARGETS = {"a": INPUTS[:, :3].argmax(1), "b": INPUTS[:, :2].argmax(1)}
BATCH = (INPUTS, TARGETS)


def trainer(encoder=None, tasks=None, **options):
    torch.manual_seed(0)
    tasks = tasks or {"a": Classification(3), "b": Classification(2)}
    return Trainer(encoder or nn.Linear(6, 8), MultiTaskHeads(8, tasks, main="a"), device="cpu", **options)


def test_two_loaders_that_label_one_task():
    loaders = {"a": [(INPUTS, {"a": TARGETS["a"]})], "b": [BATCH]}
    with pytest.raises(
        InputError, match="two loaders have targets of a at step 0, which would count twice; leave"
    ):
        trainer(schedule=MultiTask()).fit(loaders, epochs=1)


def test_a_class_for_a_schedule():
    with pytest.raises(TypeError, match=r"schedule is the class Switch; pass an instance, Switch\(\)"):
        trainer(schedule=Switch)


def test_a_device_that_there_is_not():
    with pytest.raises(ValueError, match="device gpu is unknown; available: auto, cpu, cuda"):
        Trainer(nn.Linear(6, 8), MultiTaskHeads(8, {"a": Classification(3)}, main="a"), device="gpu")


def test_nothing_to_train():
    training = trainer(nn.Linear(6, 8).requires_grad_(False))
    training.heads.requires_grad_(False)
    with pytest.raises(InputError, match="every parameter of encoder and heads is frozen"):
        training.fit([BATCH], epochs=1)


def test_early_stopping_without_evaluations():
    with pytest.raises(InputError, match="EarlyStopping needs evaluations, but there are none; pass val="):
        trainer(callbacks=[EarlyStopping(2)]).fit([BATCH], epochs=1)


def test_a_folder_for_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="is a folder; pass the name of a file"):
        trainer().fit([BATCH], epochs=1, checkpoint=tmp_path)


def test_a_file_that_is_no_checkpoint_is_not_overwritten(tmp_path):
    mine, checkpoint = tmp_path / "train.py", tmp_path / "checkpoint"
    mine.write_text("print()")
    with pytest.raises(InputError, match=r"train.py is not a checkpoint and would be overwritten"):
        trainer().fit([BATCH], epochs=1, checkpoint=mine)
    assert mine.read_text() == "print()"
    with pytest.raises(InputError, match=r"below cannot be written \(.*\); choose another file"):
        trainer().fit([BATCH], epochs=1, checkpoint=mine / "below")
    checkpoint.touch()  # as tempfile makes it
    for _ in range(2):
        trainer().fit([BATCH], epochs=1, checkpoint=checkpoint)


def test_one_text_for_a_list_of_tasks():
    with pytest.raises(TypeError, match=r"tasks must be a list of names, not the string 'ab'; pass \['ab'\]"):
        MultiTaskHeads(8, {"a": Classification(2), "b": Classification(2)}, main="a").set_active("ab")


def test_a_mask_that_is_added_to_attention():
    heads = MultiTaskHeads(4, {"a": Classification(2, pooling="mean")}, main="a")
    features, targets = torch.randn(2, 3, 4), {"a": torch.tensor([0, 1])}
    added = torch.tensor([[0.0, 0.0, -1e9]] * 2)
    with pytest.raises(ValueError, match=r"mask must contain only 0 and 1 \(True for real tokens\)"):
        heads(features, targets, mask=added)
    ones = torch.tensor([[1.0, 1.0, 0.0]] * 2)
    assert heads(features, targets, mask=ones).total == heads(features, targets, mask=ones.bool()).total


class Number(OpenTask):
    def loss(self, features, targets, mask):
        return 0.5


def test_a_loss_that_is_no_tensor():
    training = trainer(tasks={"a": Classification(3), "b": Number()}, schedule=MultiTask())
    with pytest.raises(
        TypeError, match=r"the loss of b must be a tensor \(\), with its gradient, not a float"
    ):
        training.fit([BATCH], epochs=1)


# --- what is taken, and kept ---------------------------------------------------------------------------------


def test_weights_as_tensors_are_kept_in_models(tmp_path):
    tasks = {
        "a": Classification(3, class_weights=torch.tensor([1.0, 2, 3])),
        "b": MultiLabel(2, pos_weight=torch.tensor([1.0, 4])),
    }
    assert json.loads(json.dumps(tasks_to_json(tasks)))["tasks"][0]["class_weights"] == [1.0, 2.0, 3.0]
    encoder = WindowEncoder(9, 8, hidden=8)
    save_modules(tmp_path / "m", encoder, MultiTaskHeads(8, tasks, main="a"))
    assert load_modules(tmp_path / "m")[1].tasks == tasks


class OfTensors:
    def task_weights(self, moment, main, auxiliary):
        return {main: torch.tensor(1.0), **dict.fromkeys(auxiliary, torch.tensor(0.5))}


def test_a_schedule_that_gives_tensors_is_kept_in_checkpoints(tmp_path):
    history = trainer(schedule=OfTensors()).fit([BATCH], epochs=2, checkpoint=tmp_path / "c")
    assert history.steps[-1].weights == {"a": 1.0, "b": 0.5}


def _on_module(trainer, called):
    trainer.encoder.hidden.register_forward_hook(lambda *_: called.append(1))


def _on_head(trainer, called):
    trainer.heads.linear("a").register_forward_hook(lambda *_: called.append(1))


def _on_parameter(trainer, called):
    trainer.encoder.hidden.weight.register_hook(lambda _: called.append(1))


def _on_optimizer(trainer, called):
    # From the first instance on, torch runs hooks in its step, which ours calls.
    torch.optim.AdamW([torch.zeros(1)])
    trainer.run.optimizer.register_step_post_hook(lambda *_: called.append(1))


@pytest.mark.parametrize("register", [_on_module, _on_head, _on_parameter, _on_optimizer])
def test_a_hook_that_comes_within_a_phase_is_called(register):
    called = []

    class Hook(Callback):
        def on_record(self, trainer, record):
            if record.step == 4:
                register(trainer, called)

    words = torch.randint(0, 50, (20, 5))
    batch = (words, {"a": words[:, 2] % 3, "b": words[:, 1] % 2})
    encoder = WindowEncoder(50, 8, hidden=8, sparse=True)
    training = trainer(encoder, schedule=MultiTask(), log_every=1, callbacks=[Hook()])
    history = training.fit([batch] * 10, epochs=1)
    assert len(called) == 6
    assert history.phases[0].engine == "one kernel call"
    assert "has hooks" in history.phases[0].passed_over["one kernel call"]


def test_targets_that_change_before_a_second_backward_pass_are_noticed():
    heads = MultiTaskHeads(6, {"a": Classification(3)}, main="a")
    targets = TARGETS["a"].clone()
    total = heads(INPUTS, {"a": targets}).total
    total.backward(retain_graph=True)
    total.backward(retain_graph=True)
    targets.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_models_of_doubles_stay_so(tmp_path):
    encoder = WindowEncoder(9, 8, hidden=8).double()
    heads = MultiTaskHeads(8, {"a": Classification(3), "b": Classification(2)}, main="a").double()
    save_modules(tmp_path / "m", encoder, heads)
    for kept, given in zip(load_modules(tmp_path / "m"), (encoder, heads), strict=True):
        for name, value in given.state_dict().items():
            assert kept.state_dict()[name].dtype is value.dtype
            assert torch.equal(kept.state_dict()[name], value), name


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_labels_that_are_no_shares(backend):
    heads = MultiTaskHeads(6, {"a": MultiLabel(2)}, main="a", backend=backend)
    targets = torch.tensor([[0.0, 1.0], [1.0, float("nan")], [-100.0, 0.0], [0.5, 2.0]])
    heads(INPUTS[:2], {"a": targets[:2]})
    with pytest.raises(ValueError, match=r"targets of a: -100 lies outside \[0, 1\] and is not NaN"):
        heads(INPUTS[:4], {"a": targets})
    with pytest.raises(InputError, match=r"held-out targets of a: each of 2 lies outside \[0, 1\]"):
        Trainer(nn.Identity(), heads, device="cpu").evaluate([(INPUTS[:4], {"a": targets})])


def test_a_batch_of_empty_bags_before_another():
    encoder = BagEncoder(10, 4, sparse=True)
    heads = MultiTaskHeads(4, {"a": Classification(3)}, main="a")
    empty = (torch.zeros(0, dtype=torch.long), torch.tensor([0, 0]))
    words = (torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]))
    for inputs, target in ((empty, [1]), (words, [0, 2]), (empty, [1])):
        heads(encoder(inputs), {"a": torch.tensor(target)}).total.backward()
    assert encoder.table.grad.to_dense().abs().sum(1).gt(0).tolist() == [n in (1, 2, 3) for n in range(10)]
