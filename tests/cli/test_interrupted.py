"""Ctrl-C while a command still imports what it needs ends it as one in a run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mt2st_fast.cli import main

SLOW = """
import pathlib, time
pathlib.Path(__file__).with_name("begun").touch()
{}
"""
IMPORTS = {
    "plain": "time.sleep(60)",
    "swallowing": "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('no torch here')",
}
COMMANDS = {
    "module": [sys.executable, "-m", "mt2st_fast", "info"],
    "script": [str(Path(sys.executable).with_name("mt2st-fast")), "info"],
    "labelling": [sys.executable, "-m", "mt2st_fast", "predict", "model", "text.txt"],
}


@pytest.mark.parametrize("kind", IMPORTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_torch_is_imported_is_one_line(command: str, kind: str, tmp_path: Path) -> None:
    if command == "script" and not Path(COMMANDS[command][0]).exists():
        pytest.skip("the command is not installed beside this Python")
    slow = tmp_path / "torch"
    slow.mkdir()
    (slow / "__init__.py").write_text(SLOW.format(IMPORTS[kind]))
    process = subprocess.Popen(
        COMMANDS[command], env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (slow / "begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (130, "", "mt2st-fast: interrupted\n")


def test_an_interrupt_within_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mt2st_fast.cli.info.info", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["info"])
    assert (ended.value.code, *capsys.readouterr()) == (130, "", "mt2st-fast: interrupted\n")


def test_the_package_alone_imports_no_torch_and_has_all_names() -> None:
    code = (
        "import sys, mt2st_fast; assert 'torch' not in sys.modules; mt2st_fast.__version__; "
        "names = dir(mt2st_fast); from mt2st_fast import *; import mt2st_fast.public as public; "
        "assert {'Trainer', '__version__', *public.__all__} <= set(names); assert Trainer is public.Trainer; "
        "assert mt2st_fast.kernels.multitask_loss is multitask_loss"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_test_puts_in_place_of_a_name_stays() -> None:
    code = (
        "import mt2st_fast; mt2st_fast.load = 'mine'; assert not hasattr(mt2st_fast, 'loads'); "
        "from mt2st_fast import Trainer; assert mt2st_fast.load == 'mine'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_refused_as_by_any_module() -> None:
    import mt2st_fast

    with pytest.raises(AttributeError, match="module 'mt2st_fast' has no attribute 'Trainr'"):
        _ = mt2st_fast.Trainr
    with pytest.raises(ImportError, match="cannot import name 'Trainr' from 'mt2st_fast'"):
        from mt2st_fast import Trainr  # noqa: F401
