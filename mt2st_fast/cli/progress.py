"""Progress bars, one with live losses and task weights; silent if there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

from mt2st_fast.cli.bars import progress_bars
from mt2st_fast.cli.terminal import say
from mt2st_fast.compiling import on_compile
from mt2st_fast.runs.formatting import shown
from mt2st_fast.training.callbacks.callback import Callback, Training
from mt2st_fast.training.history import Evaluation, PhaseRecord, StepRecord

MOST_TASKS_SHOWN = 4
COMPILING = "compiling kernels for this machine (only the first time)"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what a command does within the block, for how long, and the kernel that is compiled."""
    with ExitStack() as shown:
        progress = shown.enter_context(progress_bars())
        bar = progress.add_task(what, total=None)
        if progress.console.is_terminal:  # otherwise a single log message says so
            told = on_compile(
                lambda kernel: progress.update(bar, description=f"{what}: {COMPILING}: {kernel.strip('_')}")
            )
            shown.enter_context(told)
        yield


class TrainingProgress(Callback):
    """Shows steps, losses, weights and the main task's quality on standard error; use it as a context manager."""

    def __init__(self, total_steps: int, label: str = "train") -> None:
        state = TextColumn("{task.fields[state]}", markup=False)
        self._progress = progress_bars(MofNCompleteColumn(), TimeRemainingColumn(), state)
        self._console = self._progress.console
        self._bar = self._progress.add_task(label, total=total_steps, state="")
        self._losses, self._quality = "", ""
        self._compiled = 0
        self._watching = ExitStack()

    def __enter__(self) -> TrainingProgress:
        if self._console.is_terminal:  # otherwise a single log message says so
            self._watching.enter_context(on_compile(self._compiling))
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._watching.close()

    def _compiling(self, kernel: str) -> None:
        self._compiled += 1
        state = f"{COMPILING}: {kernel.strip('_')} ({self._compiled})"
        self._progress.update(self._bar, state=state)

    def on_phase(self, trainer: Training, phase: PhaseRecord) -> None:
        """Print a permanent line for every change of the active tasks."""
        if self._console.is_terminal:
            say(self._console, f"step {phase.first_step}: training {', '.join(phase.active)}")

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """Show loss × weight of the first tasks."""
        first = list(record.losses.items())[:MOST_TASKS_SHOWN]
        parts = [f"{task} {loss:.3f}×{record.weights[task]:.2g}" for task, loss in first]
        more = len(record.losses) - len(first)
        self._losses = "  ".join(parts) + (f"  +{more}" if more > 0 else "")
        self._update(trainer)

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Show the main task's development quality."""
        self._quality = f"dev {shown(evaluation.metrics[trainer.heads.main])}"
        self._update(trainer)

    def _update(self, trainer: Training) -> None:
        state = f"{self._quality}  {self._losses}"
        self._progress.update(self._bar, completed=trainer.step, state=state)
