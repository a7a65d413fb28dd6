"""The state of a comparison, written after every run, so that a stopped comparison continues with its current run."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeGuard

from mt2st_fast.data import Splits
from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically
from mt2st_fast.model_folder import has_comparison
from mt2st_fast.runs.arms import Arm, arms_of
from mt2st_fast.runs.comparison_options import ComparisonOptions
from mt2st_fast.runs.comparison_schema import SeedRun, Trial
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.tuning import chosen, trials_of
from mt2st_fast.spelling import in_shell

FILE = "compare.progress.json"
CHECKPOINT = "checkpoint/last.safetensors"


class DivergedRun(TypedDict):
    """A run without results; diverged: the line that says where its loss ceased to be finite."""

    seed: int
    diverged: str


def _has_diverged(run: SeedRun | DivergedRun) -> TypeGuard[DivergedRun]:
    return "diverged" in run


def _has_results(run: SeedRun | DivergedRun) -> TypeGuard[SeedRun]:
    return "diverged" not in run


@dataclass
class ComparisonState:
    """The finished runs of a comparison by arm, in seed order, its finished trials, and the current run.

    fixed: options that the user has given, which trials do not change. trials: by strategy, in their order. current:
    ["trial", strategy, number] or ["run", arm, seed] of the run in progress; the folder has its checkpoint, if it got
    that far.
    """

    config: Config
    comparison: ComparisonOptions
    fixed: list[str] = field(default_factory=list)
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    runs: dict[str, list[SeedRun | DivergedRun]] = field(default_factory=dict)
    current: list[Any] = field(default_factory=list)
    data: str = ""  # digest of the first seed's data
    # Highest load of the machine at the start and when resumed, where the system has it.
    load: float | None = None

    def note_load(self) -> None:
        """Note the load that other processes put on the machine; call this before anything runs here."""
        with suppress(OSError, AttributeError):
            self.load = max(self.load or 0.0, os.getloadavg()[0])

    def check_data(self, splits: Splits) -> None:
        """Raise InputError if the finished runs used other data."""
        corpora = (splits.train, splits.dev, splits.test)
        words = splits.vocabulary.digest  # corpora have numbers in place of words
        digest = " ".join([words, *(corpus.digest(splits.tasks)[:16] for corpus in corpora)])
        if self.data not in ("", digest):
            raise InputError(
                f"{self.config.data} has changed since the comparison began; restore the data, or compare again "
                "without --resume"
            )
        self.data = digest

    @property
    def arms(self) -> list[Arm]:
        """The arms to compare."""
        return arms_of(self.comparison.strategies, self.comparison.engine)

    @property
    def reported_seeds(self) -> range:
        """The seeds of the reported runs."""
        return range(self.config.seed, self.config.seed + self.comparison.seeds)

    @property
    def tuning_seed(self) -> int:
        """The seed of the trials, which no reported run has."""
        return self.config.seed + self.comparison.seeds

    @property
    def n_done(self) -> int:
        """The number of finished runs, including trials."""
        return sum(map(len, self.runs.values())) + sum(map(len, self.trials.values()))

    @property
    def diverged(self) -> dict[int, str]:
        """The seeds of which a run diverged, with the line of the first arm that did."""
        lines = [
            (run["seed"], run["diverged"])
            for arm in reversed(self.arms)
            for run in self.runs[arm.name]
            if _has_diverged(run)
        ]
        return dict(sorted(dict(lines).items()))

    @property
    def whole_runs(self) -> dict[str, list[SeedRun]]:
        """The runs of each arm, of the seeds that no arm diverged on: those of a seed are compared with each other."""
        diverged = self.diverged
        return {
            arm.name: [
                run for run in self.runs[arm.name] if _has_results(run) and run["seed"] not in diverged
            ]
            for arm in self.arms
        }

    @property
    def n_all(self) -> int:
        """The number of runs of the whole comparison, including trials."""
        return len(self.arms) * self.comparison.seeds + sum(
            len(self.trials_of(strategy)) for strategy in self.comparison.strategies
        )

    def trials_of(self, strategy: str) -> list[dict[str, float]]:
        """Return the values of all trials of a strategy; the first `n_trials` of them are finished."""
        tune = self.comparison.tune
        return trials_of(self.config, strategy, tune, self.fixed) if tune else []

    def tuned(self, strategy: str) -> dict[str, float]:
        """Return the values that the trials selected, the same for every engine; empty without trials."""
        trials = self.trials.get(strategy, [])
        return trials[chosen(strategy, trials)]["values"] if trials else {}

    def is_done(self, arm: str, seed: int) -> bool:
        """Whether that run is finished."""
        return any(run["seed"] == seed for run in self.runs.get(arm, ()))

    def n_trials(self, strategy: str) -> int:
        """Return how many trials of a strategy are finished."""
        return len(self.trials.get(strategy, ()))

    def begin(self, folder: Path, kind: Literal["trial", "run"], name: str, number: int) -> bool:
        """Note that this run is the current one; return whether it continues from a checkpoint of a stopped run."""
        checkpoint = folder / CHECKPOINT
        if self.current == [kind, name, number] and checkpoint.exists():
            return True
        checkpoint.unlink(missing_ok=True)
        self.current = [kind, name, number]
        self.write(folder)
        return False

    def end_trial(self, folder: Path, trial: Trial) -> None:
        """Store the current trial, which is finished."""
        self.trials.setdefault(self.current[1], []).append(trial)
        self._end(folder)

    def end_run(self, folder: Path, run: SeedRun | DivergedRun) -> None:
        """Store the current run, which is finished."""
        self.runs.setdefault(self.current[1], []).append(run)
        self._end(folder)

    def _end(self, folder: Path) -> None:
        self.current = []
        self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the state to the folder."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> ComparisonState:
        """Read what `write` wrote. Raises InputError where it is missing or damaged."""
        path = folder / FILE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            made = {
                "config": Config.from_json(stored["config"]),
                "comparison": ComparisonOptions.from_json(stored["comparison"]),
            }
            return cls(**{**stored, **made})
        except FileNotFoundError:
            if has_comparison(folder):
                raise InputError(
                    f"the comparison in {folder} is finished, so there is nothing to resume; "
                    f"to make its report again, run: mt2st-fast report {in_shell(folder)}"
                ) from None
            raise InputError(
                f"no comparison to resume in {folder}: {FILE} is missing; compare without --resume"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); compare again without --resume") from error

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the files that are only needed for resuming."""
        for name in (FILE, CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        if (folder / CHECKPOINT).parent.is_dir() and not any((folder / CHECKPOINT).parent.iterdir()):
            (folder / CHECKPOINT).parent.rmdir()
