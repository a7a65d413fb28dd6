"""Several processes say what they cannot do, all of them in the same line; and go by one word where they disagree."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.processes.together import run_together

LINES = {
    "wrapped": "the encoder is wrapped in DistributedDataParallel, but the Trainer exchanges all gradients itself",
    "wrapped_in_fsdp1": "the encoder is wrapped in FullyShardedDataParallel, whose gradients cannot be combined here",
    "batch_norm": "encoder.1 is a BatchNorm1d, whose statistics 2 processes do not share; use LayerNorm",
    "fused": 'backward="fused" is for one process: 2 exchange the gradients of every step',
    "shuffled_alike": "train is the same data in all 2 processes, so each would train on all of it; use sampler",
    "longer_in_one": "process 1 of 2 has a pass of 4 steps, process 0 has 3 steps: give every process the same "
    "number of batches",
    "another_scheduler": "process 1 of 2 has lr_scheduler ConstantLR, process 0 has LinearLR",
    "own_metric": "the metric of classes, <lambda>, needs all rows in one process, but 2 processes measure a part each",
    "another_rate": "process 1 of 2 has lr 0.2, process 0 has 0.1",
    "another_weight_decay": "process 1 of 2 has weight_decay of the optimizer 0.1, process 0 has 0.0: start all",
    "another_rate_of_the_optimizer": "process 1 of 2 has lr of the optimizer 0.2, process 0 has 0.1: start all",
    "other_class_weights": "process 1 of 2 has the task classes Classification(classes=4",
    "another_dropout": "process 1 of 2 has the encoder's 1 p=0.5, inplace=False, process 0 has None",
    "frozen_elsewhere": "process 1 of 2 trains other tasks or parameters than process 0",
    "slowed_in_one": "process 1 of 2 trains other tasks or parameters than process 0, or with another learning rate",
    "validated_in_one": "process 1 of 2 has val given, process 0 has None",
    "bags_without_rows": "train is the same in all 2 processes, and its batches cannot be divided by rows",
    "another_corpus": "train has different data or another position in process 1 of 2 than in process 0",
    "context": "the context batches of context cannot be divided among 2 processes",
    "by_losses": "FAMO weighs a step by its losses before and after it, which is for one process",
    "once_a_task": "AdaTask keeps optimizer moments per task, which is for one process",
    "layers_of_their_own": "several processes exchange the gradients of one pass, but a TaskAdaptedEncoder has",
    "unfrozen_in_one": "process 1 of 2 trains other tasks or parameters than process 0",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    names = [*LINES, "whims", "apart", "bytes_of_rows"]
    return run_together("refused", names, tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize("name", LINES)
def test_what_cannot_be_done_is_said_by_all(name: str, found: dict[str, list[Any]]) -> None:
    for result in found[name]:
        assert result["error"].startswith("InputError: ")
        assert LINES[name] in result["error"]
        assert "\n" not in result["error"]


def test_a_schedule_of_somebody_s_own_goes_by_process_0(found: dict[str, list[Any]]) -> None:
    for result in found["whims"]:
        phases = result["history"]["phases"]
        assert [(p["first_step"], p["active"]) for p in phases] == [
            (0, ("classes", "weighted")),
            (3, ("classes",)),
        ]


def test_processes_that_train_apart_do_not_wait(found: dict[str, list[Any]]) -> None:
    first, second = found["apart"]
    assert not torch.equal(first["weights"], second["weights"])


def test_a_step_sends_the_rows_of_its_batch(found: dict[str, list[Any]]) -> None:
    """Their gradients, and where the processes share the moments, the new values of as many rows."""
    for result in found["bytes_of_rows"]:
        assert result["of rows"] <= result["sent"] <= 2.05 * result["of rows"]
    first, second = found["bytes_of_rows"]
    assert torch.equal(first["table"], second["table"])
