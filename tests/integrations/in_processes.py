"""Runs of transformers' Trainer that one process and several can make; each returns what it found, for comparison."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import transformers
from torch.utils.data import IterableDataset

from mt2st_fast import Classification, Regression, Switch
from mt2st_fast.integrations.transformers import DataCollatorForMultiTask, MultiTaskTrainer, PhaseCallback
from tests.integrations.test_transformers import EXAMPLE, TASKS, made_up, small_model
from tests.training.processes.runs import rank_and_count

ROWS, SIZE = 21, 6  # rows of an evaluation, and those of a batch of all processes
MARKED = {
    "tag": Classification(4, ignore_index=-1),
    "genre": Classification(2, pooling="first"),
    "value": Regression(2),
}


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def trainer_of(folder: Path, model: Any, collate: Any, **options: Any) -> MultiTaskTrainer:
    given = {n: options.pop(n) for n in ("train_dataset", "compute_metrics", "callbacks") if n in options}
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False, logging_steps=1,
        save_strategy="no", **{"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant"} | options,
    )  # fmt: skip
    return MultiTaskTrainer(model, arguments, data_collator=collate, **given)


def collator(tasks: Any = TASKS) -> DataCollatorForMultiTask:
    return DataCollatorForMultiTask(EXAMPLE.small_tokenizer(), tasks)


class Omitting:
    """A collator of one's own: a task of which no row of a batch has a label is not in it."""

    def __init__(self, tasks: Any) -> None:
        self.tasks, self.collate = tasks, collator(tasks)

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        has = {name for row in rows for name in row["labels"]}
        batch["labels"] = {name: labels for name, labels in batch["labels"].items() if name in has}
        return batch


# --- evaluations ----------------------------------------------------------------------------------------------


def marked_rows() -> list[Any]:
    """Few have labels of a genre, and these come late; a value that is -100 is one."""
    rows = []
    for k, row in enumerate(made_up(ROWS)):
        n = len(row["input_ids"])
        labels: dict[str, Any] = {"tag": [i % 4 for i in range(n)], "value": [[1.0, -100.0]] * n}
        if k % 3:
            del labels["value"]
        rows.append({**row, "labels": labels | ({"genre": k % 2} if k in (9, 20) else {})})
    return rows


def _evaluated(
    folder: Path, data: Any, collate: Any, size: int | None = None, **options: Any
) -> dict[str, Any]:
    _, count = rank_and_count()
    seen: dict[str, Any] = {}

    def metrics(found: Any, compute_result: bool = True) -> dict[str, float]:
        seen["labels"] = {name: np.asarray(array) for name, array in found.label_ids.items()}
        seen["rows"] = {name: len(array) for name, array in found.predictions.items()}
        return {}

    trainer = trainer_of(
        folder, small_model(MARKED), collate, compute_metrics=metrics,
        per_device_eval_batch_size=size or SIZE // count, **options,
    )  # fmt: skip
    loss = trainer.evaluate(data)["eval_loss"]
    again = trainer.predict(data)
    assert again.metrics["test_loss"] == loss
    return {"loss": loss, "labels": seen["labels"], "rows": seen["rows"], "predicted": again.label_ids}


def evaluation(folder: Path) -> dict[str, Any]:
    return _evaluated(folder, marked_rows(), collator(MARKED))


def omitted(folder: Path) -> dict[str, Any]:
    return _evaluated(folder, marked_rows(), Omitting(MARKED))


def streamed(folder: Path) -> dict[str, Any]:
    """Process 0 reads it. (Batches of several lengths can only be split: accelerate joins others by rows.)"""
    options = {"accelerator_config": {"split_batches": True}} if rank_and_count()[1] > 1 else {}
    return _evaluated(folder, Stream(marked_rows()), collator(MARKED), SIZE, **options)


def split(folder: Path) -> dict[str, Any]:
    _, count = rank_and_count()
    options = {"accelerator_config": {"split_batches": True}} if count > 1 else {}
    trainer = trainer_of(
        folder, small_model(MARKED), collator(MARKED), per_device_eval_batch_size=SIZE, **options
    )
    return {"loss": trainer.evaluate(marked_rows())["eval_loss"]}


def few(folder: Path) -> dict[str, Any]:
    """Fewer rows than processes have places."""
    return _evaluated(folder, marked_rows()[:3], collator(MARKED))


def by_batch(folder: Path) -> dict[str, Any]:
    """Metrics of every batch, as one process computes them of two."""
    _, count = rank_and_count()
    found: list[Any] = []

    def metrics(seen: Any, compute_result: bool) -> dict[str, float]:
        found.append({name: labels.clone() for name, labels in seen.label_ids.items()})
        return {}

    trainer = trainer_of(
        folder, small_model(MARKED), collator(MARKED), compute_metrics=metrics, batch_eval_metrics=True,
        per_device_eval_batch_size=SIZE // count,
    )  # fmt: skip
    return {"loss": trainer.evaluate(marked_rows())["eval_loss"], "batches": found}


# --- training -------------------------------------------------------------------------------------------------


def _trained(folder: Path, rows: list[Any], collate: Any, **options: Any) -> dict[str, Any]:
    _, count = rank_and_count()
    model = small_model()
    trainer = trainer_of(
        folder, model, collate, train_dataset=rows, per_device_train_batch_size=4 // count,
        **{"max_steps": 6, "train_sampling_strategy": "sequential"} | options,
    )  # fmt: skip
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": losses,
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "active": model.heads.active,
    }


def trained(folder: Path) -> dict[str, Any]:
    """Over a switch, with accumulated batches and clipped gradients, and with batches that lack whole tasks."""
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05}
    return _trained(
        folder, made_up(64, 3), Omitting(TASKS), callbacks=[PhaseCallback(Switch(at_step=3))], **options
    )


def main_in_one(folder: Path) -> dict[str, Any]:
    """In a batch, only one process has labels of the main task; in the third, none has any but of the length."""
    rows = []
    for k, row in enumerate(made_up(24)):
        labels = {"length": 0.5} | (
            {"tag": [1] * len(row["input_ids"])} if k % 4 == 1 and k // 4 != 2 else {}
        )
        rows.append({**row, "labels": labels})
    return _trained(folder, rows, Omitting(TASKS))


class Ending:
    """A loader of one's own that yields fewer batches than it says."""

    def __init__(self, says: int, yields: int) -> None:
        self.says, self.yields = says, yields

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Any:
        return iter([collator()(made_up(2, k)) for k in range(self.yields)])


def _with_loader(folder: Path, loader: Ending) -> dict[str, Any]:
    trainer = trainer_of(
        folder, small_model(), collator(), train_dataset=made_up(8), num_train_epochs=2,
        gradient_accumulation_steps=2, callbacks=[PhaseCallback(Switch(at=0.5))],
    )  # fmt: skip
    trainer.get_train_dataloader = lambda: loader
    trainer.train()
    return {}


def ends_early(folder: Path) -> dict[str, Any]:
    return _with_loader(folder, Ending(6, 2 if rank_and_count()[0] else 6))


def is_shorter(folder: Path) -> dict[str, Any]:
    return _with_loader(folder, Ending(*(4, 4) if rank_and_count()[0] else (6, 6)))


def others_have_none(folder: Path) -> dict[str, Any]:
    """Labels of an evaluation by a collator that leaves them out in process 1."""
    collate = collator()

    def without(rows: list[Any]) -> dict[str, Any]:
        batch = collate(rows)
        return batch if dist.get_rank() == 0 else {n: t for n, t in batch.items() if n != "labels"}

    trainer_of(folder, small_model(), without, per_device_eval_batch_size=2).evaluate(made_up(8))
    return {}


def streamed_by_each(folder: Path) -> dict[str, Any]:
    trainer = trainer_of(
        folder, small_model(), collator(), per_device_eval_batch_size=2,
        accelerator_config={"dispatch_batches": False},
    )  # fmt: skip
    told: list[str] = []
    logger = logging.getLogger("mt2st_fast")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    trainer.evaluate(Stream(made_up(9)))
    logger.removeHandler(handler)
    return {"told": told}
