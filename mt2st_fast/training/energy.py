"""The energy of training steps, by the counter that an NVIDIA GPU keeps of all that it uses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from mt2st_fast.training.callbacks import Callback, Training
from mt2st_fast.training.history import Evaluation, StepRecord

Joules = Callable[[], float]


def energy_counter(device: torch.device, nvml: Any = None) -> tuple[Joules | None, str]:
    """(joules that the device has used so far, what is counted), or (None, why nobody tells).

    nvml: the module pynvml of nvidia-ml-py, or what stands in for it.
    """
    if device.type != "cuda":
        return None, f"energy is not measured: no counter of it is read on {device.type}"
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return None, "energy is not measured: nvidia-ml-py is not installed (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
        # By its own name: CUDA_VISIBLE_DEVICES may number the GPUs otherwise.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return None, f"energy is not measured: NVML says {error}"
    return (
        lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        "energy is all that the GPU used while training steps ran, idle power included, by its own counter",
    )


class MeasuringEnergy(Callback):
    """Enters into `history.joules`, at every record, what a device has used in training steps so far.

    Evaluations and checkpoints between records are left out. A run that goes on from a checkpoint within two records
    has steps that nobody measured: its energy is unknown.
    """

    def __init__(self, counter: Joules) -> None:
        self._counter, self._mark = counter, 0.0
        self._unknown = False

    def on_fit_start(self, trainer: Training) -> None:
        """From here on it counts."""
        joules = trainer.history.joules
        self._unknown = trainer.step > 0 and (not joules or joules[-1][0] != trainer.step)
        if self._unknown:
            joules.clear()
        self._mark = self._counter()

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """The device has been waited for."""
        del record
        self._enter(trainer)

    def on_step(self, trainer: Training) -> None:
        """A run that is stopped here goes on from here."""
        if trainer.stop_requested:
            self._enter(trainer)

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Not what evaluating took."""
        del trainer, evaluation
        self._mark = self._counter()

    def on_epoch_end(self, trainer: Training) -> None:
        """Nor what writing a checkpoint took."""
        del trainer
        self._mark = self._counter()

    def _enter(self, trainer: Training) -> None:
        now, joules = self._counter(), trainer.history.joules
        if not self._unknown:
            before = joules[-1][1] if joules else 0.0
            joules.append((trainer.step, before + now - self._mark))
        self._mark = now
