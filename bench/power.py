"""python -m bench.power: power, utilisation, memory and clocks of a GPU while training steps run, and their energy.

A thread queries NVIDIA's management library several times a second. Energy is the difference in the GPU's own
counter if it has one (millijoules since the driver was loaded), else the mean power times the time. Without a GPU,
prints one line and exits with code 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import ledger
from bench.device import NO_GPU
from bench.environment import describe

INTERVAL_SECONDS = 0.05
STEPS_PER_EPOCH = 8  # batches that the models of bench/step_cases.py cycle through


@dataclass(frozen=True)
class Sample:
    """One reading of the GPU."""

    seconds: float
    power_watts: float | None
    utilisation_percent: float | None
    memory_bytes: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None


@dataclass
class Power:
    """The readings during a run."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    energy_joules: float | None = None
    energy_source: str = "not measured"

    def median(self, name: str) -> float | None:
        """Return the median of one quantity; None if the GPU does not report it."""
        values = [value for sample in self.samples if (value := getattr(sample, name)) is not None]
        return statistics.median(values) if values else None


class Sampler:
    """Reads a GPU's sensors in a thread while the context is active; `power` has the readings.

    nvml: the module pynvml, or a substitute. Raises RuntimeError if it does not respond.
    """

    def __init__(self, index: int = 0, nvml: Any = None, interval_seconds: float = INTERVAL_SECONDS) -> None:
        try:
            if nvml is None:
                import pynvml as nvml
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:  # NVMLError, ImportError: NVML is not available
            raise RuntimeError(f"nvidia-ml-py does not answer: {error}") from error
        self._nvml, self._interval_seconds = nvml, interval_seconds
        self.power = Power()

    def __enter__(self) -> Sampler:
        self._stop = threading.Event()
        self._started, self._energy_mj = time.perf_counter(), self._energy()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        power, energy_mj = self.power, self._energy()
        power.seconds = time.perf_counter() - self._started
        mean = [s.power_watts for s in power.samples if s.power_watts is not None]
        if energy_mj is not None and self._energy_mj is not None:
            power.energy_joules = (energy_mj - self._energy_mj) / 1e3
            power.energy_source = "total-energy counter"
        elif mean:
            power.energy_joules = statistics.fmean(mean) * power.seconds
            power.energy_source = "mean power times time"

    def _watch(self) -> None:
        while True:
            self.power.samples.append(self._sample())
            if self._stop.wait(self._interval_seconds):
                return

    def _sample(self) -> Sample:
        nvml, handle = self._nvml, self._handle
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return Sample(
            seconds=time.perf_counter() - self._started,
            power_watts=None if milliwatts is None else milliwatts / 1e3,
            utilisation_percent=self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            memory_bytes=self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            sm_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        )

    def _energy(self) -> float | None:
        return self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    @staticmethod
    def _ask(question: Callable[[], float]) -> float | None:
        with suppress(Exception):  # a GPU supports only some of these queries
            return float(question())
        return None


def measure(run: Callable[[], object], seconds: float, sampler: Sampler) -> tuple[int, Power]:
    """Run repeatedly for about `seconds`; return how often, and what the GPU used meanwhile."""
    torch.cuda.synchronize()
    runs, started = 0, time.perf_counter()
    with sampler:
        while time.perf_counter() - started < seconds:
            for _ in range(20):
                run()
            runs += 20
            torch.cuda.synchronize()
    return runs, sampler.power


def main() -> int:
    """Measure the energy of a step with all tasks and after the switch, with and without graphs."""
    parser = argparse.ArgumentParser(prog="bench.power", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per kind of step")
    parser.add_argument("--records", type=Path, default=ledger.FOLDER, help="folder for the records")
    parser.add_argument("--samples", type=Path, help="JSON file to write all samples to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_GPU.format(done="sampled"))
        return 0
    from bench.step_cases import GPU_STEP_CASES, multi_and_single, switched_and_stl

    device = torch.device("cuda")
    environment = describe(device)
    case = next(case for case in GPU_STEP_CASES if case.name.endswith("N=4096"))
    model = case.build(device)
    steps = multi_and_single(model, skip=lambda name, reason: print(f"skipped {name}: {reason}"))
    steps |= switched_and_stl(model)
    kept: dict[str, Any] = {}
    for name, step in steps.items():
        try:
            runs, power = measure(step, arguments.seconds, Sampler(torch.cuda.current_device()))
        except RuntimeError as error:
            print(error)
            return 0
        kept[name] = {"steps": runs, **asdict(power)}
        _report(name, runs, power)
        if power.energy_joules is not None:
            joules = power.energy_joules / runs
            ledger.append(
                [
                    ledger.make_value(environment, "energy", case.name, model.shape, name, unit, value)
                    for unit, value in (("J/step", joules), ("J/epoch", joules * STEPS_PER_EPOCH))
                ],
                arguments.records,
            )
    if arguments.samples is not None:
        arguments.samples.write_text(json.dumps(kept), encoding="utf-8")
    return 0


def _report(name: str, runs: int, power: Power) -> None:
    def shown(value: float | None, unit: str, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value / scale:,.4g} {unit}"

    joules = power.energy_joules
    print(
        f"{name}: {runs} steps in {power.seconds:.1f} s, "
        f"{shown(None if joules is None else joules / runs, 'J/step')} ({power.energy_source}), "
        f"{shown(power.median('power_watts'), 'W')}, {shown(power.median('utilisation_percent'), '%')} busy, "
        f"{shown(power.median('memory_bytes'), 'MB', 1e6)}, SM {shown(power.median('sm_clock_mhz'), 'MHz')}, "
        f"memory {shown(power.median('memory_clock_mhz'), 'MHz')}"
    )


if __name__ == "__main__":
    sys.exit(main())
