"""The configuration of a run; each field says what it means to a user and what its limits are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import torch

from mt2st_fast.data import READERS, Splits, parse_spec
from mt2st_fast.data.batches import batch_size_for, batch_size_where_main_is_rare
from mt2st_fast.data.label_model import telling_tasks
from mt2st_fast.data.sampler import MAIN_SHARE, main_is_rare
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import OPS
from mt2st_fast.runs.options import check_options, one_of, option, positive, positive_in_float32
from mt2st_fast.training.optimizers.learning_rate import Decay
from mt2st_fast.training.run_options import Backward, Precision
from mt2st_fast.training.schedules import RunFacts, Schedule, find_strategy, strategies, strategy_options

MOST_STEPS_BY_DEFAULT = 2500
EARLY_SWITCH = 0.3  # of a run in which labels of auxiliary tasks tell those of the main task
LEAST_BATCH = 16
MOST_EPOCHS_BY_DEFAULT = 10.0
# Ten passes over a few hundred rows are a few hundred steps, in which hardly anything is learned.
LEAST_ROWS_READ = 1000 * LEAST_BATCH
MOST_EPOCHS_OF_FEW_ROWS = 100.0
ENGINES = ("fused", "torch")
NONE = "none"  # no second strategy
OF_DEFAULT_CORPUS = "stl"  # the second strategy there
# Limits of what machines and the numbers in files can hold; larger values would overflow.
# Every reader of JSON knows it exactly, and seeds counted up from it are still 64-bit integers.
MOST_SEED = 2**53 - 1
MOST_EPOCHS = 1_000_000
MOST_WIDE = 2**20
MOST_WINDOW = 1000
MOST_BUCKETS = 2**30  # rows of a table are numbered in 32 bits, those of words included
OF_TOKENS = ("window", "hidden")  # options of encoders that label words; a document is the mean of its words
BACKENDS = ("auto", *dict.fromkeys(name for op in OPS.values() for name in op.backend_names))


def _names_data(shown: str, value: str) -> None:
    parse_spec(value, shown)


def _names_file(shown: str, value: str) -> None:
    if not value:
        raise InputError(f"{shown} is empty; set a path, or leave it out")


def _names_device(shown: str, value: str) -> None:
    """Refuse what is not the name of a device; the trainer checks whether the device is available."""
    try:
        if value != "auto":
            torch.device(value)
    except RuntimeError:
        raise InputError(f"{shown} {value!r} is unknown; available: auto, cpu, cuda, cuda:N") from None


@dataclass(frozen=True)
class Config:
    """All options of a run, JSON-able; `data`, `main` and `aux` are for the record.

    epochs: passes over all rows; None takes as many as make about 2,500 steps, between 1 and 10; for fewer than 1,600
    rows, up to 100, so that 16,000 rows are read. A step is a batch of `batch_size` rows. Where main labels are rare, a
    share `main_share` of a batch has one; once the main task is alone, all rows of a batch have one, given or, with
    `self_training`, by the model itself and by the labels of auxiliary tasks. strategy_options: values of the
    strategy's own options by name; others have the default that the strategy declares.
    """

    data: str = option(
        "stdlib",
        "Data",
        f"stdlib, or KIND:PATH, where KIND is one of {', '.join(list(READERS)[1:])}",
        test=_names_data,
    )
    main: str | None = option(None, "Data", "main task; chosen by the reader by default")
    aux: tuple[str, ...] | None = option(
        None,
        "Data",
        'comma-separated auxiliary tasks, a name with a comma in "quotes"; chosen by the reader by default',
    )
    text_column: str | None = option(
        None, "Data", "table column with the text; by default text, sentence, review or content"
    )
    delimiter: str | None = option(
        None, "Data", "table delimiter, one character or tab; detected from the header by default"
    )
    predict_context: bool = option(
        False,
        "Data",
        "add an auxiliary task that predicts neighbouring words in all training text, labelled or not",
    )
    label_fraction: float | None = option(
        None,
        "Data",
        "fraction of the training units that keep their main labels",
        test=positive,
        min=0.0,
        max=1.0,
    )
    complete_labels: bool = option(
        False,
        "Data",
        "give training rows without a main label the one that their labels of auxiliary tasks tell",
    )
    strategy: str = option(
        "switch", "Strategy", f"one of {', '.join(strategies())}", test=one_of(tuple(strategies()))
    )
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    self_training: bool | None = option(
        None,
        "Strategy",
        "once the main task trains alone, also train with rows without its label, by the label that the model and the "
        "labels of other tasks gave them at that point; the default where main labels are rare and have classes",
    )
    against: str | None = option(
        None,
        "Strategy",
        "strategy to train afterwards on the same data and compare in the report, or none; by default stl on the "
        "default corpus, else none",
        test=one_of((*strategies(), NONE)),
    )
    epochs: float | None = option(
        None,
        "Training",
        f"passes over all rows; by default as many as make about {MOST_STEPS_BY_DEFAULT:,} steps, up to "
        f"{MOST_EPOCHS_BY_DEFAULT:g} (of few rows, up to {MOST_EPOCHS_OF_FEW_ROWS:g})",
        test=positive,
        min=0,
        max=MOST_EPOCHS,
    )
    batch_size: int | None = option(
        None,
        "Training",
        "rows per batch; by default 16 to 512, depending on the size of the data; less where main labels are rare",
        min=1,
    )
    main_share: float = option(
        MAIN_SHARE,
        "Training",
        "share of each batch that has a main label, if such labels are rare",
        min=0.0,
        max=1.0,
    )
    lr: float = option(1e-2, "Training", "learning rate for Adam", test=positive_in_float32)
    lr_decay: str = option(
        "linear", "Training", "linear (to 0 at the end) or none", test=one_of(get_args(Decay))
    )
    weight_decay: float = option(
        0.0, "Training", "decoupled weight decay for dense layers; not applied to word vectors", min=0.0
    )
    clip_norm: float | None = option(
        None, "Training", "maximum total norm of all gradients", test=positive_in_float32
    )
    accumulate: int = option(1, "Training", "batches per step", min=1)
    precision: str = option(
        "float32", "Training", "float32, bfloat16 or float16 (autocast)", test=one_of(get_args(Precision))
    )
    dim: int = option(64, "Model", "length of a word vector", min=1, max=MOST_WIDE)
    window: int = option(
        2,
        "Model",
        "words used on each side of a token to predict its label; not for documents",
        min=0,
        max=MOST_WINDOW,
    )
    hidden: int = option(
        128,
        "Model",
        "width of the hidden layer over the window; 0 for none; not for documents",
        min=0,
        max=MOST_WIDE,
    )
    dropout: float = option(0.3, "Model", "dropout rate of word vectors", min=0.0, max=0.99)
    min_count: int = option(
        2, "Model", "words that occur fewer times than this share the row for unknown words", min=1
    )
    init: str | None = option(
        None,
        "Model",
        "file of word vectors to start from: .txt, .vec, .bin, .safetensors or GloVe text; .gz too",
        test=_names_file,
    )
    buckets: int = option(
        20_000, "Model", "rows for hashed prefixes, suffixes and shapes; 0 for none", min=0, max=MOST_BUCKETS
    )
    evaluations: int = option(20, "Training", "evaluations per run", min=1)
    metric: str | None = option(
        None,
        "Training",
        "metric of the main task: accuracy or macro_f1 for classes, span_f1 for tags such as B-NP, micro_f1 or "
        "macro_f1 for sets of labels; the first by default",
    )
    patience: int | None = option(
        None, "Training", "stop after this many evaluations without improvement; never by default", min=1
    )
    min_delta: float = option(
        0.0,
        "Training",
        "for --patience, a rise on the development rows counts as an improvement only above this",
        min=0.0,
    )
    seed: int = option(1, "Training", "random seed", min=0, max=MOST_SEED)
    device: str = option("auto", "Machine", "auto, cpu, cuda, cuda:1, ...", test=_names_device)
    engine: str = option(
        "fused",
        "Machine",
        "fused, or torch (separate layers, a dense table and torch's own optimizer)",
        test=one_of(ENGINES),
    )
    backend: str = option("auto", "Machine", "auto, numba, triton or reference", test=one_of(BACKENDS))
    graph: bool | None = option(
        None,
        "Machine",
        "replay each phase's step as a CUDA graph (the default on CUDA devices); the report says what could not be "
        "captured",
    )
    backward: str = option(
        "auto",
        "Machine",
        "how gradients are made: by the fastest engine (auto), all by autograd, or fused (those of word vectors are "
        "never stored)",
        test=one_of(get_args(Backward)),
    )

    def __post_init__(self) -> None:
        """Raise InputError for an option that has the wrong type, is out of its limits or is unknown, naming it."""
        check_options(self)
        if self.min_delta and self.patience is None:
            raise InputError(
                f"min_delta {self.min_delta:g} has no effect without patience; set patience as well"
            )

    def resolved(self, splits: Splits) -> Config:
        """Return this configuration with what depends on the corpus filled in: main and auxiliary tasks, batch size,
        epochs.
        """
        n_rows = splits.train.n_rows
        batch_size = self._batch_size_for(splits) if self.batch_size is None else self.batch_size
        steps_per_epoch = -(-n_rows // batch_size)
        of_few_rows = min(MOST_EPOCHS_OF_FEW_ROWS, LEAST_ROWS_READ / n_rows)
        most = max(MOST_EPOCHS_BY_DEFAULT, of_few_rows)
        by_size = round(min(most, max(1.0, MOST_STEPS_BY_DEFAULT / steps_per_epoch)), 1)
        epochs = by_size if self.epochs is None else self.epochs
        # Names stay as the user gave them: a csv task includes its kind (rating:regression).
        main = splits.main if self.main is None else self.main
        aux = splits.auxiliary if self.aux is None else self.aux
        self_training = self._self_trains(splits)
        options = (
            {**self._early_switch(splits), **self.strategy_options}
            if self_training
            else self.strategy_options
        )
        return replace(
            self, main=main, aux=aux, epochs=epochs, batch_size=batch_size,
            self_training=self_training, strategy_options=options,
        )  # fmt: skip

    def _early_switch(self, splits: Splits) -> dict[str, float]:
        """Return the option of an early switch, for a strategy that takes it and data with labels that tell main ones.

        Before the switch, most of a step goes into what other labels teach the encoder; after it, they teach the main
        task itself.
        """
        takes = {option.name for option in find_strategy(self.strategy).options}
        if "switch_at" not in takes or "eta" in self.strategy_options or splits.main is None:
            return {}
        tells = telling_tasks(splits.train, splits.main, splits.tasks)
        return {"switch_at": EARLY_SWITCH} if tells else {}

    def _self_trains(self, splits: Splits) -> bool | None:
        """Return whether it does; None for a strategy that never can, so that another one decides (`for_strategy`)."""
        retires = find_strategy(self.strategy).retires
        if self.self_training and not retires:
            raise InputError(
                f"--self-training begins when the main task trains alone after others, which strategy {self.strategy} "
                "never does; leave it out, or use --strategy switch"
            )
        if self.self_training is not None or not retires or splits.main is None:
            return self.self_training
        column, has_others = splits.train.column(splits.main), self.predict_context or len(splits.tasks) > 1
        is_rare = main_is_rare(column.labelled(), self.main_share)
        return has_others and is_rare and column.kind == "classes"

    def _batch_size_for(self, splits: Splits) -> int:
        usual = batch_size_for(splits.train.n_rows, LEAST_BATCH)
        if splits.main is None or splits.tasks == (splits.main,):
            return usual  # no row is drawn for another task
        labelled = splits.train.column(splits.main).labelled()
        rare = main_is_rare(labelled, self.main_share)
        return batch_size_where_main_is_rare(usual, self.main_share) if rare else usual

    def schedule(self) -> Schedule:
        """Make the schedule from the strategy and its options; `epochs` must be known. Raises InputError for what does
        not fit.
        """
        if self.epochs is None:
            raise InputError("epochs are not known yet; call resolved(splits) before schedule()")
        return find_strategy(self.strategy).make(self.strategy_options, RunFacts(self.epochs))

    def extended_to(self, epochs: float) -> Config:
        """Return this configuration with other epochs, but with its strategy's decay as for the previous ones."""
        if self.epochs is None or epochs == self.epochs:
            return replace(self, epochs=epochs)
        options = find_strategy(self.strategy).settled(self.strategy_options, RunFacts(self.epochs))
        return replace(self, epochs=epochs, strategy_options=options)

    def held_against(self) -> str | None:
        """Return the second strategy to train for comparison: the one given, STL on the default corpus, or none.

        Raises InputError for the run's own strategy.
        """
        if self.against is None:
            return OF_DEFAULT_CORPUS if self.data == "stdlib" and self.strategy != OF_DEFAULT_CORPUS else None
        if self.against == self.strategy:
            raise InputError(f"--against {self.against} is the run's own strategy; choose another, or {NONE}")
        return None if self.against == NONE else self.against

    def on_engine(self, engine: str) -> Config:
        """Return this configuration on another engine. Raises InputError for an option that engine does not have."""
        fused = {
            "--backend": self.backend != "auto",
            "--graph": self.graph,
            "--backward": self.backward == "fused",
            "--predict-context": self.predict_context,
        }
        given = [flag for flag, is_given in fused.items() if is_given]
        if engine == "torch" and given:
            raise InputError(f"{given[0]} is not supported by the engine torch; leave it out")
        return replace(self, engine=engine)

    def for_strategy(self, name: str) -> Config:
        """Return this configuration for another strategy, with those of its options that the strategy takes."""
        taken = {each.name for each in find_strategy(name).options}
        options = {key: value for key, value in self.strategy_options.items() if key in taken}
        own = self.self_training if find_strategy(name).retires or not self.self_training else False
        return replace(self, strategy=name, strategy_options=options, self_training=own)

    def check_strategy_options(self, names: tuple[str, ...]) -> None:
        """Raise InputError for an option that none of these strategies takes, naming those that do."""
        known = strategy_options()
        for key in self.strategy_options:
            if key not in known:
                raise InputError(f"no strategy has an option {key}; available: {', '.join(known)}")
            option, taken_by = known[key]
            if not set(taken_by) & set(names):
                raise InputError(
                    f"{option.flag} is not an option of {', '.join(names)}, but of {', '.join(taken_by)}; leave it out"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration in the form that JSON stores."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Config:
        """Return the configuration that `to_json` wrote."""
        return cls(**{**stored, "aux": None if stored["aux"] is None else tuple(stored["aux"])})
