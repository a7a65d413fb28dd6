"""The rows of each training batch: shuffled streams that can be resumed at any batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError

# The share of a batch that has a main label where such labels are rare. They are read again and again, the other rows a
# few times: with more of the few, a step costs more and the run ends no better (docs/claims.md).
MAIN_SHARE = 0.2
# The least share of labelled rows in a single-task batch whose other rows the model has labelled itself. With more of
# the few that are read again and again, a run that lets the other tasks go early ends lower.
LABELLED_SHARE = 1 / 8
OWN_STREAM = 64  # the number of the random stream of those others, apart from those of the sampler's own


def main_is_rare(labelled: np.ndarray, share: float) -> bool:
    """Return whether fewer rows than `share` have a label of the main task; labelled: bool (N,)."""
    return bool(labelled.mean() < share)


class RowStream:
    """Endless shuffled passes over a set of rows; pass p is a permutation seeded by (seed, stream, p)."""

    def __init__(self, rows: np.ndarray, seed: int, stream: int) -> None:
        self._rows = rows
        self._seed = (seed, stream)
        self.seek(0, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def seek(self, pass_number: int, position: int) -> None:
        """Continue at a position in a pass. The shuffle is computed when rows are drawn."""
        self.pass_number, self.position = pass_number, position
        self._order: np.ndarray | None = None

    def draw(self, count: int) -> np.ndarray:
        """Return the next rows, int64 (count,); passes follow one another without a gap."""
        pieces = []
        while True:
            piece = self.order()[self.position : self.position + count]
            self.position += len(piece)
            count -= len(piece)
            pieces.append(piece)
            if not count:
                return np.concatenate(pieces) if len(pieces) > 1 else piece
            self.seek(self.pass_number + 1, 0)

    def order(self) -> np.ndarray:
        """Return all rows in the order of the current pass, from its start."""
        if self._order is None:
            seeds = np.random.SeedSequence((*self._seed, self.pass_number))
            self._order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._rows)
        return self._order


class Sampler:
    """Draws the rows of each training batch; every batch of a phase has the same number of rows.

        labelled    bool (N,): which rows have a label of the main task
        batch_size  rows of a multi-task batch (N where N is smaller)
        share       where fewer rows than this share have a main label, a multi-task batch draws this share of its
                    rows from those and the rest from the others, or else the main task would starve

    A single-task phase only draws rows with a main label, as many as a multi-task batch has of them: the other rows
    serve the other tasks. Once a model has labelled the others, too (`own_labels`), a batch has twice as many rows, of
    which an eighth has a label that was given (or more, where more than an eighth of all rows has one). An epoch is
    ceil(N / batch_size) batches in every phase, so that strategies compare step by step.

    If several processes draw the same batches, each returns its own part of the rows: part[0] of part[1] parts, that
    is, every part[1]-th row, so that rows with a main label are distributed evenly.
    """

    fixed = False
    part = (0, 1)

    def __init__(
        self, labelled: np.ndarray, batch_size: int, share: float = MAIN_SHARE, seed: int = 1
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be positive, not {batch_size}")
        if not 0 < share <= 1:
            raise InputError(
                f"main share {share} is outside (0, 1]; 0.2, for example, draws a fifth of each batch from rows "
                "with a main label"
            )
        if seed < 0:
            raise InputError(f"seed {seed} is negative; use 0 or more")
        if not labelled.any():
            raise InputError("no training row has a label for the main task; label some rows")
        N = len(labelled)
        self.batch_size = min(batch_size, N)
        self.steps_per_epoch = -(-N // self.batch_size)
        self.single_task = False
        self.position = 0  # number of batches of the current epoch already drawn
        self.main_is_rare = main_is_rare(labelled, share)
        self._n_main = max(1, round(share * self.batch_size)) if self.main_is_rare else self.batch_size
        n_with_own = self.rows_a_batch(single_task=True, own_labels=True)
        n_given = round(n_with_own * max(LABELLED_SHARE, float(labelled.mean())))
        self._n_beside_own = min(max(1, n_given), n_with_own - 1)
        self._n_own = n_with_own - self._n_beside_own
        self._identity: dict[str, float] = {
            "rows": N,
            "main_rows": int(labelled.sum()),
            "batch_size": self.batch_size,
        }
        self._identity |= {"share": share, "seed": seed, "fixed": self.fixed}
        row_sets = {"all": np.arange(N), "main": np.flatnonzero(labelled), "other": np.flatnonzero(~labelled)}
        self._streams = {name: RowStream(rows, seed, i) for i, (name, rows) in enumerate(row_sets.items())}
        # The others in the order in which a model labels them: as many as the rest of a run draws.
        self._to_label = RowStream(row_sets["other"], seed, OWN_STREAM)
        self._own: RowStream | None = None
        self._seed = seed

    def rows_a_batch(self, single_task: bool, own_labels: bool = False) -> int:
        """Return the rows of a batch in a single-task or multi-task phase, over all processes.

        own_labels: whether a single-task phase also draws rows without a main label.
        """
        if not single_task:
            return self.batch_size
        return self._n_main * (2 if own_labels else 1)

    def n_to_label(self, batches: int) -> int:
        """Return how many rows without a main label `batches` batches of a single-task phase can draw."""
        return min(batches * self._n_own, len(self._to_label))

    def rows_to_label(self, n_rows: int) -> np.ndarray:
        """Return n_rows random rows without a main label, int64; fewer are the first of more."""
        return self._to_label.order()[:n_rows]

    def draw_own(self, n_rows: int) -> None:
        """From the next batch on, a single-task phase also draws from `rows_to_label(n_rows)`; from none for 0."""
        self._own = RowStream(self.rows_to_label(n_rows), self._seed, OWN_STREAM + 1) if n_rows else None

    def next_rows(self) -> np.ndarray:
        """Return this process's part of the rows of the next batch, int64."""
        first, step = self.part
        return self._draw_rows()[first::step]

    def _draw_rows(self) -> np.ndarray:
        self.position = (self.position + 1) % self.steps_per_epoch
        if not (self.main_is_rare or self.single_task):
            return self._streams["all"].draw(self.batch_size)
        if self.single_task and self._own is not None:
            return np.concatenate(
                [self._streams["main"].draw(self._n_beside_own), self._own.draw(self._n_own)]
            )
        main_rows = self._streams["main"].draw(self._n_main)
        n_other = self.rows_a_batch(self.single_task) - self._n_main
        return np.concatenate([main_rows, self._streams["other"].draw(n_other)]) if n_other else main_rows

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of the streams, in JSON's types."""
        streams = {name: [stream.pass_number, stream.position] for name, stream in self._streams.items()}
        return {
            "position": self.position,
            "single_task": self.single_task,
            "own": None if self._own is None else [len(self._own), self._own.pass_number, self._own.position],
            "streams": streams,
            **self._identity,
        }

    def check_is_of_these(self, state: dict[str, Any]) -> None:
        """Raise InputError if a state is of other data, or of another batch size, share or seed."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise InputError(
                    f"the checkpoint's batches had {name}={state.get(name)}, but these have {value}; resume with the "
                    "checkpoint's data and settings"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises InputError as `check_is_of_these`."""
        self.check_is_of_these(state)
        self.position, self.single_task = state["position"], state["single_task"]
        n_own, *place = state.get("own") or (0,)
        self.draw_own(n_own)
        if self._own is not None:
            self._own.seek(*place)
        for name, stream in self._streams.items():
            stream.seek(*state["streams"][name])


class FixedSampler(Sampler):
    """A Sampler that composes the batches of a phase once: passes only differ in the order of the batches.

    Batches have at most batch_size rows and differ in size by at most one row; those of a single-task phase have at
    most as many rows as a multi-task batch has of the main task. Where main labels are rare, a batch of a multi-task
    phase has its share of them; the batches of a pass contain every row with one at least once, and every other row
    once.
    """

    fixed = True

    def __init__(
        self, labelled: np.ndarray, batch_size: int, share: float = MAIN_SHARE, seed: int = 1
    ) -> None:
        super().__init__(labelled, batch_size, share, seed)
        rows = {name: stream.order() for name, stream in self._streams.items()}
        self._batches = {
            "multi_task": self._multi_task_batches(**rows),
            "single_task": _split(rows["main"], self._n_main),
        }
        first = len(self._streams)
        self._streams = {
            phase: RowStream(np.arange(len(batches)), seed, first + i)
            for i, (phase, batches) in enumerate(self._batches.items())
        }

    def next_number(self) -> int:
        """Return the number of the next batch among those of the phase."""
        self.position = (self.position + 1) % self.steps_per_epoch
        return int(self._streams[self._phase].draw(1)[0])

    def rows_of(self, number: int) -> np.ndarray:
        """Return this process's part of the rows of a batch, int64."""
        first, step = self.part
        return self._batches[self._phase][number][first::step]

    def next_rows(self) -> np.ndarray:
        """Return the rows of the next batch, int64 (B,)."""
        return self.rows_of(self.next_number())

    @property
    def _phase(self) -> str:
        return "single_task" if self.single_task else "multi_task"

    def _multi_task_batches(self, all: np.ndarray, main: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
        n_other = self.batch_size - self._n_main
        if not self.main_is_rare:
            return _split(all, self.batch_size)
        if not n_other:
            return _split(main, self.batch_size)
        n_batches = max(_parts(other, n_other), _parts(main, self._n_main))
        others = np.array_split(other, n_batches)
        mains = np.resize(main, (n_batches, self._n_main))  # repeated as often as needed
        return [np.concatenate(rows) for rows in zip(mains, others, strict=True)]


class RowsAhead:
    """Rows that are drawn before their batches are needed; the sampler can be put back to the last batch used."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._before: dict[str, Any] = {}
        self._drawn = self._used = 0

    @property
    def left(self) -> int:
        """The number of batches whose rows are drawn and not yet used."""
        return self._drawn - self._used

    def draw(self, most: int) -> list[np.ndarray]:
        """Return the rows of at most `most` of the next batches, none of them in the next epoch."""
        self._before = self._sampler.state_dict()
        self._used, self._drawn = 0, min(most, self._sampler.steps_per_epoch - self._sampler.position)
        return [self._sampler.next_rows() for _ in range(self._drawn)]

    def use(self) -> int:
        """Return the index, among the last drawn rows, of the next batch to use."""
        self._used += 1
        return self._used - 1

    def put_back(self) -> None:
        """Reset the sampler to just after the batch that was used last, discarding what was drawn beyond."""
        if self.left:
            self._sampler.load_state_dict(self._before)
            for _ in range(self._used):
                self._sampler.next_rows()
        self._drawn = self._used = 0


def _split(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Split into as few parts of at most `most` rows as possible, of sizes as equal as possible."""
    return np.array_split(rows, _parts(rows, most))


def _parts(rows: np.ndarray, most: int) -> int:
    return -(-len(rows) // most)


def check_active(active: Sequence[str], tasks: Sequence[str], main: str) -> tuple[str, ...]:
    """Return the active tasks as a tuple. Raises InputError for an unknown task or a phase without the main task."""
    unknown = [task for task in active if task not in tasks]
    if unknown:
        raise InputError(f"these batches have no task {unknown[0]!r}; available: {', '.join(tasks)}")
    if main not in active:
        raise InputError(
            f"a phase needs the main task {main!r}; its active tasks: {', '.join(active) or 'none'}"
        )
    return tuple(active)
