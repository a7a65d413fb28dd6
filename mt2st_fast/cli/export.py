"""`mt2st-fast export`: a trained model as a graph for ONNX runtimes or torch.export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mt2st_fast.cli.paths import out_file, path_argument
from mt2st_fast.cli.tasks import tasks_named, tasks_option
from mt2st_fast.cli.terminal import plain_console, say
from mt2st_fast.errors import InputError
from mt2st_fast.files import check_not_read
from mt2st_fast.interrupts import importing

if TYPE_CHECKING:
    from mt2st_fast.exporting.writing import Exported


def export(
    model: Annotated[Path, path_argument("folder of a `train` run or of a saved model")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="onnx or torch (.pt2); by default from the suffix of --out; onnx if it has none"
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="output file; next to the model's folder by default; also writes FILE.json",
        ),
    ] = None,
    tasks: Annotated[str | None, tasks_option("compute")] = None,
) -> None:
    """Write a model as a graph of plain operators for any batch size, and a JSON file describing inputs and outputs."""
    with importing():
        from mt2st_fast.exporting.writing import SUFFIXES, format_of
        from mt2st_fast.model_folder import files_of_model, model_in

    asked = None if out is None else out_file(out)
    folder = model_in(model)
    names = list(tasks_named(tasks)) or None
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    file = asked or named.with_name(f"{named.name}{SUFFIXES.get(form or 'onnx', '')}")
    for written in (file, file.with_name(f"{file.name}.json")):
        check_not_read(written, files_of_model(folder))
    _say(_written(folder, file, format_of(file, form), names))


def _written(folder: Path, file: Path, form: str, tasks: list[str] | None) -> Exported:
    with importing():
        from mt2st_fast.exporting.models import export_modules
        from mt2st_fast.model.description import KIND as MODULES
        from mt2st_fast.model_folder import kind_of
        from mt2st_fast.serving.load import load
        from mt2st_fast.words.word2vec_model import KIND as WORD2VEC

    kind = kind_of(folder)
    if kind == WORD2VEC:
        raise InputError(
            f"{folder}: is a Word2Vec model, which has vectors but no task to compute; write the "
            "vectors with Word2Vec.load(folder).wv.save_word2vec_format(file)"
        )
    loaded = load(folder)
    if kind == MODULES:
        encoder, heads = loaded
        return export_modules(encoder, heads, file, form, tasks=tasks)
    written: Exported = loaded.export(file, form, tasks)
    return written


def _say(written: Exported) -> None:
    console = plain_console()
    size = written.graph.stat().st_size
    shown = [
        ", ".join(f"{name} ({' x '.join(map(str, axes))})" for name, axes in some.items())
        for some in (written.inputs, written.outputs)
    ]
    say(console, f"{written.graph} ({size:,} bytes): {shown[0]} -> {shown[1]}")
    say(console, f"{written.description}: describes the inputs, words and labels; see mt2st_fast.TextInputs")
    if written.compared_by:
        say(
            console,
            f"checked with {written.compared_by}: logits differ from the model's by at most "
            f"{written.largest_difference:.1e}",
        )
    else:
        say(
            console,
            "not checked against the model, as onnxruntime is not installed: pip install 'mt2st-fast[export]'",
        )
