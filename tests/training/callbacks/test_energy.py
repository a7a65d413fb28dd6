"""Energy of training steps: counted at records, without evaluations, and through a stop; unknown where steps are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mt2st_fast import Callback
from mt2st_fast.training.callbacks.energy import MeasuringEnergy, energy_counter
from tests.training.small_runs import Stop, batches, trainer_of


class Meter:
    """10 J a step and 1,000 J an evaluation."""

    def __init__(self):
        self.joules = 5e6

    def __call__(self):
        return self.joules


class Using(Callback):
    def __init__(self, meter):
        self.meter = meter

    def on_step(self, trainer):
        self.meter.joules += 10

    def on_evaluation(self, trainer, evaluation):
        self.meter.joules += 1000


def fit(*more, **options):
    meter = Meter()
    trainer = trainer_of(callbacks=[Using(meter), *more, MeasuringEnergy(meter)])
    return trainer.fit(batches(), val=batches(), evaluate_every=4, epochs=2, **options)


def test_steps_are_counted_and_evaluations_are_not():
    assert fit().joules == [(s, 10.0 * s) for s in (3, 4, 6, 8, 9, 12, 15, 16)]


def test_a_run_that_was_stopped_goes_on_counting(tmp_path):
    path = tmp_path / "run.safetensors"
    assert fit(Stop(5), checkpoint=path).joules[-1] == (5, 50.0)
    assert fit(checkpoint=path, resume=True).joules[-1] == (16, 160.0)


def test_steps_that_nobody_measured_leave_it_unknown(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer_of(callbacks=[Stop(5)]).fit(batches(), epochs=2, checkpoint=path)
    assert fit(checkpoint=path, resume=True).joules == []


class Error(Exception):
    pass


def nvml(**functions):
    return SimpleNamespace(NVMLError=Error, nvmlInit=lambda: None, **functions)


def test_who_does_not_answer_is_named(monkeypatch):
    counter, reason = energy_counter(torch.device("cpu"))
    assert counter is None
    assert "on cpu" in reason

    def refuses(uuid):
        raise Error("Not Supported")

    properties = SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    counter, reason = energy_counter(torch.device("cuda"), nvml(nvmlDeviceGetHandleByUUID=refuses))
    assert counter is None
    assert "Not Supported" in reason


def test_a_gpu_is_found_by_its_own_name_and_counts_in_millijoules(monkeypatch):
    properties = SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    answers = nvml(
        nvmlDeviceGetHandleByUUID={"GPU-1-2-3": 7}.__getitem__,
        nvmlDeviceGetTotalEnergyConsumption={7: 4200}.__getitem__,
    )
    counter, what = energy_counter(torch.device("cuda"), answers)
    assert counter() == pytest.approx(4.2)
    assert "idle power included" in what
