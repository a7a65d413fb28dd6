"""The energy of training steps, from the NVIDIA GPU's counter of all energy that it uses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from mt2st_fast.training.callbacks.callback import Callback, Training
from mt2st_fast.training.history import Evaluation, StepRecord

Joules = Callable[[], float]


def energy_counter(device: torch.device, nvml: Any = None) -> tuple[Joules | None, str]:
    """Return (joules that the device has used so far, what is counted), or (None, why it is not measured).

    nvml: the module pynvml of nvidia-ml-py, or a replacement for it.
    """
    if device.type != "cuda":
        return None, f"energy is not measured: no energy counter is supported on {device.type}"
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return None, "energy is not measured: nvidia-ml-py is not installed (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES may number the GPUs differently.
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
    """Appends to `history.joules`, at every record, the energy that a device has used in training steps so far.

    Evaluations and checkpoints between records are left out. If a run resumes from a checkpoint between two records,
    the energy of some steps was never measured, and the total is unknown.
    """

    def __init__(self, counter: Joules) -> None:
        self._counter, self._mark = counter, 0.0
        self._unknown = False

    def on_fit_start(self, trainer: Training) -> None:
        """Start counting here."""
        joules = trainer.history.joules
        self._unknown = trainer.step > 0 and (not joules or joules[-1][0] != trainer.step)
        if self._unknown:
            joules.clear()
        self._mark = self._counter()

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """Record the energy: the device has already been waited for."""
        del record
        self._enter(trainer)

    def on_step(self, trainer: Training) -> None:
        """Record the energy if the run stops here, as it resumes from here."""
        if trainer.stop_requested:
            self._enter(trainer)

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Leave out the energy of the evaluation."""
        del trainer, evaluation
        self._mark = self._counter()

    def on_epoch_end(self, trainer: Training) -> None:
        """Leave out the energy of writing a checkpoint."""
        del trainer
        self._mark = self._counter()

    def _enter(self, trainer: Training) -> None:
        now, joules = self._counter(), trainer.history.joules
        if not self._unknown:
            before = joules[-1][1] if joules else 0.0
            joules.append((trainer.step, before + now - self._mark))
        self._mark = now
