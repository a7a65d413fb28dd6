"""Training of word vectors on a text as a run: its rate, phases and history, and the step that advances it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mt2st_fast.compiling import stopwatch
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import stream_key
from mt2st_fast.kernels.context.training import ContextOptions, TextTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream
from mt2st_fast.training.history import History, PhaseRecord, StepRecord
from mt2st_fast.training.schedules import Moment, Schedule, checked_weights
from mt2st_fast.training.schedules.abilities import NONE, check_allowed
from mt2st_fast.words.table_tasks import TableTasks

MAIN = "context"  # the text's own task
ENGINE = "context rounds"  # the engine's name, for the record of a phase
# A round has at most this many words of a shard, and a corpus has at least this many rounds.
MOST_ROUND_WORDS, LEAST_ROUND_WORDS, LEAST_ROUNDS = 8192, 512, 200
# By experiment (bench/words.py). Skip-gram needs 30 negatives per word, CBOW 5: with 16 for a tile skip-gram is more
# than twice as fast, but loses 0.03 on WordSim-353; CBOW loses nothing with 8 if rounds are short.
# In a short text the few tiles of CBOW must draw more: with 8 the neighbours of a word changed with the seed. (Not
# tried with subwords.)
SHARED = {"skipgram": 64, "cbow": 8}
SHARED_OF_SHORT, SHORT_TEXT_WORDS = 64, 200_000
# Two shards are stable by themselves and learn a little more without; with 2 and 0.5, eight were stable too.
PULL = {"skipgram": 2.0, "cbow": 0.5}
STABLE_SHARDS = 2
# Per epoch, returns to Python at most this often, and after at least this many words: for Ctrl-C, and tasks' turns.
MOST_CHUNKS, LEAST_CHUNK_WORDS = 20, 200_000


def context_options(
    mode: str, n_words: int, *, window: int, negatives: int, shards: int, subwords: bool
) -> ContextOptions:
    """Return the options for a text of n_words; rounds are short if the text is."""
    round_words = n_words // (shards * LEAST_ROUNDS)
    return ContextOptions(
        mode=mode,
        window=window,
        negatives=negatives,
        shared=SHARED_OF_SHORT if n_words < SHORT_TEXT_WORDS and not subwords else SHARED[mode],
        # A subword of many words is visited much more often than a word.
        pull=PULL[mode] if shards > STABLE_SHARDS or subwords else 0.0,
        shards=shards,
        shard_words=int(np.clip(round_words, LEAST_ROUND_WORDS, MOST_ROUND_WORDS)),
    )


@dataclass(frozen=True)
class ContextPlan:
    """The plan of a run over a text.

    rate, least_rate   the learning rate falls from `rate` to `least_rate` over the run, word by word
    seed, epochs_before   random draws in an epoch depend on the seed and the number of epochs before it, including
        those of earlier runs on the same tables
    """

    epochs: int
    rate: float
    least_rate: float
    seed: int
    epochs_before: int = 0


class ContextRun:
    """Context prediction over one text, with turns of auxiliary tasks on the same vectors; a step is a chunk of rounds.

    It is separate from `Run`, not one of its engines: an engine passes batches of a source through an encoder, heads
    and a torch optimizer, while here a kernel reads the text itself and moves the tables in place, at a rate that falls
    by the word. Schedules, moments, phases and history are the same; every step is recorded at once. Tables on a device
    are copied to the arrays that they came from at the end of every epoch.

    steps_done: chunks so far. history: losses of every step and turn; a step in which no pair of the text was measured
    has no loss for it. epoch_losses: the mean loss per pair in every finished epoch.
    epoch_loss_sums: the sum over all pairs of the epoch, from those that were measured.
    """

    def __init__(
        self,
        training: TextTraining,
        text: Tokens,
        tasks: TableTasks,
        schedule: Schedule,
        plan: ContextPlan,
    ) -> None:
        n_words = len(text.ids)
        self._training, self._text, self._tasks = training, text, tasks
        if tasks.names:
            check_weighs_only(schedule)
        self._schedule, self._plan = schedule, plan
        self._rounds = training.rounds(n_words)
        self.steps_per_epoch = (
            MOST_CHUNKS if tasks.names else min(MOST_CHUNKS, -(-n_words // LEAST_CHUNK_WORDS))
        )
        self.total_steps = plan.epochs * self.steps_per_epoch
        self._rate_fall = (plan.rate - plan.least_rate) / (n_words * max(1, plan.epochs))  # per word
        self.steps_done, self.history = 0, History(MAIN)
        self.epoch_losses: list[float] = []
        self.epoch_loss_sums: list[float] = []
        self._epoch_loss, self._epoch_pairs = 0.0, 0  # of the current epoch

    @property
    def moment(self) -> Moment:
        """The current step, counted from 0."""
        return Moment(self.steps_done, self.steps_per_epoch, self.total_steps)

    def step(self) -> StepRecord:
        """Take the tasks' turn and the next chunk of rounds, entering a phase first if one is due.

        Raises InputError, naming epoch and rate, if a loss or a vector is no longer finite.
        """
        weights = self._enter_phase_if_due()
        seconds_since = stopwatch()
        epoch, chunk = divmod(self.steps_done, self.steps_per_epoch)
        rate = max(self._plan.least_rate, self._rate_after(epoch + chunk / self.steps_per_epoch))
        turns = self._tasks.take_turn(weights, rate, self.steps_per_epoch)
        losses = self._read_chunk(epoch, chunk) | turns
        self._check_finite(losses, epoch, rate)
        self.steps_done += 1
        if self.steps_done % self.steps_per_epoch == 0:
            self._end_epoch()
        seconds = seconds_since()
        record = StepRecord(
            step=self.steps_done,
            epoch=self.steps_done / self.steps_per_epoch,
            total=sum(weights[name] * losses[name] for name in losses),
            losses=losses,
            weights=weights,
            learning_rate=rate,
            step_ms=1e3 * seconds,
            train_seconds=self.history.train_seconds + seconds,
        )
        self.history.steps.append(record)
        return record

    def finish_epoch(self) -> float:
        """Take the steps to the end of the current epoch; returns its mean loss per pair."""
        epochs = len(self.epoch_losses)
        while len(self.epoch_losses) == epochs:
            self.step()
        return self.epoch_losses[-1]

    def losses_of(self, task: str) -> list[float]:
        """Return the losses of a task in the steps that have one."""
        return [record.losses[task] for record in self.history.steps if task in record.losses]

    def close(self) -> None:
        """Release the tasks' files."""
        self._tasks.close()

    def _enter_phase_if_due(self) -> dict[str, float]:
        """Return the weights by active task. The text's weight is 1: the learning rate refers to it."""
        weights: dict[str, float] = {}
        if self._tasks.active:  # a text without tasks may be given a schedule made for the tasks of another
            weights = checked_weights(
                self._schedule,
                self._schedule.task_weights(self.moment, MAIN, self._tasks.names),
                MAIN,
                self._tasks.names,
            )
            self._tasks.retire_but(weights)
        active = (MAIN, *self._tasks.active)
        if not self.history.phases or self.history.phases[-1].active != active:
            self.history.phases.append(PhaseRecord(self.steps_done, active, engine=ENGINE))
        return {name: 1.0 if name == MAIN else weights[name] for name in active}

    def _rate_after(self, epochs: float) -> float:
        return self._plan.rate - self._rate_fall * epochs * len(self._text.ids)

    def _read_chunk(self, epoch: int, chunk: int) -> dict[str, float]:
        """Read one of the epoch's even shares of rounds, which may be empty for a short text."""
        first, last = (self._rounds * i // self.steps_per_epoch for i in (chunk, chunk + 1))
        if first == last:
            return {}
        plan, text = self._plan, self._text
        key = stream_key(plan.seed, plan.epochs_before + epoch)
        rates = Rates(self._rate_after(epoch), self._rate_fall, plan.least_rate)
        loss, pairs = self._training.run(Stream(text.ids, text.bounds, key), (first, last), rates)
        self._epoch_loss, self._epoch_pairs = self._epoch_loss + loss, self._epoch_pairs + pairs
        return {MAIN: loss / pairs} if pairs else {}

    def _check_finite(self, losses: dict[str, float], epoch: int, rate: float) -> None:
        lost = [f"the loss of {name}" for name, loss in losses.items() if not math.isfinite(loss)]
        # A kernel bounds a pair's loss, so vectors can become non-finite without a sign of it there.
        if not lost and not self._training.finite():
            lost = ["a vector"]
        if lost:
            tasks = ", ".join((MAIN, *self._tasks.active))
            raise InputError(
                f"{lost[0]} is no longer finite at step {self.steps_done} of {self.total_steps}, in epoch "
                f"{self._plan.epochs_before + epoch + 1}, trained on {tasks} at a rate of {rate:g}; lower the "
                f"initial rate ({self._plan.rate:g})"
            )

    def _end_epoch(self) -> None:
        self._training.store()
        self.epoch_loss_sums.append(self._epoch_loss / self._training.measured)
        self.epoch_losses.append(self._epoch_loss / max(1, self._epoch_pairs))
        self._epoch_loss, self._epoch_pairs = 0.0, 0


def check_weighs_only(schedule: Schedule) -> None:
    """Raises InputError for a schedule that does more than weigh tasks by the moment.

    A text's kernel moves the vectors in place, and has no gradients, no evaluations and no heads.
    """
    check_allowed(
        schedule,
        NONE,
        why_not="which training word vectors on a text does not support; use a schedule that depends on the step "
        "alone, such as Switch or Diminish",
    )
