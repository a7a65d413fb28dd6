"""The options that decide a run: one for each field of Config, shared by the commands that train."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from mt2st_fast.data import READERS
from mt2st_fast.errors import InputError
from mt2st_fast.runs.experiment import STRATEGIES, Config


def _option(annotation: Any, panel: str, text: str, *names: str, **limits: Any) -> Any:
    return Annotated[annotation, typer.Option(*names, help=text, rich_help_panel=panel, **limits)]


OPTIONS: dict[str, Any] = {
    "data": _option(str, "Data", f"stdlib, or KIND:PATH with KIND one of {', '.join(list(READERS)[1:])}"),
    "main": _option(str | None, "Data", "the task to get right; the reader's default otherwise"),
    "aux": _option(
        str | None, "Data", "auxiliary tasks, separated by commas; the reader's default otherwise"
    ),
    "label_fraction": _option(
        float | None, "Data", "keep main labels in this fraction of the training units"
    ),
    "strategy": _option(str, "Strategy", f"one of {', '.join(STRATEGIES)}"),
    "switch_at": _option(
        float, "Strategy", "fraction of the run at which auxiliary tasks retire", min=0.0, max=1.0
    ),
    "aux_weight": _option(float, "Strategy", "weight of an auxiliary task at first", min=0.0),
    "eta": _option(
        float | None, "Strategy", "Diminish: decay an epoch; by default the floor falls on --switch-at"
    ),
    "nu": _option(float, "Strategy", "Diminish: exponent of time", min=0.0),
    "alpha": _option(float, "Strategy", "squaring: the weight that is squared every epoch", min=0.0, max=1.0),
    "floor": _option(float, "Strategy", "an auxiliary task whose weight falls under this retires", min=0.0),
    "epochs": _option(float | None, "Training", "passes over all rows; about 2,500 steps by default"),
    "batch_size": _option(int, "Training", "rows a batch", min=1),
    "main_share": _option(float, "Training", "share of a batch with a main label, where those are rare"),
    "lr": _option(float, "Training", "learning rate of AdamW"),
    "lr_decay": _option(str, "Training", "linear (to 0 at the end) or none"),
    "weight_decay": _option(float, "Training", "decoupled weight decay", min=0.0),
    "clip_norm": _option(float | None, "Training", "largest norm of all gradients together"),
    "accumulate": _option(int, "Training", "batches a step", min=1),
    "precision": _option(str, "Training", "float32, bfloat16 or float16 (autocast)"),
    "dim": _option(int, "Model", "length of a word vector", min=1),
    "window": _option(int, "Model", "words on each side that a token's label is read from", min=0),
    "hidden": _option(int, "Model", "width of the hidden layer over the window, 0 for none", min=0),
    "dropout": _option(float, "Model", "dropout on word vectors", min=0.0, max=0.99),
    "min_count": _option(int, "Model", "a rarer word shares the row of unknown words", min=1),
    "init": _option(
        str | None, "Model", "word vectors to start from: .txt, .vec, .bin, .safetensors, GloVe text, .gz"
    ),
    "buckets": _option(int, "Model", "rows for hashed prefixes, suffixes and shapes, 0 for none", min=0),
    "evaluations": _option(int, "Training", "evaluations in a run", min=1),
    "seed": _option(int, "Training", "seed of everything random", min=0),
    "device": _option(str, "Machine", "auto, cpu, cuda, cuda:1, ..."),
    "backend": _option(str, "Machine", "auto, numba, triton or reference"),
}

OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", help="folder for everything that the run writes", rich_help_panel="Output"),
]


def takes_config(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command `f(config, ...)` take an option for each field of Config but those in `without`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for name, p in signature.parameters.items() if name != "config"]
        taken = [field for field in fields(Config) if field.name not in without]
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=OPTIONS[field.name],
            )
            for field in taken
        ]

        @wraps(command)
        def run(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in taken}
            if values["aux"] is not None:
                values["aux"] = tuple(name.strip() for name in values["aux"].split(",") if name.strip())
            command(config=Config(**values), **given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def make_writable(folder: Path) -> Path:
    """Create `folder` if need be and try it. Raises InputError where nothing can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder
