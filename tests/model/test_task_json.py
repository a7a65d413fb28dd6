"""Tasks as JSON and back, and the active ones in a state dict."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load, save

from mt2st_fast import (
    Classification,
    InputError,
    MultiLabel,
    MultiTaskHeads,
    OpenTask,
    Regression,
    tasks_from_json,
    tasks_to_json,
)
from mt2st_fast.kernels import HeadSpec, Kind

TASKS = {
    "zeta": Classification(5, label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5, 1.0, 1.0), pooling="mean"),
    "alpha": MultiLabel(2, pos_weight=(1.0, 3.0)),
    "mid.dle": Regression(3, huber_delta=0.5, pooling="first"),
    "plain": Classification(2),
}


@dataclass(frozen=True)
class Ordinal:
    levels: int
    metric = "r2"

    @property
    def head(self):
        return HeadSpec(Kind.SQUARED, self.levels)


class Own(OpenTask):
    def loss(self, features, targets, mask):
        return features.sum()


def test_tasks_come_back_equal_and_in_their_order_whatever_writes_the_json():
    text = json.dumps(tasks_to_json(TASKS), sort_keys=True, allow_nan=False)
    back = tasks_from_json(json.loads(text))
    assert back == TASKS
    assert tuple(back) == tuple(TASKS)
    assert hash(back["zeta"]) == hash(TASKS["zeta"])


def test_a_task_of_ones_own_comes_back_where_its_class_is_given():
    stored = json.loads(json.dumps(tasks_to_json({"grade": Ordinal(4)})))
    assert tasks_from_json(stored, [Ordinal]) == {"grade": Ordinal(4)}
    with pytest.raises(
        InputError, match=r"the task grade is of the unknown class Ordinal; .*classes=\(Ordinal,\)"
    ):
        tasks_from_json(stored)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "tasks in JSON must be"),
        ([], "tasks in JSON must be"),
        ({"tasks": {"a": 3}}, "tasks in JSON must be"),
        ({"tasks": [{"class": "Classification", "classes": 2}]}, "needs a name and a class"),
        (
            {"tasks": [{"name": "a", "class": "Classification"}]},
            "the task a in JSON is not a valid Classification: .*classes",
        ),
        (
            {"tasks": [{"name": "a", "class": "Classification", "classes": 2, "smoothing": 1}]},
            "the task a in JSON is not a valid Classification: .*smoothing",
        ),
        ({"tasks": [{"name": "a", "class": "Regression", "outputs": 0}]}, "outputs must be a whole number"),
        ({"tasks": [{"name": "a", "class": "Regression"}] * 2}, "two tasks in JSON are named a"),
    ],
)
def test_what_is_no_description_is_refused(stored, message):
    with pytest.raises(InputError, match=message):
        tasks_from_json(stored)


def test_a_loss_of_its_own_is_code_and_not_kept():
    with pytest.raises(InputError, match="the task own cannot be saved: Own computes its own loss"):
        tasks_to_json({"own": Own()})


# --- which tasks are active ----------------------------------------------------------------------------


def heads(main="zeta", tasks=TASKS):
    return MultiTaskHeads(4, tasks, main)


def trained(module):
    return {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}


def test_the_active_tasks_survive_a_file_in_any_precision():
    retired = heads()
    retired.set_active(["zeta", "mid.dle"])
    state = load(save(retired.state_dict()))
    for stored in (state, {name: t.bfloat16() for name, t in state.items()}):
        other = heads()
        other.load_state_dict(stored)
        assert other.active == ("zeta", "mid.dle")
        out = other(
            torch.randn(3, 5, 4), {"zeta": torch.zeros(3, dtype=torch.long), "alpha": torch.ones(3, 5, 2)}
        )
        out.total.backward()
        assert other.linear("alpha").weight.grad is None
        assert other.linear("zeta").weight.grad is not None


def test_loading_leaves_parameters_trainable_until_somebody_says_what_is_active():
    """Or an optimizer that is made of trainable ones after loading would not fit its state from before."""
    retired = heads()
    retired.set_active(["zeta"])
    other = heads()
    other.load_state_dict(retired.state_dict())
    assert len(trained(other)) == 4
    other.set_active(other.active)
    assert trained(other) == {"zeta"}
    other.load_state_dict(heads().state_dict())  # of before the switch: they train again
    assert other.active == tuple(TASKS)
    assert len(trained(other)) == 4


@pytest.mark.parametrize("content", [[], [1, 0], [1, 91, 93], [255, 1], [*b'{"a": 1}'], [1, 1, *b'["zeta"]']])
def test_what_does_not_say_it_is_refused_by_name(content):
    with pytest.raises(ValueError, match="_extra_state of the heads does not list the active tasks"):
        heads().set_extra_state(torch.tensor(content, dtype=torch.uint8))


def test_its_length_does_not_depend_on_what_is_active():
    one = heads()
    before = one.get_extra_state()
    one.set_active(["zeta"])
    assert one.get_extra_state().shape == before.shape
    assert one.get_extra_state().dtype == torch.uint8


def test_weights_of_plain_layers_leave_all_active():
    stored = {name: t for name, t in heads().state_dict().items() if "extra" not in name}
    other = heads()
    other.set_active(["zeta"])
    assert other.load_state_dict(stored) == ([], [])
    assert other.active == ("zeta",)
    with pytest.raises(RuntimeError, match=r"Missing key.*linears\.zeta\.bias"):
        other.load_state_dict({n: t for n, t in stored.items() if n != "linears.zeta.bias"})


def test_other_tasks_keep_what_is_active_of_them():
    stored = heads(tasks={n: TASKS[n] for n in ("zeta", "alpha")})
    stored.set_active(["zeta"])
    other = heads("plain", {n: TASKS[n] for n in ("plain", "alpha", "mid.dle")})
    other.load_state_dict(stored.state_dict(), strict=False)
    assert other.active == ("plain", "mid.dle")


def test_a_copy_is_as_active():
    one = heads()
    one.set_active(["zeta"])
    twin = copy.deepcopy(one)
    assert twin.active == ("zeta",)
    twin.set_active(TASKS)
    assert trained(one) == {"zeta"}
    assert len(trained(twin)) == 4
