"""What a run does when it is told to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from mt2st_fast.cli.signals import STOPPING, StoppingOnSignals
from mt2st_fast.folder_lock import holding
from tests.cli.running import QUICK, fails


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_run_to_stop_and_the_handlers_come_back(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = types.SimpleNamespace(stop_requested=False)
    with StoppingOnSignals() as stopping:
        stopping.on_step(trainer)  # type: ignore[arg-type]
        assert not trainer.stop_requested
        signal.raise_signal(number)
        assert stopping.received == [number]
        assert capfd.readouterr().err == (f"{STOPPING}\n" if number == signal.SIGINT else "")
        assert stopping.exit_code == 128 + number
        stopping.on_fit_start(trainer)  # type: ignore[arg-type]
        assert trainer.stop_requested
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends it at once
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_leaves_a_checkpoint(treebank: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mt2st_fast", "train", "--data", treebank, *QUICK, "--epochs", "100000"]
    with subprocess.Popen([*command, "--out", str(tmp_path / "o")], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        watch = threading.Timer(120, run.kill)
        watch.start()
        while not (tmp_path / "o/checkpoint/last.safetensors").exists() and run.poll() is None:
            pass
        (tmp_path / "o/checkpoint/last.safetensors").unlink()
        run.terminate()
        text = run.stdout.read()
        watch.cancel()
    assert run.returncode == 128 + signal.SIGTERM, text
    assert (tmp_path / "o/checkpoint/last.safetensors").exists()


def test_a_second_run_into_a_folder_is_refused(
    treebank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holding(tmp_path):
        assert "another run is writing" in fails(capsys, "train", "--data", treebank, "--out", str(tmp_path))
    assert not (tmp_path / "config.json").exists()
