"""Files are written whole or not at all, where a link points to, readable by others, and errors name them."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mt2st_fast import InputError, train_supervised
from mt2st_fast.files import partial_folder, write_atomically
from mt2st_fast.folder_lock import locked
from mt2st_fast.tensor_files import write_tensors


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """A full disk, as far as a process can make one for itself; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    (tmp_path / "disk" / "old").write_text("old")
    link.symlink_to(tmp_path / "disk" / "old")
    dangling.symlink_to(tmp_path / "disk" / "new")
    for each in (link, dangling):
        write_atomically(each, b"content")
        assert each.is_symlink()
        assert each.read_text() == "content"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["new", "old"]


def test_threads_that_write_one_file_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: write_atomically(path, b"%d" % i * 1000), range(80)))
    assert len(set(path.read_bytes().decode())) <= 2
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    # An earlier process may have had the id of this one, as the first process of a container has.
    left = [f".file.{ended_process()}-7", f".file.{os.getpid()}-7", f".file.{ended_process()}"]
    kept = [f".file.{os.getppid()}-7", ".file.txt"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
    with partial_folder(path) as partial:
        write_atomically(path, b"content")
        assert {each.name for each in tmp_path.iterdir()} == {"file", partial.name, *kept}
    assert {each.name for each in tmp_path.iterdir()} == {"file", *kept}


def test_what_a_process_of_another_container_writes_is_kept(tmp_path: Path) -> None:
    """Its id means nothing here: a process with it has ended, or is this one."""
    path = tmp_path / "file"
    for process in (ended_process(), os.getpid()):
        other = tmp_path / f".file.{process}-7"
        with locked(other):
            write_atomically(path, b"content")
            assert other.is_dir()
        other.mkdir(exist_ok=True)
        write_atomically(path, b"content")
        assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_gets_the_content_and_stays(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert pipe.is_fifo()


def test_an_error_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(OSError, match="File too large") as found, files_of_at_most(4096):
        write_atomically(file, bytes(8192))
    assert found.value.filename == str(file)
    with pytest.raises(OSError, match="File too large") as found, files_of_at_most(4096):
        write_tensors(file, {"t": torch.zeros(8192)})
    assert (found.value.errno, found.value.filename) == (errno.EFBIG, str(file))
    assert not list(tmp_path.iterdir())


def test_tensors_can_be_read_by_whom_other_files_can_be(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "tensors", {"t": torch.zeros(2)})
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"tensors": 0o640, "file": 0o640}


def test_a_run_on_a_full_disk_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,mood\n" + "good day,up\nbad day,down\n" * 40)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, -1)); "
        "from mt2st_fast.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "--data", "csv:t.csv", "--epochs", "1", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("mt2st-fast: ")]
    assert line == (
        "mt2st-fast: out/checkpoint/last.safetensors: File too large; choose another --out or free some space there"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
def test_a_pipe_that_is_read_twice_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"__label__a one line\n",))
    writer.start()
    with pytest.raises(
        InputError, match="is a pipe, and it is read more than once; write it to a file first"
    ):
        train_supervised(pipe)
    writer.join()
