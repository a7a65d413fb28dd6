"""Execute the runs of a comparison: trials first, then every arm on every seed, with stopping and resuming."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console

from mt2st_fast.cli.progress import TrainingProgress, waiting
from mt2st_fast.cli.reading import read_data
from mt2st_fast.cli.signals import StoppingOnSignals
from mt2st_fast.cli.terminal import say
from mt2st_fast.data import Splits
from mt2st_fast.runs.arms import Arm
from mt2st_fast.runs.baseline_run import summary_of
from mt2st_fast.runs.comparison_state import CHECKPOINT, ComparisonState
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.run_schema import RunSummary
from mt2st_fast.runs.tuning import trial_result, with_values
from mt2st_fast.spelling import in_shell
from mt2st_fast.training.callbacks.energy import MeasuringEnergy, energy_counter
from mt2st_fast.training.divergence import NonFiniteLossError


@dataclass
class ComparisonRunner:
    """Executes a comparison in a folder from its state; first: the first seed's data."""

    state: ComparisonState
    folder: Path
    first: Splits
    console: Console
    stopping: StoppingOnSignals
    checkpoint_seconds: float

    def check(self) -> Experiment:
        """Find runs that cannot work before anything runs; return an experiment of the first arm."""
        for arm in reversed(self.state.arms):
            experiment = Experiment.prepare(self._config(arm), self.first)
            experiment.check()
            for values in self.state.trials_of(arm.strategy):
                with_values(experiment.config, values).schedule()
        return experiment

    def tune(self) -> None:
        """Run the remaining trials: the same trial of all strategies, then the next."""
        state, asked = self.state, self.state.comparison
        trials = {strategy: state.trials_of(strategy) for strategy in asked.strategies}
        left = [
            (number, strategy)
            for number in range(asked.tune)
            for strategy, of_strategy in trials.items()
            if state.n_trials(strategy) <= number < len(of_strategy)
        ]
        if not left:
            return
        seed = state.tuning_seed
        splits = read_data(replace(state.config, seed=seed))
        for number, strategy in left:
            values = trials[strategy][number]
            config = with_values(self._config(Arm(strategy, strategy, asked.engine[0])), values)
            label = f"{strategy}, trial {number + 1} of {asked.tune}"
            resumes = state.begin(self.folder, "trial", strategy, number)
            try:
                summary = self._run(replace(config, seed=seed), splits, label, resumes)
                result = trial_result(values, summary, None)
            except NonFiniteLossError as error:  # such a learning rate must not be chosen
                result = trial_result(values, None, str(error).removeprefix(f"{label}: "))
            state.end_trial(self.folder, result)
        for strategy in asked.strategies:
            values = state.tuned(strategy)
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            say(self.console, f"tuned {strategy}: {shown or 'nothing to tune, all of its options are set'}")

    def run(self) -> None:
        """Execute the remaining runs, by seed and then by arm, so that a machine that slows down affects all arms."""
        state = self.state
        self._warm_up()
        for seed in state.reported_seeds:
            left = [arm for arm in state.arms if not state.is_done(arm.name, seed)]
            own = seed == state.config.seed or not left
            splits = self.first if own else read_data(replace(state.config, seed=seed))
            for arm in left:
                config = with_values(self._config(arm), state.tuned(arm.strategy))
                resumes = state.begin(self.folder, "run", arm.name, seed)
                label = f"{arm.name}, seed {seed}"
                try:
                    summary = self._run(replace(config, seed=seed), splits, label, resumes)
                except NonFiniteLossError as error:  # one run must not cost all others their report
                    say(self.console, f"{error}; the other runs go on")
                    state.end_run(self.folder, {"seed": seed, "diverged": str(error)})
                else:
                    state.end_run(self.folder, {"seed": seed, **summary})

    def _warm_up(self) -> None:
        """Take a few uncounted steps of every arm, so that no arm's time includes costs that occur once per process.

        Kernels are loaded, threads start, memory is touched; otherwise the first arm of the first seed would pay for
        all that.
        """
        with waiting("warm up"):
            for arm in self.state.arms:
                config = with_values(self._config(arm), self.state.tuned(arm.strategy))
                Experiment.prepare(config, self.first).warm_up()

    def _config(self, arm: Arm) -> Config:
        return self.state.config.for_strategy(arm.strategy).on_engine(arm.engine)

    def _run(self, config: Config, splits: Splits, label: str, resumes: bool) -> RunSummary:
        """Return the summary of one run.

        Raises Exit if a signal stopped it, which leaves its checkpoint, and NonFiniteLossError, naming the run, if it
        diverged.
        """
        experiment = Experiment.prepare(config, splits)
        bar = TrainingProgress(experiment.total_steps, label)
        counter, _ = energy_counter(experiment.trainer.device)
        meters = [] if counter is None else [MeasuringEnergy(counter)]
        experiment.trainer.callbacks += [bar, self.stopping, *meters]
        try:
            with bar:
                experiment.run(self.folder / CHECKPOINT, resumes, self.checkpoint_seconds)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{label}: {error}") from error
        if not experiment.is_over:
            say(
                self.console,
                f"Stopped at step {experiment.trainer.step} of {experiment.total_steps} of {label}; "
                f"{self.state.n_done} of {self.state.n_all} runs are done. "
                f"Continue with: mt2st-fast compare --resume --out {in_shell(self.folder)}",
            )
            raise typer.Exit(self.stopping.exit_code)
        return summary_of(experiment)
