"""A graph in a file, ONNX or torch.export's, and beside it a JSON that says what goes in and what comes out."""

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
from mt2st_fast.files import write_atomically

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MOST_ONNX_BYTES = (1 << 31) - (1 << 20)  # of one file: a protobuf ends at 2 GiB
TOLERANCE = 1e-5  # of a graph's logits, or of the largest of them where that is above 1
_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of a graph by name, and the logits that the model itself makes of them, by task."""

    inputs: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Graph:
    """What is to be written: axes names those of every input; of trials the first is traced, all are compared."""

    module: nn.Module
    axes: Mapping[str, Sequence[str | int]]
    rows: str  # the axis of the logits
    trials: Sequence[Trial]
    takes_any: bool = False  # the module's forward takes *inputs


@dataclass(frozen=True)
class Exported:
    """Files that were written; by what the graph was compared with the model, and how far its logits were off.

    compared_by is empty where onnxruntime is not installed: then nothing was compared.
    """

    graph: Path
    description: Path
    compared_by: str
    largest_difference: float
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, Sequence[str | int]]


def format_of(file: Path, wanted: str | None) -> str:
    """ "onnx" or "torch": as wanted, else as the file is named. Raises InputError where both say different things."""
    by_name = {suffix: name for name, suffix in SUFFIXES.items()}.get(file.suffix)
    if wanted is not None and wanted not in SUFFIXES:
        raise InputError(f"a format is {' or '.join(SUFFIXES)}, not {wanted!r}")
    if wanted is not None and by_name not in (None, wanted):
        raise InputError(
            f"{file}: is named as {by_name} has it, and the format is {wanted}; end it in {SUFFIXES[wanted]}"
        )
    if file.suffix == ".json":
        raise InputError(f"{file}: is the name of the description beside a graph; end it in .onnx or .pt2")
    return wanted or by_name or "onnx"


def output_of(task: str) -> str:
    """The name of a task's logits."""
    return f"logits.{task}"


def write_graph(
    graph: Graph, file: str | Path, wanted: str | None, description: Mapping[str, Any]
) -> Exported:
    """Write the graph, compared with the model before, and its description to FILE and FILE.json.

    description: JSON-able, of the inputs and of each of the tasks. Raises InputError for a format or file that cannot
    be, packages that are not installed, and a graph that does not say what the model says.
    """
    file = Path(file)
    form = format_of(file, wanted)
    if file.is_dir():
        raise InputError(f"{file}: is a folder; give a file, {file.name}{SUFFIXES[form]} say")
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
    beside = file.with_name(f"{file.name}.json")  # not model.json, which is a model's own
    described: dict[str, Any] = {
        "format": FORMAT,
        "graph": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": {name: list(axes) for name, axes in graph.axes.items()},
        "outputs": {name: list(axes) for name, axes in outputs.items()},
        **description,
    }
    # In this order: a description whose graph is missing or another one is told by its digest.
    write_atomically(beside, json.dumps(described, allow_nan=False).encode("ascii"))
    write_atomically(file, content)
    return Exported(file, beside, compared_by, difference, graph.axes, outputs)


def _axes(graph: Graph, logits: Tensor) -> tuple[str | int, ...]:
    """Those of logits (..., C): what stands before C is the batch's, as its first input has it."""
    of_input = next(iter(graph.axes.values()))
    return (graph.rows, *of_input[1 : logits.dim() - 1], logits.shape[-1])


def _program(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch.export has it, for batches of any size, none too. Raises InputError where it cannot."""
    sizes: dict[str, Any] = {}
    for axes in graph.axes.values():
        # Not by the axis's own name, which may be that of an input.
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
    except Exception as error:  # whatever a module of somebody else's does while it is traced
        raise InputError(
            f"{_name(module)} cannot be traced for any size of batch: {_first_line(error)}"
        ) from error


def _onnx(graph: Graph, outputs: Sequence[str]) -> bytes:
    """The graph as ONNX, its tensors within."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs the package {missing[0]}: pip install 'mt2st-fast[export]', or export with the format torch"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.module.state_dict().values())
    if size > MOST_ONNX_BYTES:
        raise InputError(
            f"the model's tensors are {size / 2**30:.1f} GiB, and a file of ONNX ends at 2; export with the format "
            "torch"
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
    """The largest of all logits from the model's. Raises InputError where it is above TOLERANCE."""
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
                    f"the graph's logits of {task} are {off:.1e} off the model's, and nothing was written; please "
                    "report it"
                )
            largest = max(largest, off)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of what is theirs to change."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _name(module: nn.Module) -> str:
    """That of the encoder, where it is somebody else's."""
    return type(getattr(module, "encoder", module)).__name__


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
