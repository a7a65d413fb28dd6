"""What a command loads before it works: the modules of other commands take longer than a small job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mt2st_fast import cli, train_supervised
from tests.serving.test_text_model import made

PROGRAM = """
import sys
from mt2st_fast.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert left.code == 0, left.code
print("loaded", *sorted(sys.modules), file=sys.stderr)
"""


def loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1].split()
    assert last[0] == "loaded"
    return set(last[1:])


@pytest.mark.parametrize("command", ["predict", "test", "export"])
def test_the_help_of_a_command_that_uses_a_model_loads_no_torch(command: str) -> None:
    assert not {"torch", "numba", "mt2st_fast.kernels"} & loaded_by(command, "--help")


@pytest.mark.parametrize("kind", ["token", "document", "lines"])
def test_predicting_loads_nothing_of_training(kind: str, tmp_path: Path) -> None:
    if kind == "lines":
        lines = tmp_path / "lines.txt"
        lines.write_text("__label__a good nice\n__label__b bad\n" * 40)
        train_supervised(lines, dim=8, epoch=1, batch_size=16).save(tmp_path / "model")
    else:
        made(kind).save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("die Katze\n")
    loaded = loaded_by("predict", str(tmp_path / "model"), str(tmp_path / "text.txt"))
    for package in ("training", "runs", "exporting", "integrations"):
        assert not [name for name in loaded if name.startswith(f"mt2st_fast.{package}")]
    assert not {"mt2st_fast.cli.train", "matplotlib", "torch._dynamo", "onnx"} & loaded
    if kind != "document":
        assert "numba" not in loaded  # a few words need no kernel


def test_a_command_alone_is_called_by_its_name() -> None:
    for name in cli.COMMANDS:
        command = typer.main.get_command(cli.load_command([name, "--help"]))
        assert list(command.commands) == [name]  # type: ignore[attr-defined]
    for arguments in ([], ["--help"], ["unknown"]):
        command = typer.main.get_command(cli.load_command(arguments))
        assert list(command.commands) == list(cli.COMMANDS)  # type: ignore[attr-defined]
