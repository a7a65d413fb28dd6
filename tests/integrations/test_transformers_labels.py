"""Where the labels of a run of transformers are: in columns of a data set, in no row, or on heads that are frozen."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from mt2st_fast import InputError, Switch  # noqa: E402
from mt2st_fast.integrations.transformers import MultiTaskTrainer, PhaseCallback  # noqa: E402
from tests.integrations.test_transformers import COLLATE, DEFAULTS, made_up, small_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there


def trainer_of(folder, rows, kind=MultiTaskTrainer, model=None, **options):
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1,
        train_sampling_strategy="sequential", **DEFAULTS | {"max_steps": 3} | options,
    )  # fmt: skip
    return kind(
        small_model() if model is None else model, arguments, train_dataset=rows, eval_dataset=rows,
        data_collator=COLLATE, callbacks=[PhaseCallback(Switch(at=0.6))],
    )  # fmt: skip


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] + [
        trainer.evaluate()["eval_loss"]
    ]


def flat(rows):
    return [
        {name: part for name, part in row.items() if name != "labels"}
        | dict.fromkeys(COLLATE.tasks)
        | row["labels"]
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["list", "data set", "stream"])
def test_columns_of_tasks_are_kept_and_are_labels(tmp_path, kind):
    rows, columns = made_up(12), flat(made_up(12))
    if kind != "list":
        columns = pytest.importorskip("datasets").Dataset.from_list(columns)
    if kind == "stream":
        columns = columns.to_iterable_dataset()
    assert losses(trainer_of(tmp_path, columns)) == losses(trainer_of(tmp_path, rows))


def test_columns_that_transformers_removes_are_missed(tmp_path):
    columns = pytest.importorskip("datasets").Dataset.from_list(flat(made_up(12)))
    with pytest.raises(InputError, match='no column "labels" and none of a task'):
        trainer_of(tmp_path, columns, transformers.Trainer).train()
    trainer_of(tmp_path, columns, transformers.Trainer, remove_unused_columns=False).train()


def test_a_run_without_any_label_says_so_and_has_no_loss_to_compare(tmp_path, caplog):
    rows = [row | {"labels": {}} for row in made_up(12)]
    trainer = trainer_of(tmp_path, rows)
    trainer.train()
    assert caplog.text.count("no row of the first step has a label of tag, genre, length") == 1
    assert "eval_loss" not in trainer.evaluate()
    caplog.clear()
    losses(trainer_of(tmp_path, made_up(12)))
    assert "no row" not in caplog.text


def test_adapters_beside_frozen_heads_are_told_of(tmp_path, caplog):
    peft = pytest.importorskip("peft")
    adapted = [
        peft.get_peft_model(
            small_model(), peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=kept)
        )
        for kept in (["heads"], None)
    ]
    trainer_of(tmp_path, made_up(12), model=adapted[0]).train()
    assert "frozen" not in caplog.text
    trainer_of(tmp_path, made_up(12), model=adapted[1]).train()
    assert "the heads of tag, genre, length are frozen" in caplog.text
