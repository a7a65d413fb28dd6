"""The tasks of heads cannot be changed after layers and losses were made for them."""

import copy
import pickle

import pytest

from mt2st_fast import Classification, InputError, MultiTaskHeads

CHANGES = {
    "replaced": lambda tasks: tasks.__setitem__("a", Classification(3, label_smoothing=0.5)),
    "added": lambda tasks: tasks.update(c=Classification(2)),
    "added in place": lambda tasks: tasks.__ior__({"c": Classification(2)}),
    "added if missing": lambda tasks: tasks.setdefault("c", Classification(2)),
    "deleted": lambda tasks: tasks.__delitem__("b"),
    "popped": lambda tasks: tasks.pop("b"),
    "popped last": lambda tasks: tasks.popitem(),
    "cleared": lambda tasks: tasks.clear(),
}


@pytest.mark.parametrize(
    ("name", "value"), [("tasks", {"a": Classification(3)}), ("main", "b"), ("names", ("b", "a"))]
)
def test_tasks_and_main_task_cannot_be_set(name, value):
    heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(2)}, main="a")
    for each in (heads, copy.deepcopy(heads), pickle.loads(pickle.dumps(heads))):
        with pytest.raises(InputError, match="nor which is the main one"):
            setattr(each, name, value)
        assert (each.main, each.names) == ("a", ("a", "b"))


@pytest.mark.parametrize("change", CHANGES)
def test_tasks_of_heads_cannot_be_changed(change):
    heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(2)}, main="a")
    before = dict(heads.tasks)
    for each in (heads, copy.deepcopy(heads), pickle.loads(pickle.dumps(heads))):
        with pytest.raises(InputError, match=r"cannot be changed.*set_active"):
            CHANGES[change](each.tasks)
        assert each.tasks == before
        assert each.task("b") == Classification(2)


def test_a_subclass_may_repeat_its_arguments():
    class Own(MultiTaskHeads):
        def __init__(self, width, tasks, main):
            super().__init__(width, tasks, main)
            self.tasks, self.main = tasks, main

    heads = Own(4, {"a": Classification(3), "b": Classification(2)}, "a")
    with pytest.raises(InputError, match="cannot be changed"):
        heads.tasks["b"] = Classification(4)
