"""Write a graph to a file, ONNX or torch.export's, and beside it a JSON that describes its inputs and outputs."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.exporting.inputs import FORMAT
from mt2st_fast.files import naming, write_atomically, writing_atomically
from mt2st_fast.numbers import plain

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MOST_ONNX_BYTES = (1 << 31) - (1 << 20)  # of one file: the limit of protobuf is 2 GiB
TOLERANCE = 1e-5  # of the logits, relative to the largest of them if that is above 1
_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of a graph by name, and the model's own logits for them, by task."""

    inputs: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph to write: axes names those of every input; the first of trials is traced, all are compared."""

    module: nn.Module
    axes: Mapping[str, Sequence[str | int]]
    rows: str  # the axis of the logits
    trials: Sequence[Trial]
    takes_any: bool = False  # the module's forward takes *inputs


@dataclass(frozen=True)
class Exported:
    """The files that were written, what compared the graph with the model, and how far its logits were off.

    compared_by is empty where onnxruntime is not installed: then nothing was compared.
    """

    graph: Path
    description: Path
    compared_by: str
    largest_difference: float
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, Sequence[str | int]]


def format_of(file: Path, wanted: str | None) -> str:
    """ "onnx" or "torch": the wanted one, else by the file's name, else "onnx".

    Raises InputError if both contradict each other, and for a suffix of no format where none is wanted.
    """
    by_name = {suffix: name for name, suffix in SUFFIXES.items()}.get(file.suffix)
    if wanted is not None and wanted not in SUFFIXES:
        raise InputError(f"format must be {' or '.join(SUFFIXES)}, not {wanted!r}")
    if wanted is not None and by_name not in (None, wanted):
        raise InputError(
            f"{file}: has the suffix of {by_name}, but the format is {wanted}; use the suffix {SUFFIXES[wanted]}"
        )
    if file.suffix == ".json":
        raise InputError(f"{file}: .json is the suffix of the description of a graph; use .onnx or .pt2")
    if wanted is None and by_name is None and file.suffix:
        raise InputError(
            f"{file}: the suffix {file.suffix} names no format; use {' or '.join(SUFFIXES.values())}, or choose the "
            "format"
        )
    return wanted or by_name or "onnx"


def output_of(task: str) -> str:
    """Return the output name of a task's logits."""
    return f"logits.{task}"


def write_graph(
    graph: Graph, file: str | Path, wanted: str | None, description: Mapping[str, Any]
) -> Exported:
    """Compare the graph with the model, and write it and its description to FILE and FILE.json.

    description: the inputs and each of the tasks, JSON-able. Raises InputError for an impossible format or file, for
    packages that are not installed, and for a graph that does not reproduce the model's logits.
    """
    file = Path(file)
    form = format_of(file, wanted)
    if file.is_dir():
        raise InputError(f"{file}: is a folder; pass a file, such as {file.name}{SUFFIXES[form]}")
    tasks = list(graph.trials[0].logits)
    outputs = {output_of(task): _axes(graph, logits) for task, logits in graph.trials[0].logits.items()}
    if form == "onnx":
        content = _onnx(graph, list(outputs))
        compared_by, difference = _compared_in_onnxruntime(content, graph, tasks)
    else:
        program = _program(graph)
        compared_by, difference = "torch.export", _difference(program.module(), graph.trials, tasks)
        memory = io.BytesIO()
        torch.export.save(program, memory)
        content = memory.getvalue()
    beside = file.with_name(f"{file.name}.json")  # not model.json, which is the name of a model's description
    described: dict[str, Any] = {
        "format": FORMAT,
        "graph": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": {name: list(axes) for name, axes in graph.axes.items()},
        "outputs": {name: list(axes) for name, axes in outputs.items()},
        **description,
    }
    with naming(file), writing_atomically(file) as opened:
        opened.write(content)
        opened.flush()
        # Before the graph takes its place: the digest reveals a description of another one.
        write_atomically(beside, json.dumps(described, allow_nan=False, default=plain).encode("ascii"))
    return Exported(file, beside, compared_by, difference, graph.axes, outputs)


def _axes(graph: Graph, logits: Tensor) -> tuple[str | int, ...]:
    """Return the axes of logits (..., C): those before C are the batch's, as in its first input."""
    of_input = next(iter(graph.axes.values()))
    return (graph.rows, *of_input[1 : logits.dim() - 1], logits.shape[-1])


def _program(graph: Graph) -> torch.export.ExportedProgram:
    """Return the graph from torch.export, for batches of any size including none. Raises InputError if that fails."""
    sizes: dict[str, Any] = {}
    for axes in graph.axes.values():
        # Not the axis's own name, which an input may have, too.
        sizes |= {axis: torch.export.Dim(f"n_{axis}", min=0) for axis in axes if isinstance(axis, str)}
    shapes = tuple(
        {place: sizes[axis] for place, axis in enumerate(axes) if isinstance(axis, str)}
        for axes in graph.axes.values()
    )
    module = graph.module.eval()
    given = tuple(graph.trials[0].inputs[name] for name in graph.axes)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(module, given, dynamic_shapes=(shapes,) if graph.takes_any else shapes)
    except Exception as error:  # custom modules may raise anything while they are traced
        raise InputError(
            f"{_name(module)} cannot be traced for any size of batch: {_first_line(error)}"
        ) from error


def _onnx(graph: Graph, outputs: Sequence[str]) -> bytes:
    """Return the graph as ONNX, including its tensors."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs the package {missing[0]}: pip install 'mt2st-fast[export]', or export with the format torch"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.module.state_dict().values())
    if size > MOST_ONNX_BYTES:
        raise InputError(
            f"the model's tensors are {size / 2**30:.1f} GiB, but an ONNX file holds at most 2; export with the "
            "format torch"
        )
    program = _program(graph)
    with _quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(graph.axes), output_names=list(outputs)
        )
        assert exported is not None
        return bytes(exported.model_proto.SerializeToString())


def _compared_in_onnxruntime(content: bytes, graph: Graph, tasks: Sequence[str]) -> tuple[str, float]:
    if importlib.util.find_spec("onnxruntime") is None:
        return "", float("nan")
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        given = {name: value.numpy() for name, value in zip(graph.axes, inputs, strict=True)}
        found = session.run([output_of(task) for task in tasks], given)
        return {task: torch.from_numpy(np.asarray(logits)) for task, logits in zip(tasks, found, strict=True)}

    return "onnxruntime", _difference(run, graph.trials, tasks)


def _difference(run: Any, trials: Sequence[Trial], tasks: Sequence[str]) -> float:
    """Return the largest difference to the model's logits. Raises InputError where it is above TOLERANCE."""
    largest = 0.0
    for trial in trials:
        with torch.no_grad():
            found = run(*trial.inputs.values())
        for task in tasks:
            expected = trial.logits[task]
            if not expected.numel():
                continue
            off = float((found[task] - expected).abs().max())
            if not off <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise InputError(
                    f"the graph's logits of {task} are {off:.1e} off the model's, so nothing was written; please "
                    "report this"
                )
            largest = max(largest, off)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress exporters' warnings about their own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _name(module: nn.Module) -> str:
    """Return the name of the custom encoder, or of the module."""
    return type(getattr(module, "encoder", module)).__name__


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
