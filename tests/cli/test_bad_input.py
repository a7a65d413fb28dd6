"""Whatever cannot be used is one line that names it, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mt2st_fast.training.schedules import strategies
from tests.cli.running import QUICK, fails


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--data", "conllu:/nowhere/at/all"], ["/nowhere/at/all"]),
        (["train", "--data", "parquet:x"], ["parquet", "conllu", "stdlib"]),
        (["train", "--data", "TREEBANK", "--main", "mood"], ["mood", "upos"]),
        (["train", "--data", "TREEBANK", "--aux", "xpos,mood"], ["mood", "xpos"]),
        (["train", "--data", "TREEBANK", "--main", "upos", "--aux", "upos"], ["upos", "auxiliary"]),
        (["train", "--data", "TREEBANK", "--strategy", "magic"], ["magic", *strategies()]),
        (["train", "--data", "TREEBANK", "--backend", "cuda"], ["cuda", "numba", "triton"]),
        (["train", "--data", "TREEBANK", "--backend", "triton"], ["triton", "cpu"]),
        (["train", "--data", "TREEBANK", "--device", "tpu9"], ["tpu9"]),
        (["train", "--data", "TREEBANK", "--init", "OUT/none.txt"], ["OUT/none.txt"]),
        (["train", "--data", "TREEBANK", "--init", "OUT/tiny.vec"], ["OUT/tiny.vec", "3 numbers", "--dim 3"]),
        (["train", "--data", "TREEBANK", "--lr", "-1"], ["lr", "-1"]),
        (["train", "--data", "TREEBANK", "--epochs", "0"], ["epochs"]),
        (["train", "--data", "TREEBANK", "--epochs", "1e300"], ["--epochs", "1000000"]),
        (["train", "--data", "TREEBANK", "--precision", "int4"], ["int4", "bfloat16"]),
        (["train", "--data", "TREEBANK", "--switch-at", "2"], ["switch-at"]),
        (["train", "--data", "TREEBANK", "--metric", "r2"], ["metric r2", "upos", "accuracy, macro_f1"]),
        (["train", "--data", "TREEBANK", "--metric", "span_f1"], ["metric span_f1", "accuracy, macro_f1\n"]),
        (["train", "--data", "TREEBANK", "--label-fraction", "0"], ["fraction"]),
        (["train", "--data", "TREEBANK", "--device", "cpu", "--graph"], ["--graph needs", "CUDA"]),
        (
            ["train", "--data", "TREEBANK", "--backward", "fused", "--clip-norm", "1"],
            ["--backward fused", "--clip-norm"],
        ),
        (["train", "--data", "TREEBANK", "--strategy", "stl", "--nu", "2"], ["--nu", "stl", "diminish"]),
        (["train", "--data", "TREEBANK", "--alpha", "0.5"], ["--alpha", "switch", "squaring"]),
        (["compare", "--data", "TREEBANK", "--strategies", "stl,mtl", "--nu", "2"], ["--nu", "diminish"]),
        (["compare", "--data", "TREEBANK", "--strategies", " ,"], ["--strategies", "switch"]),
        (["train", "--batch-size", "many"], ["batch-size", "integer"]),
        (["train", "--colour", "red"], ["--colour"]),
        (["train", "--resume", "--out", "OUT/empty"], ["resume"]),
        (["train", "--data", "TREEBANK", "--out", "/proc/run"], ["/proc/run"]),
        (["compare", "--data", "TREEBANK", "--strategies", "stl,magic"], ["magic", "switch"]),
        (["predict", ""], ["model", "it is empty"]),
        (["predict", "OUT", ""], ["file", "it is empty"]),
        (["test", "", "conllu:x"], ["model", "it is empty"]),
        (["test", "OUT", ""], ["data", "it is empty"]),
        (["export", ""], ["model", "it is empty"]),
        (["report", ""], ["DIR", "it is empty"]),
        (["evaluate", ""], ["vectors", "it is empty"]),
        (["prepare", "", "--out", "OUT/t"], ["corpus", "it is empty"]),
        (["train", "--config", ""], ["--config", "it is empty"]),
        (["compare", "--config", ""], ["--config", "it is empty"]),
        (["prepare", "/nowhere/at/all", "--out", "OUT/t"], ["/nowhere/at/all"]),
        (["prepare", "OUT/tiny.conllu", "--out", "OUT"], ["OUT", "folder"]),
        (["prepare", "OUT/tiny.conllu", "--out", "/proc/t"], ["/proc"]),
        (
            ["prepare", "OUT/tiny.conllu", "--out", "OUT/t", "--min-count", "999999"],
            ["999999", "most frequent", "a smaller --min-count"],
        ),
        (["prepare", "OUT/tiny.conllu", "--out", "OUT/t", "--min-count", "0"], ["min-count"]),
        (["prepare", "/nowhere/at/all", "--out", "OUT/deep/t"], ["/nowhere/at/all"]),
        (["evaluate", "OUT/none.vec", "--out", "OUT/deep/out"], ["OUT/none.vec"]),
        (["export", "OUT/none", "--out", "OUT/deep/m.onnx"], ["OUT/none"]),
        (["prepare", "OUT/tiny.conllu"], ["--out"]),
        (["kernels", "--compile", "sm_90,z80"], ["z80", "sm_"]),
        (["dance"], ["dance", "see mt2st-fast --help"]),
        (["test", "OUT"], ["data", "see mt2st-fast test --help"]),
        (["evaluate", "OUT"], ["OUT is a folder", "file of word vectors"]),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], names: list[str], treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.replace("TREEBANK", treebank).replace("OUT", str(tmp_path)) for a in arguments]
    if arguments[0] in ("train", "compare") and "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    before = set(tmp_path.rglob("*"))
    error = fails(capsys, *filled)
    for name in names:
        assert name.replace("OUT", str(tmp_path)) in error
    assert set(tmp_path.rglob("*")) == before  # not even an empty folder more


def test_malformed_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.conllu"
    path.write_text("1\tA\ta\tDET\tDT\t_\t0\troot\t_\t_\n2\tdog\tdog\n\n", encoding="utf-8")
    assert f"{path}:2" in fails(capsys, "train", "--data", f"conllu:{path}", "--out", str(tmp_path / "out"))


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mt2st_fast", "train", "--strategy", "magic", "--out", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_working_directory_that_was_deleted_is_named(tmp_path: Path) -> None:
    """There, a matrix product of torch ends the process by a message of its library."""
    command = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m mt2st_fast info"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "mt2st-fast: the working directory has been deleted; change to another one (cd)\n"


def test_an_ascii_terminal_ends_no_run(treebank: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mt2st_fast", "train", "--data", treebank, "--out", str(tmp_path / "o"), *QUICK],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"?" not in done.stdout  # what ASCII lacks has something to stand for it
    assert (tmp_path / "o" / "report.html").exists()
