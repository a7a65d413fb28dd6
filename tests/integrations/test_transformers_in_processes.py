"""MultiTaskTrainer in two processes: what one finds on the same rows, whatever labels are where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.processes.together import run_together

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from mt2st_fast import InputError
from mt2st_fast.integrations.transformers import MultiTaskTrainer
from tests.integrations import in_processes
from tests.integrations.test_transformers import COLLATE, made_up, small_model, transformers

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there

EVALUATED = ["evaluation", "omitted", "streamed", "few"]
TRAINED = ["trained", "main_in_one"]
REFUSED = {
    "ends_early": r"process 1 of 2 has no batch left for a step that others have batches for \(2, 0\)",
    "is_shorter": "process 0 would train for 6 steps, 3 of them an epoch, and process 1 of 2 for 4 steps, 2 of them",
    "others_have_none": "a batch of the evaluation has other labels in process 1 of 2 than in process 0",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    names = [*EVALUATED, *TRAINED, "split", "by_batch", "streamed_by_each", *REFUSED]
    return run_together("integrations.in_processes", names, tmp_path_factory.mktemp("two"))


def assert_same_arrays(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other[name]), err_msg=name)


@pytest.mark.parametrize("name", EVALUATED)
def test_an_evaluation_finds_what_one_process_finds(name: str, found: Any, tmp_path: Path) -> None:
    """Rows of an incomplete last batch count once, and places without a label have the task's own mark."""
    alone = getattr(in_processes, name)(tmp_path)
    labels = alone["labels"]
    n = 3 if name == "few" else in_processes.ROWS
    assert {task: len(array) for task, array in labels.items()} == dict.fromkeys(in_processes.MARKED, n)
    assert not np.any(labels["tag"] == -100)
    assert np.any(labels["value"] == -100)
    for of_one in found[name]:
        assert "error" not in of_one, of_one
        assert of_one["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert of_one["rows"] == alone["rows"]
        for part in ("labels", "predicted"):
            assert_same_arrays(of_one[part], alone[part])


def test_a_batch_that_is_split_counts_once(found: Any, tmp_path: Path) -> None:
    alone = in_processes.split(tmp_path)
    assert [of_one["loss"] for of_one in found["split"]] == [pytest.approx(alone["loss"], rel=1e-6)] * 2


def test_metrics_by_batch_see_the_marks_of_their_tasks(found: Any, tmp_path: Path) -> None:
    alone = in_processes.by_batch(tmp_path)
    for of_one in found["by_batch"]:
        assert of_one["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert len(of_one["batches"]) == len(alone["batches"])
        for own, wanted in zip(of_one["batches"], alone["batches"], strict=True):
            assert_same_arrays(own, wanted)


@pytest.mark.parametrize("name", TRAINED)
def test_training_is_that_of_one_process_whatever_labels_a_process_lacks(
    name: str, found: Any, tmp_path: Path
) -> None:
    alone = getattr(in_processes, name)(tmp_path)
    for of_one in found[name]:
        assert "error" not in of_one, of_one
        assert of_one["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-4)
        assert of_one["active"] == alone["active"]
        for weight, value in alone["weights"].items():
            torch.testing.assert_close(of_one["weights"][weight], value, rtol=1e-4, atol=1e-5, msg=weight)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_wait_for_ever_is_refused_in_every_process(name: str, found: Any) -> None:
    for of_one in found[name]:
        assert "error" in of_one
        with pytest.raises(InputError, match=REFUSED[name]):
            raise InputError(of_one["error"])


def test_rows_of_a_stream_that_may_count_twice_are_told_of(found: Any) -> None:
    for of_one in found["streamed_by_each"]:
        assert len(of_one["told"]) == 1
        assert "may count twice" in of_one["told"][0]


def test_several_gpus_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    monkeypatch.setattr(type(arguments), "n_gpu", 2)
    with pytest.raises(InputError, match=r"2 GPUs in one process .*torchrun --nproc-per-node 2"):
        MultiTaskTrainer(small_model(), arguments, train_dataset=made_up(4), data_collator=COLLATE)
