"""Everything that decides a run; each field says here what it means to a user, and within which limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from mt2st_fast.data import READERS, Splits
from mt2st_fast.data.batches import batch_size_for
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_positive, check_within
from mt2st_fast.training.schedules import RunFacts, Schedule, find_strategy, strategies, strategy_options

MOST_STEPS_BY_DEFAULT = 2500
LEAST_BATCH = 16
ENGINES = ("fused", "torch")
POSITIVE = ("label_fraction", "epochs", "lr", "clip_norm")


def _kind_of_number(option: Field[Any]) -> type[int] | type[float] | None:
    """int or float where the field takes one."""
    names = str(option.type).split(" | ")
    return int if "int" in names else float if "float" in names else None


def _option(default: Any, panel: str, help: str, **limits: float) -> Any:
    """A field with what the command line shows of it: `limits` are min and max, both inclusive."""
    return field(default=default, metadata={"panel": panel, "help": help, "limits": limits})


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, JSON-able; `data`, `main` and `aux` are for the record.

    epochs count passes over all rows, None takes what makes about 2,500 steps, between 1 and 10; a step is
    a batch of `batch_size` rows whatever the strategy. strategy_options: values of the strategy's own options, by name;
    what is not given has the default that the strategy declares.
    """

    data: str = _option(
        "stdlib", "Data", f"stdlib, or KIND:PATH with KIND one of {', '.join(list(READERS)[1:])}"
    )
    main: str | None = _option(None, "Data", "the task to get right; the reader's default otherwise")
    aux: tuple[str, ...] | None = _option(
        None, "Data", "auxiliary tasks, separated by commas; the reader's default otherwise"
    )
    text_column: str | None = _option(
        None, "Data", "the column of a table that has the text; text, sentence, review or content otherwise"
    )
    delimiter: str | None = _option(
        None, "Data", "what stands between a table's cells, one character or tab; by its header otherwise"
    )
    predict_context: bool = _option(
        False,
        "Data",
        "one more auxiliary task: words predict their neighbours in all of the training text, labelled or not",
    )
    label_fraction: float | None = _option(
        None, "Data", "keep main labels in this fraction of the training units"
    )
    strategy: str = _option("switch", "Strategy", f"one of {', '.join(strategies())}")
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    against: str | None = _option(
        None,
        "Strategy",
        "a strategy that the same data is trained by afterwards, for a comparison in the report; stl on the default "
        "corpus otherwise, none for none",
    )
    epochs: float | None = _option(
        None, "Training", f"passes over all rows; about {MOST_STEPS_BY_DEFAULT:,} steps by default"
    )
    batch_size: int | None = _option(
        None, "Training", "rows a batch; 16 to 512 by default, by the size of the data", min=1
    )
    main_share: float = _option(
        0.5, "Training", "share of a batch with a main label, where those are rare", min=0.0, max=1.0
    )
    lr: float = _option(1e-2, "Training", "learning rate of Adam")
    lr_decay: str = _option("linear", "Training", "linear (to 0 at the end) or none")
    weight_decay: float = _option(
        0.0, "Training", "decoupled weight decay of dense layers; rows of word vectors have none", min=0.0
    )
    clip_norm: float | None = _option(None, "Training", "largest norm of all gradients together")
    accumulate: int = _option(1, "Training", "batches a step", min=1)
    precision: str = _option("float32", "Training", "float32, bfloat16 or float16 (autocast)")
    dim: int = _option(64, "Model", "length of a word vector", min=1)
    window: int = _option(2, "Model", "words on each side that a token's label is read from", min=0)
    hidden: int = _option(128, "Model", "width of the hidden layer over the window, 0 for none", min=0)
    dropout: float = _option(0.3, "Model", "dropout on word vectors", min=0.0, max=0.99)
    min_count: int = _option(2, "Model", "a rarer word shares the row of unknown words", min=1)
    init: str | None = _option(
        None, "Model", "word vectors to start from: .txt, .vec, .bin, .safetensors, GloVe text, .gz"
    )
    buckets: int = _option(
        20_000, "Model", "rows for hashed prefixes, suffixes and shapes, 0 for none", min=0
    )
    evaluations: int = _option(20, "Training", "evaluations in a run", min=1)
    patience: int | None = _option(
        None, "Training", "end a run after so many evaluations without a rise; never by default", min=1
    )
    min_delta: float = _option(
        0.0, "Training", "what --patience takes for a rise: more than this on the development rows", min=0.0
    )
    seed: int = _option(1, "Training", "seed of everything random", min=0)
    device: str = _option("auto", "Machine", "auto, cpu, cuda, cuda:1, ...")
    engine: str = _option(
        "fused", "Machine", "fused, or torch: separate layers, a dense table and torch's own optimizer"
    )
    backend: str = _option("auto", "Machine", "auto, numba, triton or reference")
    graph: bool | None = _option(
        None,
        "Machine",
        "replay each phase's step as a CUDA graph, by default on every CUDA device; the report says what could not be "
        "captured",
    )
    fuse_backward: bool | None = _option(
        None,
        "Machine",
        "no gradient of word vectors is ever made: a step is one kernel call where that can do all of it (on a CPU the "
        "default), else the backward pass steps their rows",
    )

    def __post_init__(self) -> None:
        """Raises InputError naming an option that is no number of its kind, not finite or out of its limits."""
        for option in fields(self):
            value, taken = getattr(self, option.name), _kind_of_number(option)
            if taken is None or (value is None and "None" in str(option.type)):
                continue
            if value is None:
                raise InputError(f"{option.name} must be a number, not None")
            named, limits = {option.name: value}, option.metadata["limits"]
            if taken is int:
                check_count(int(limits.get("min", 0)), **named)
            elif option.name in POSITIVE:
                check_positive(**named)
            check_within(limits.get("min", -math.inf), limits.get("max", math.inf), **named)
        if self.engine not in ENGINES:
            raise InputError(f"unknown engine {self.engine}; there are {', '.join(ENGINES)}")
        if self.min_delta and self.patience is None:
            raise InputError(f"min_delta {self.min_delta:g} is what patience goes by: give patience, too")

    def resolved(self, splits: Splits) -> Config:
        """This configuration with what the corpus decides filled in: main and auxiliary tasks, batch size, epochs."""
        n_rows = splits.train.n_rows
        batch_size = batch_size_for(n_rows, LEAST_BATCH) if self.batch_size is None else self.batch_size
        steps_per_epoch = -(-n_rows // batch_size)
        by_size = min(10.0, max(1.0, round(MOST_STEPS_BY_DEFAULT / steps_per_epoch, 1)))
        epochs = by_size if self.epochs is None else self.epochs
        # What was asked for stays as it was asked: a csv task carries its kind (rating:regression).
        main = splits.main if self.main is None else self.main
        aux = splits.auxiliary if self.aux is None else self.aux
        return replace(self, main=main, aux=aux, epochs=epochs, batch_size=batch_size)

    def schedule(self) -> Schedule:
        """What the strategy and its options make, once `epochs` is known. Raises InputError for what does not fit."""
        if self.epochs is None:
            raise InputError("epochs must be known before the schedule: call resolved(splits) first")
        return find_strategy(self.strategy).make(self.strategy_options, RunFacts(self.epochs))

    def going_on_to(self, epochs: float) -> Config:
        """This configuration with another end, and the decay of its strategy as it was for the end of before."""
        if self.epochs is None or epochs == self.epochs:
            return replace(self, epochs=epochs)
        options = find_strategy(self.strategy).settled(self.strategy_options, RunFacts(self.epochs))
        return replace(self, epochs=epochs, strategy_options=options)

    def on_engine(self, engine: str) -> Config:
        """This configuration on another engine. Raises InputError for an option that it does not have."""
        fused = {
            "--backend": self.backend != "auto",
            "--graph": self.graph,
            "--fuse-backward": self.fuse_backward,
            "--predict-context": self.predict_context,
        }
        given = [flag for flag, is_given in fused.items() if is_given]
        if engine == "torch" and given:
            raise InputError(
                f"{given[0]} is not for the engine torch, which has nothing of the kind; leave it out"
            )
        return replace(self, engine=engine)

    def for_strategy(self, name: str) -> Config:
        """This configuration for another strategy, with those of the options that it takes."""
        taken = {option.name for option in find_strategy(name).options}
        options = {key: value for key, value in self.strategy_options.items() if key in taken}
        return replace(self, strategy=name, strategy_options=options)

    def check_strategy_options(self, names: tuple[str, ...]) -> None:
        """Raises InputError for an option that none of these strategies takes, naming who does."""
        known = strategy_options()
        for key in self.strategy_options:
            if key not in known:
                raise InputError(f"there is no strategy with an option {key}; there are {', '.join(known)}")
            option, taken_by = known[key]
            if not set(taken_by) & set(names):
                raise InputError(
                    f"{option.flag} is not for {', '.join(names)}: {', '.join(taken_by)} takes it; leave it out"
                )

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON writes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Config:
        """The configuration that `to_json` wrote."""
        return cls(**{**stored, "aux": None if stored["aux"] is None else tuple(stored["aux"])})
