"""Standard streams of a command that are closed, full, or read by nobody any more: one clear line, or none."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from mt2st_fast.cli import bars, predict
from tests.serving.test_text_model import made

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made("document").save(folder)
    (folder.parent / "lines.txt").write_text("die Katze\n")
    return folder


def shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `command` in a shell, where {} stands for mt2st-fast with these arguments."""
    words = [sys.executable, "-c", "from mt2st_fast.cli import main; main()", *map(str, arguments)]
    whole = command.replace("{}", shlex.join(words))
    return subprocess.run(["sh", "-c", whole], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        ("{} >&-", "mt2st-fast: standard output is closed; set --out to a file\n"),
        ("{} - <&-", "mt2st-fast: standard input is closed; name a FILE to read\n"),
    ],
)
def test_a_closed_stream_that_is_needed_is_refused_in_one_line(
    redirected: str, said: str, model: Path
) -> None:
    given = [] if "<" in redirected else [model.parent / "lines.txt"]
    done = shell(redirected, "predict", model, *given)
    assert (done.returncode, done.stderr, done.stdout) == (2, said, "")


def test_a_message_does_not_go_to_the_answers_where_standard_error_is_closed(model: Path) -> None:
    done = shell("{} 2>&-", "predict", model, model.parent / "missing.txt")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize("command", ["predict", "info"])
def test_a_full_disk_under_standard_output_is_named(command: str, model: Path) -> None:
    given = [model, model.parent / "lines.txt"] if command == "predict" else []
    done = shell("{} > /dev/full", command, *given)
    said = (
        "mt2st-fast: standard output: No space left on device; send it elsewhere or free some space there\n"
    )
    assert (done.returncode, done.stderr) == (2, said)


def test_a_reader_that_leaves_ends_every_command_alike() -> None:
    """As SIGPIPE does; rich would end it with the exit code of a failure."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from mt2st_fast.cli import main; main(['info'])"]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="the system does not name open files")
def test_on_a_terminal_a_pipe_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(bars, "plain_console", lambda **_: console)
    reader, writer = os.pipe()
    os.write(writer, b"a text\n")
    os.close(writer)
    with closing(os.fdopen(reader)):
        assert b"".join(predict._chunks(Path(f"/dev/fd/{reader}"))) == b"a text\n"
