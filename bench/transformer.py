"""python -m bench.transformer MODEL --treebank DIR: what finishing on one task saves when fine-tuning a transformer.

MODEL is a folder that transformers' AutoModel and AutoTokenizer read, DIR has the .conllu files of a treebank. A share
of the training sentences keeps the label of the main task, all keep that of the auxiliary task:

    genre       of a sentence: that of its document (the word before the first "-" of `# newdoc id`); auxiliary: upos
    upos        of a word; auxiliary: xpos

A step takes a batch of labelled sentences and, while the auxiliary task is active, a batch of all sentences. All
strategies take the same number of steps: with the main task alone (stl), with both (mtl), and with both until a switch
(switch). They train in turns, on the same seeds. It needs the extra `transformers`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mt2st_fast import Classification, MultiTask, MultiTaskHeads, SingleTask, Switch, Trainer
from mt2st_fast.training.history import History
from mt2st_fast.training.schedules.base import Schedule

console = Console(width=130)

BESIDE = {"genre": "upos", "upos": "xpos"}  # the auxiliary task of a main task
COLUMNS = {"upos": 3, "xpos": 4}
LEAST_OF_CLASS = 20  # words or sentences; rarer classes have no label
HELD_OUT = 320  # sentences that quality is measured on


@dataclass(frozen=True)
class Sentence:
    """Words and their labels, by task."""

    words: list[str]
    labels: dict[str, Any]


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a pre-trained encoder and its tokenizer.")],
    treebank: Annotated[Path, typer.Option(help="Folder with a treebank's train and dev files.")],
    task: Annotated[str, typer.Option(help="Main task: genre or upos.")] = "genre",
    label_fraction: Annotated[
        float, typer.Option(help="Fraction of the sentences that keep the main label.")
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=10)] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Sentences per batch.")] = 16,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW, falling linearly to 0.")] = 1e-4,
    switch_at: Annotated[float, typer.Option(help="When to switch, as a fraction of all steps.")] = 0.5,
) -> None:
    """Train, and print a table."""
    if task not in BESIDE:
        raise typer.BadParameter(f"{task!r} is unknown; available: {', '.join(BESIDE)}", param_hint="--task")
    data = Data.read(model, treebank, (task, BESIDE[task]))
    schedules: dict[str, Callable[[], Schedule]] = {
        "stl": SingleTask,
        "mtl": MultiTask,
        "switch": lambda: Switch(at=switch_at),
    }
    runs: dict[str, list[History]] = {name: [] for name in schedules}
    for seed in range(seeds):
        for name, schedule in schedules.items():
            labelled, everything, held_out = data.batches(batch, label_fraction, seed)
            train = {task: labelled} | ({} if name == "stl" else {BESIDE[task]: everything})
            torch.manual_seed(seed)
            trainer = Trainer(
                _Encoder(model),
                data.heads(name == "stl"),
                schedule=schedule(),
                lr=lr,
                lr_decay="linear",
                log_every=5,
            )
            history = trainer.fit(train, steps=steps, val=held_out, evaluate_every=max(1, steps // 10))
            runs[name].append(history)
            console.print(f"seed {seed}, {name}: best {_best(history):.4f}, {_seconds(history):.1f} s")
    n_labelled = len(labelled_of(data, label_fraction, 0))
    title = f"{task}, {n_labelled} labelled sentences, {steps} steps, seeds: {seeds}; medians"
    console.print(_table(title, runs, task, steps, int(switch_at * steps)))


class _Encoder(nn.Module):
    """A pre-trained encoder whose features are those of all tokens, with a mask of those that are not padding."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(folder)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encoder(**inputs).last_hidden_state, inputs["attention_mask"].bool()


# --- data ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The rows of the training part and the held-out part, and the classes of both tasks, the main one first."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    classes: dict[str, list[str]]
    width: int
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

    @classmethod
    def read(cls, model: Path, treebank: Path, names: tuple[str, str]) -> Data:
        """Read and tokenize the sentences of a treebank; raises SystemExit with one line if a file is missing."""
        from transformers import AutoConfig, AutoTokenizer

        from mt2st_fast.integrations.transformers import DataCollatorForMultiTask

        tokenizer = AutoTokenizer.from_pretrained(model)
        parts = [list(read_sentences(_only(treebank, part))) for part in ("train", "dev")]
        classes = {name: _classes(parts[0], name) for name in names}
        train, held_out = ([_row(s, tokenizer, classes) for s in part] for part in parts)
        random.Random(0).shuffle(held_out)
        tasks = {name: _task(name, values) for name, values in classes.items()}
        width = AutoConfig.from_pretrained(model).hidden_size
        return cls(train, held_out[:HELD_OUT], classes, width, DataCollatorForMultiTask(tokenizer, tasks))

    def heads(self, alone: bool) -> MultiTaskHeads:
        """Return heads of both tasks, or of the main one alone."""
        main = next(iter(self.classes))
        tasks = {
            name: _task(name, values) for name, values in self.classes.items() if not alone or name == main
        }
        return MultiTaskHeads(self.width, tasks, main)

    def batches(self, size: int, label_fraction: float, seed: int) -> tuple[Any, Any, Any]:
        """Return loaders: sentences with the main label, with only that; all sentences, with the other; the held-out
        ones.
        """
        main, other = self.classes
        kept = labelled_of(self, label_fraction, seed)
        order = torch.Generator().manual_seed(seed)

        def loader(rows: list[dict[str, Any]], task: str, shuffled: bool) -> Any:
            own = [{**row, "labels": {task: row["labels"][task]}} for row in rows]
            return DataLoader(own, size, shuffle=shuffled, generator=order, collate_fn=self._paired)  # type: ignore[arg-type]

        return loader(kept, main, True), loader(self.train, other, True), loader(self.held_out, main, False)

    def _paired(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (inputs, {task: labels}) of the tasks that have labels here."""
        made = self.collate(rows)
        labels = made.pop("labels")
        return made, {name: labels[name] for name in rows[0]["labels"]}


def labelled_of(data: Data, label_fraction: float, seed: int) -> list[dict[str, Any]]:
    """Return the training rows that keep the label of the main task."""
    main = next(iter(data.classes))
    has = [row for row in data.train if row["labels"][main] is not None]
    return random.Random(seed).sample(has, max(1, round(label_fraction * len(has))))


def read_sentences(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a CoNLL-U file, with genre, upos and xpos."""
    genre, words, tags = "", [], {name: [] for name in COLUMNS}
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("# newdoc id ="):
            genre = line.split("=")[1].strip().split("-")[0]
        elif line and not line.startswith("#"):
            cells = line.split("\t")
            if cells[0].isdecimal():
                words.append(cells[1])
                for name, column in COLUMNS.items():
                    tags[name].append(cells[column])
        elif not line and words:
            yield Sentence(words, {"genre": genre, **tags})
            words, tags = [], {name: [] for name in COLUMNS}


def _only(folder: Path, part: str) -> Path:
    found = sorted(folder.glob(f"*-{part}.conllu"))
    if len(found) != 1:
        raise SystemExit(f"{folder}: has {len(found)} files *-{part}.conllu, but needs exactly one")
    return found[0]


def _classes(sentences: Sequence[Sentence], task: str) -> list[str]:
    counts: dict[str, int] = {}
    for sentence in sentences:
        values = sentence.labels[task]
        for value in [values] if isinstance(values, str) else values:
            counts[value] = counts.get(value, 0) + 1
    return sorted(value for value, n in counts.items() if n >= LEAST_OF_CLASS)


def _task(name: str, values: Sequence[str]) -> Classification:
    return Classification(len(values), pooling="mean" if name == "genre" else "none")


def _row(sentence: Sentence, tokenizer: Any, classes: Mapping[str, list[str]]) -> dict[str, Any]:
    """Tokenize a sentence. A word's label is at its first piece; its other pieces and special tokens have none."""
    encoded = tokenizer(sentence.words, is_split_into_words=True, truncation=True, max_length=128)
    labels: dict[str, Any] = {}
    for name, values in classes.items():
        number = {value: i for i, value in enumerate(values)}
        own = sentence.labels[name]
        if isinstance(own, str):
            labels[name] = number.get(own)
            continue
        ids, before = [], None
        for word in encoded.word_ids():
            is_first = word is not None and word != before
            ids.append(number.get(own[word], -100) if is_first else -100)
            before = word
        labels[name] = ids
    return {**encoded, "labels": labels}


# --- results ---------------------------------------------------------------------------------------------


def _table(title: str, runs: Mapping[str, list[History]], task: str, steps: int, switch: int) -> Table:
    table = Table(title=title)
    for heading in (
        "",
        "best",
        "at the end",
        "s",
        "ms per step before",
        "after the switch",
        "s to stl's best",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for name, histories in runs.items():
        reached = [_reached(h, _best(stl), task) for h, stl in zip(histories, runs["stl"], strict=True)]
        table.add_row(
            name,
            f"{median(map(_best, histories)):.4f}",
            f"{median(h.evaluations[-1].metrics[task] for h in histories):.4f}",
            f"{median(map(_seconds, histories)):.1f}",
            f"{median(_step_ms(h, 0, switch) for h in histories):.0f}",
            f"{median(_step_ms(h, switch, steps) for h in histories):.0f}",
            ", ".join("never" if s is None else f"{s:.1f}" for s in reached),
        )
    return table


def _best(history: History) -> float:
    return max(evaluation.metrics[history.main] for evaluation in history.evaluations)


def _seconds(history: History) -> float:
    return history.evaluations[-1].train_seconds


def _reached(history: History, target: float, task: str) -> float | None:
    return next((e.train_seconds for e in history.evaluations if e.metrics[task] >= target), None)


def _step_ms(history: History, begin: int, end: int) -> float:
    """Return the step time from the records between two steps, except for the first, in which a phase begins."""
    return mean([r.step_ms for r in history.steps if begin < r.step <= end][1:])


if __name__ == "__main__":
    typer.run(main)
