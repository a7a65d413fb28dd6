"""`mt2st-fast info`, `kernels` and `prepare`, and what the commands do not load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mt2st_fast.cli import main
from mt2st_fast.data import TokenStream
from tests.cli.running import QUICK, run


def test_info_names_backends_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    run("info")
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("numba", "reference", "chunked", "tile", "torch"))


def test_without_a_command_the_help_is_all_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "Commands" in said.out + said.err
    assert "mt2st-fast:" not in said.err


def test_info_shows_what_a_forced_backend_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MT2ST_BACKEND", "numba")
    run("info")
    assert "honoured" in capsys.readouterr().out


@pytest.mark.parametrize(("spills", "code"), [(0, 0), (8, 1)])
@pytest.mark.parametrize("flags", [[], ["--variants"]])
def test_kernels_that_spill_fail_the_command(
    flags: list[str],
    spills: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # That every kernel compiles, tests/kernels/machine shows; it takes minutes.
    ahead_of_time = pytest.importorskip("mt2st_fast.kernels.machine.ahead_of_time")
    asked: list[str] = []

    def compile_all(targets: list[str], report: Any) -> list[Any]:
        asked.extend(targets)
        for done in range(1, 101):
            report(done, 100)
        return [
            ahead_of_time.CompiledKernel("pool_kernel", "mean", targets[0], 32, spills, 1024),
            ahead_of_time.CompiledKernel("pool_kernel", "sum", targets[0], 40, 0, 512),
        ]

    monkeypatch.setattr(ahead_of_time, "compile_all", compile_all)
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--compile", "sm_90, gfx942", *flags])
    assert stop.value.code == code
    assert asked == ["sm_90", "gfx942"]
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if "pool_kernel" in line] != []
    # A kernel's line has its variants' largest numbers; a variant is named where it spills, or where all are.
    assert ("mean" in said.out, "sum" in said.out) == (bool(flags or spills), bool(flags))
    if not flags:
        assert re.search(rf"pool_kernel +\W+ sm_90 +\W+ 2 +\W+ 40 +\W+ {spills} +\W+ 1,024", said.out)
    assert f"2 variants compiled, {min(spills, 1)} with spills" in said.out
    assert said.err.splitlines() == [f"{done} of 100 variants compiled" for done in range(10, 101, 10)]


@pytest.mark.parametrize("targets", ["", " , "])
def test_kernels_for_no_target_are_refused(targets: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--compile", targets])
    assert stop.value.code == 2
    assert "--compile names no architecture; the default is sm_80" in capsys.readouterr().err


def test_prepare_writes_a_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("The cat saw the dog\nA dog saw\n")
    run(
        "prepare",
        str(tmp_path / "x.txt"),
        "--out",
        str(tmp_path / "new" / "t"),
        "--lower",
        "--min-count",
        "2",
    )
    tokens = TokenStream.open(tmp_path / "new" / "t")
    assert [tokens.vocabulary.words[t] for t in tokens.ids] == ["the", "saw", "the", "dog", "dog", "saw"]
    assert tokens.bounds.tolist() == [0, 4, 6]
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 tokens in 2 sentences, 3 word types; 2 rarer types (2 tokens) left out. 1 file, 0.0 MB" in shown


def test_the_command_line_starts_without_the_pictures() -> None:
    program = "import sys, mt2st_fast.cli; mt2st_fast.cli.app; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_training_starts_without_torchs_compiler(treebank: str, tmp_path: Path) -> None:
    """Importing it takes longer than a small run trains."""
    arguments = ["train", "--data", treebank, *QUICK, "--epochs", "1", "--out"]
    program = f"""
import sys
from mt2st_fast.cli import main
for options in ["plain"], ["clipped", "--clip-norm", "1"], ["accumulated", "--accumulate", "2"]:
    try:
        main([*{arguments!r}, *options])
    except SystemExit as left:
        assert left.code == 0
    assert "torch._dynamo" not in sys.modules, options
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / out / "report.json").exists() for out in ("plain", "clipped", "accumulated"))
