"""Which rows stand in which training batch: shuffled streams that can be resumed at any batch."""

from collections.abc import Sequence

import numpy as np

from mt2st_fast.errors import InputError


class RowStream:
    """Endless shuffled passes over a set of rows; pass p is a permutation seeded by (seed, stream, p)."""

    def __init__(self, rows: np.ndarray, seed: int, stream: int):
        self._rows = rows
        self._seed = (seed, stream)
        self.seek(0, 0)

    def seek(self, pass_number: int, position: int) -> None:
        """Continue in the given pass at the given position. The shuffle is made when rows are drawn."""
        self.pass_number, self.position = pass_number, position
        self._order: np.ndarray | None = None

    def draw(self, count: int) -> np.ndarray:
        """The next rows, int64 (count,); passes follow one another without a gap."""
        order = self._current_order()
        piece = order[self.position : self.position + count]
        self.position += len(piece)
        if len(piece) == count:
            return piece
        self.seek(self.pass_number + 1, 0)
        return np.concatenate([piece, self.draw(count - len(piece))])

    def draw_pass(self) -> np.ndarray:
        """All rows in the order of the current pass, from its start."""
        return self._current_order()

    def _current_order(self) -> np.ndarray:
        if self._order is None:
            seeds = np.random.SeedSequence((*self._seed, self.pass_number))
            self._order = np.random.Generator(np.random.PCG64(seeds)).permutation(self._rows)
        return self._order


class Sampler:
    """Draws the rows of each training batch; every batch of a phase has the same number of rows.

    labelled    bool (N,): which rows carry a label of the main task
    batch_size  rows of a multi-task batch (N where N is smaller)
    share       where fewer rows than this share carry a main label, a multi-task batch draws this share of
                its rows from those and the rest from the others, or the main task would starve

    A single-task phase draws rows with a main label alone, as many as a multi-task batch has of them: rows that are
    there for other tasks are work for other tasks. An epoch is ceil(N / batch_size) batches in every phase, so that
    strategies compare step by step and the main task is given the same in each.

    Of several processes that draw the same batches each hands out its own part of the rows: number `part[0]` of
    part[1], every part[1]-th row, so that rows with a main label are shared out evenly.
    """

    fixed = False
    part = (0, 1)

    def __init__(self, labelled: np.ndarray, batch_size: int, share: float = 0.5, seed: int = 1):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} is not positive")
        if not 0 < share <= 1:
            raise InputError(
                f"main share {share} is outside (0, 1]; 0.5 draws half of a batch from rows with a main label"
            )
        if seed < 0:
            raise InputError(f"seed {seed} is negative; use 0 or more")
        if not labelled.any():
            raise InputError("no training row has a label of the main task")
        N = len(labelled)
        self.batch_size = min(batch_size, N)
        self.steps_per_epoch = -(-N // self.batch_size)
        self.single_task = False
        self.position = 0  # batches of the current epoch already drawn
        self.main_is_rare = bool(labelled.mean() < share)
        self._n_main = max(1, round(share * self.batch_size)) if self.main_is_rare else self.batch_size
        self._identity: dict[str, float] = {
            "rows": N,
            "main_rows": int(labelled.sum()),
            "batch_size": self.batch_size,
        }
        self._identity |= {"share": share, "seed": seed, "fixed": self.fixed}
        row_sets = {"all": np.arange(N), "main": np.flatnonzero(labelled), "other": np.flatnonzero(~labelled)}
        self._streams = {name: RowStream(rows, seed, i) for i, (name, rows) in enumerate(row_sets.items())}

    def rows_a_batch(self, single_task: bool) -> int:
        """Rows of a batch in a phase of either kind, all processes' parts together."""
        return self._n_main if single_task else self.batch_size

    def next_rows(self) -> np.ndarray:
        """The own part of the rows of the next batch, int64."""
        first, step = self.part
        return self._draw_rows()[first::step]

    def _draw_rows(self) -> np.ndarray:
        self.position = (self.position + 1) % self.steps_per_epoch
        if self.single_task:
            return self._streams["main"].draw(self.rows_a_batch(single_task=True))
        if not self.main_is_rare:
            return self._streams["all"].draw(self.batch_size)
        main_rows = self._streams["main"].draw(self._n_main)
        n_other = self.batch_size - self._n_main
        return np.concatenate([main_rows, self._streams["other"].draw(n_other)]) if n_other else main_rows

    def state_dict(self) -> dict:
        """Where the streams stand, in JSON's types."""
        streams = {name: [stream.pass_number, stream.position] for name, stream in self._streams.items()}
        return {
            "position": self.position,
            "single_task": self.single_task,
            "streams": streams,
            **self._identity,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state_dict` was taken.

        Raises InputError where the data, batch size, share or seed differ.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise InputError(
                    f"the checkpoint's batches had {name}={state.get(name)}, these have {value}; "
                    "resume with the data and settings of the checkpoint"
                )
        self.position, self.single_task = state["position"], state["single_task"]
        for name, stream in self._streams.items():
            stream.seek(*state["streams"][name])


class FixedSampler(Sampler):
    """A Sampler that puts a phase's batches together once: only their order is another one in every pass over them.

    Batches have at most batch_size rows and are of equal size to within a row, those of a single-task phase at most as
    many as a multi-task batch has of the main task. Where main labels are rare a batch of a multi-task phase has
    its share of them; the batches of a pass hold every row with one at least once, and every other row once.
    """

    fixed = True

    def __init__(self, labelled: np.ndarray, batch_size: int, share: float = 0.5, seed: int = 1):
        super().__init__(labelled, batch_size, share, seed)
        rows = {name: stream.draw_pass() for name, stream in self._streams.items()}
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
        """The number of the next batch among those of the phase."""
        self.position = (self.position + 1) % self.steps_per_epoch
        return int(self._streams[self._phase].draw(1)[0])

    def rows_of(self, number: int) -> np.ndarray:
        """The own part of the rows of a batch, int64."""
        first, step = self.part
        return self._batches[self._phase][number][first::step]

    def next_rows(self) -> np.ndarray:
        """The rows of the next batch, int64 (B,)."""
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
        mains = np.resize(main, (n_batches, self._n_main))  # over and over again
        return [np.concatenate(rows) for rows in zip(mains, others, strict=True)]


class RowsAhead:
    """Rows that are drawn before their batches are asked for; the sampler can be put back to where those stand."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._before: dict = {}
        self._drawn = self._used = 0

    @property
    def left(self) -> int:
        """Batches whose rows are drawn and not yet used."""
        return self._drawn - self._used

    def draw(self, most: int) -> list[np.ndarray]:
        """The rows of the next batches, at most so many and none of the next epoch."""
        self._before = self._sampler.state_dict()
        self._used, self._drawn = 0, min(most, self._sampler.steps_per_epoch - self._sampler.position)
        return [self._sampler.next_rows() for _ in range(self._drawn)]

    def use(self) -> int:
        """The place, among what was drawn last, of the batch that is used next."""
        self._used += 1
        return self._used - 1

    def put_back(self) -> None:
        """Have the sampler stand behind the batch that was used last, and forget what was drawn beyond."""
        if self.left:
            self._sampler.load_state_dict(self._before)
            for _ in range(self._used):
                self._sampler.next_rows()
        self.forget()

    def forget(self) -> None:
        """Nothing is drawn ahead any more, wherever the sampler stands."""
        self._drawn = self._used = 0


def _split(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Into as few parts of at most `most` rows as there can be, as equal as they can be."""
    return np.array_split(rows, _parts(rows, most))


def _parts(rows: np.ndarray, most: int) -> int:
    return -(-len(rows) // most)


def check_active(active: Sequence[str], tasks: Sequence[str], main: str) -> tuple[str, ...]:
    """The active tasks as a tuple. Raises InputError for an unknown task or a phase without the main task."""
    unknown = [task for task in active if task not in tasks]
    if unknown:
        raise InputError(f"no task {unknown[0]!r} in these batches; their tasks: {', '.join(tasks)}")
    if main not in active:
        raise InputError(
            f"a phase needs the main task {main!r}; its active tasks: {', '.join(active) or 'none'}"
        )
    return tuple(active)
