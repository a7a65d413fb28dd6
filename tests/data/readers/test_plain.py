"""Raw text: sentences without any task."""

from mt2st_fast.data import open_data
from tests.data.readers.opened import message_of


def test_text_has_no_tasks_and_says_so(write):
    path = write(**{"x.txt": "One line.\n\n" + "another one\n" * 9}) / "x.txt"
    splits = open_data(f"text:{path}")
    assert (splits.main, splits.tasks, splits.train.targets) == (None, (), {})
    assert splits.train.n_units == 8
    message = message_of(f"text:{path}", main="upos")
    able = "stdlib, columns:PATH, conllu:PATH, csv:PATH"
    assert f"has no labels for task 'upos'; use a reader with labels: {able}" in message
