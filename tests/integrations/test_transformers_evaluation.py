"""Evaluations by MultiTaskTrainer: the loss over all labels, and marks where transformers pads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast import Classification, InputError, Regression

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from mt2st_fast.integrations.transformers import DataCollatorForMultiTask, MultiTaskTrainer  # noqa: E402
from tests.integrations.test_transformers import COLLATE, EXAMPLE, TASKS, made_up, small_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there


def evaluation(folder, model, rows, size, compute_metrics=None, tasks=TASKS, **options):
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        per_device_eval_batch_size=size, **options,
    )  # fmt: skip
    collate = DataCollatorForMultiTask(EXAMPLE.small_tokenizer(), tasks)
    return MultiTaskTrainer(
        model, arguments, eval_dataset=rows, data_collator=collate, compute_metrics=compute_metrics
    )


@pytest.mark.parametrize("weights_of", [{}, {"tag": 1.0, "genre": 0.25, "length": 2.0}])
def test_the_loss_of_an_evaluation_is_that_of_one_batch_whatever_labels_are_missing(tmp_path, weights_of):
    model, rows = small_model(), made_up(30)
    model.heads.set_weights(weights_of or None)
    model.eval()
    expected = model(**COLLATE(rows)).loss.item()
    of_tasks = dict(zip(model.heads.active, model(**COLLATE(rows)).losses.tolist(), strict=True))
    for size in (2, 7, 30):
        trainer = evaluation(tmp_path, model, rows, size, lambda seen: {"other_loss": 7.0})
        measured = trainer.evaluate()
        assert measured["eval_loss"] == pytest.approx(expected, abs=1e-6)
        assert measured["eval_other_loss"] == 7.0
        assert {task: measured[f"eval_{task}_loss"] for task in of_tasks} == pytest.approx(of_tasks, abs=1e-6)
        assert trainer.predict(rows).metrics["test_loss"] == pytest.approx(expected, abs=1e-6)
    model.heads.set_active(["tag"])
    expected = model(**COLLATE(rows)).loss.item()
    measured = evaluation(tmp_path, model, rows, 4, lambda seen: {"genre_loss": 7.0}).evaluate()
    assert measured["eval_loss"] == measured["eval_tag_loss"] == pytest.approx(expected, abs=1e-6)
    assert measured["eval_tag_loss"] == pytest.approx(
        of_tasks["tag"], abs=1e-6
    )  # as before the others retired
    assert measured["eval_genre_loss"] == 7.0  # the metric of that name
    assert "eval_length_loss" not in measured


def omitting(rows):
    """A collator of one's own: labels of a task that no row of the batch has are not in it."""
    batch = COLLATE(rows)
    has = {name for row in rows for name in row["labels"]}
    batch["labels"] = {name: labels for name, labels in batch["labels"].items() if name in has}
    return batch


def test_tasks_that_batches_lack_are_missing_in_them(tmp_path):
    rows = [
        row | {"labels": {n: v for n, v in row["labels"].items() if (n == "tag") == (k < 6)}}
        for k, row in enumerate(made_up(12))
    ]
    seen = {}

    def metrics(found):
        seen.update(found.label_ids)
        return {}

    model = small_model()
    loss = evaluation(tmp_path, model, rows, 12, metrics).evaluate()["eval_loss"]
    wanted = dict(seen)
    trainer = evaluation(tmp_path, model, rows, 3, metrics)
    trainer.data_collator = omitting
    for active in (model.heads.names, ("tag",)):  # then of half of the batches no active task has labels
        model.heads.set_active(active)
        if len(active) == 1:
            loss = evaluation(tmp_path, model, rows, 12).evaluate()["eval_loss"]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-6)
        assert seen.keys() == wanted.keys()
        for name, labels in wanted.items():
            np.testing.assert_array_equal(seen[name], labels)
    with pytest.raises(InputError, match=r"are of genre, length, and of none of the active tasks tag"):
        trainer.evaluate(rows[6:])


@pytest.mark.parametrize("options", [{}, {"eval_accumulation_steps": 2}])
def test_places_behind_the_rows_of_an_evaluation_are_marked_as_missing(tmp_path, options):
    tasks = {"tag": Classification(4, ignore_index=-1), "value": Regression(2)}
    rows = [
        {
            **row,
            "labels": {"tag": [0] * len(row["input_ids"]), "value": [[1.0, -100.0]] * len(row["input_ids"])},
        }
        for row in made_up(13)
    ]
    seen = {}

    def metrics(found):
        predictions, labels = found
        assert predictions["value"].shape == labels["value"].shape
        seen.update(labels)
        return {}

    trainer = evaluation(tmp_path, small_model(tasks), rows, 3, metrics, tasks, **options)
    trainer.evaluate()
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    real = (torch.arange(int(lengths.max())) < lengths[:, None]).numpy()
    for labels in (dict(seen), trainer.predict(rows).label_ids):
        assert (labels["tag"][real] == 0).all()
        assert (labels["tag"][~real] == -1).all()
        assert (labels["value"][real] == [1.0, -100.0]).all()
        assert torch.from_numpy(labels["value"][~real]).isnan().all()
