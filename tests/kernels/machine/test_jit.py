"""Compiled kernels are kept for the sources that they were made from, need not be kept, and say when they compile."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from numba.core.registry import cpu_target

import mt2st_fast.kernels.machine as machine_package
from mt2st_fast.compiling import compile_seconds, on_compile
from mt2st_fast.kernels.bags.on_numba.row_sums import sum_rows
from mt2st_fast.kernels.machine import cache, compiling
from mt2st_fast.kernels.machine.jit import borrower, entry, helper

MACHINE = Path(machine_package.__file__).parent

HELPER = """
from ..machine.jit import helper

@helper
def factor(x):
    return {factor} * x
"""
KERNEL = """
from ..machine.jit import entry
from ..machine.team import Kernel
from .helper import factor

@entry
def scaled(x):
    return factor(x)

def _total(team, values):
    total = 0.0
    for value in values:
        total += factor(value)
    return total

total = Kernel(_total)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A small package with this one's `machine` and a kernel of its own; runs programs in it."""
    folder = tmp_path_factory.mktemp("house")
    package = folder / "house"
    shutil.copytree(MACHINE, package / "machine", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ops").mkdir()
    for each in (package, package / "ops"):
        (each / "__init__.py").touch()
    (package / "ops" / "kernel.py").write_text(KERNEL)

    def run(factor: float, cache_folder: Path, first: str = "") -> str:
        (package / "ops" / "helper.py").write_text(HELPER.format(factor=factor))
        program = textwrap.dedent("""
            import numpy as np
            from house.machine.compiling import clock
            from house.ops.kernel import scaled, total
            print(scaled(2.0), total(np.ones(3)), len(heard))
        """)
        heard = (
            "from house.machine.compiling import clock\nheard = []\nclock._listeners.append(heard.append)\n"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", first + heard + program],
            env=in_house(folder, cache_folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() + done.stderr

    run.folder = folder
    return run


def in_house(folder, cache_folder):
    return os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(cache_folder)}


@pytest.fixture(scope="module")
def compiled(house, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    assert house(3.0, folder) == "6.0 9.0 3"
    return folder


@pytest.fixture
def kept(compiled, tmp_path):
    """A folder of the kernels that the house compiles with the factor 3."""
    return shutil.copytree(compiled, tmp_path / "kept")


def test_a_changed_helper_is_compiled_anew_and_an_unchanged_one_is_not(house, kept):
    assert house(3.0, kept) == "6.0 9.0 0"  # loaded
    # The kernel's own file is as it was: Numba's cache would hand out what it knows.
    assert house(5.0, kept) == "10.0 15.0 3"
    assert house(3.0, kept) == "6.0 9.0 0"  # the older folder is still there


def test_without_a_folder_it_computes_and_says_so_once(house, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    said = house(3.0, taken)
    assert said.startswith("6.0 9.0 3")
    assert said.count("compiled kernels cannot be cached in") == 1
    assert "set NUMBA_CACHE_DIR to a writable folder" in said


def test_on_a_full_disk_it_computes_and_says_so_once(house, tmp_path):
    said = house(
        3.0, tmp_path / "cache", "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (99, -1))\n"
    )
    assert said.startswith("6.0 9.0 3")
    assert said.count("compiled kernels cannot be cached in") == 1
    assert "(File too large)" in said
    assert not list((tmp_path / "cache").rglob("*.nb?"))


@pytest.mark.parametrize("left", [b"", b"no kernel", None])
def test_a_damaged_file_is_compiled_anew(house, kept, left):
    """As a power cut leaves one: empty, of something else, or a part of it. Here an index, and others' code."""
    indices = sorted(kept.rglob("*.nbi"))
    assert len(indices) == 3
    for path in (indices[0], *(code for index in indices[1:] for code in kept.rglob(f"{index.stem}.*.nbc"))):
        path.write_bytes(path.read_bytes()[:200] if left is None else left)
    assert house(3.0, kept) == "6.0 9.0 3"
    assert house(3.0, kept) == "6.0 9.0 0"


def test_no_signature_gets_the_code_of_another(empty_folder):
    """Of two processes without locks, each knows of its own signature only, and writes the index first."""

    def twice(x):
        return 2 * x

    kernel = _ours(twice)
    assert kernel(2.0) == 4.0
    (empty_folder / f"{kernel._cache._impl.filename_base}.nbi").unlink()
    assert kernel(2) == 4
    assert len(list(empty_folder.glob("*.nbc"))) == 2


def test_folders_that_nobody_used_for_long_go(tmp_path):
    now, long_ago = time.time(), time.time() - cache.UNUSED_SECONDS - 60
    for name, when in (("current", long_ago), ("recent", now), ("old", long_ago)):
        (tmp_path / name).mkdir()
        (tmp_path / name / cache._STAMP).touch()
        os.utime(tmp_path / name / cache._STAMP, (when, when))
    (tmp_path / "other").mkdir()  # not one of ours
    cache._remove_unused(tmp_path, tmp_path / "current")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "other", "recent"]


def test_the_clock_counts_what_is_outermost_and_tells_who_listens(caplog, monkeypatch):
    clock = compiling.CompileClock()
    heard, now = [], [10.0]
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: now[0])
    with clock.listening(heard.append):
        clock.start("outer")
        clock.start("helper")
        now[0] = 10.5
        clock.stop()
        now[0] = 11.0
        clock.stop()
    assert heard == ["outer"]
    assert clock.seconds == 1.0
    clock.start(None)  # loaded from where it was kept: nothing to say
    clock.stop()
    assert caplog.messages == []
    for _ in range(2):
        clock.start("outer")
        clock.stop()
    assert len(caplog.messages) == 1
    assert "compiling kernels for this machine, only once" in caplog.messages[0]


def test_where_nothing_is_cached_compiling_is_not_said_to_happen_once(caplog):
    clock = compiling.CompileClock()
    clock.is_kept = False
    clock.start("outer")
    clock.stop()
    assert caplog.messages == ["compiling kernels for this machine; the run takes up to a minute longer"]


def test_the_package_has_one_clock():
    before, heard = compile_seconds(), []
    with on_compile(heard.append):
        compiling.clock.start("kernel")
        compiling.clock.stop()
    assert heard == ["kernel"]
    assert compile_seconds() > before


STARTS = """
import sys
def loaded():
    return [name for name in ("numba", "triton", "torch._dynamo", "torch._inductor") if name in sys.modules]
import mt2st_fast
assert not loaded(), loaded()
from mt2st_fast.cli import main
for command in "--help", "info":
    try:
        main([command])
    except SystemExit as left:
        assert left.code == 0
    assert not loaded(), (command, loaded())
"""


def test_starting_loads_no_compiler(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STARTS], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_helper_is_no_function_of_python(house, kept):
    # It has no machine code of its own: calling it must say so, not jump to nowhere.
    program = "from house.ops.helper import factor; factor(2.0)"
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env=in_house(house.folder, kept),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "call a kernel that uses it" in done.stderr
    assert "SystemError" in done.stderr


@pytest.mark.usefixtures("compiled")  # which leaves helper.py behind
def test_processes_that_need_a_kernel_at_once_compile_it_once(house, tmp_path):
    program = (
        "from house.ops.kernel import scaled; print(scaled(2.0), sum(scaled.stats.cache_misses.values()))"
    )
    env = in_house(house.folder, tmp_path / "kept")
    both = [
        subprocess.Popen([sys.executable, "-B", "-c", program], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0].split()[-2:] for process in both)
    assert said == [["6.0", "0"], ["6.0", "1"]]


def test_a_turn_is_waited_for_until_it_ends(tmp_path):
    if cache.fcntl is None:
        pytest.skip("this system has no such locks")
    first, second, waits, waited = cache._Turn(tmp_path / "lock"), cache._Turn(tmp_path / "lock"), [], []
    heard = threading.Event()
    assert first.take(lambda: waits.append("first")) is False
    thread = threading.Thread(target=lambda: waited.append(second.take(heard.set)))
    thread.start()
    assert heard.wait(60)
    thread.join(0.1)
    assert thread.is_alive()
    first.end()
    thread.join(60)
    assert waited == [True]
    second.end()
    assert first.take(lambda: waits.append("first")) is False
    first.end()
    assert waits == []


def test_who_has_stopped_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    if cache.fcntl is None:
        pytest.skip("this system has no such locks")
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.1)
    stopped, other = cache._Turn(tmp_path / "lock"), cache._Turn(tmp_path / "lock")
    stopped.take(lambda: None)
    assert other.take(lambda: None) is True  # who has waited looks for what was compiled meanwhile
    assert other._descriptor is None
    stopped.end()


def test_a_turn_without_a_file_is_nobodys(tmp_path):
    turn = cache._Turn(tmp_path / "gone" / "lock")
    assert turn.take(lambda: None) is False
    turn.end()


def _ours(function):
    function.__module__ = f"{machine_package.__name__}.made_up"
    return entry(function)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """A folder of its own for kernels: what an earlier run of the tests has compiled is not found."""
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.usefixtures("empty_folder")
def test_who_cannot_compile_gives_its_turn_up():
    def broken(x):
        return x + "a"  # no sum of a number and a text

    broken = _ours(broken)
    with pytest.raises(TypingError):
        broken(1.0)
    assert broken._cache._turn._descriptor is None


@pytest.mark.usefixtures("empty_folder")
def test_cycles_are_looked_for_again_after_compiling():
    def two(x):
        return 2 * x

    two = _ours(two)
    assert gc.isenabled()
    heard = []
    with on_compile(lambda name: heard.append((name, gc.isenabled()))):
        assert two(2.0) == 4.0
        gc.disable()
        try:
            assert two(2) == 4
            assert not gc.isenabled()  # as it was
        finally:
            gc.enable()
    assert heard == [("two", False), ("two", False)]
    assert gc.isenabled()


class _Interrupted:
    """A callback of LLVM's in which a signal's handler raises, once."""

    def __init__(self, error, hook):
        self.error, self.hook = error, hook

    def __call__(self, module, buffer):
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.hook(module, buffer)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), MemoryError("no memory")])
def test_what_is_raised_in_a_callback_of_llvm_is_raised_by_the_call(error, monkeypatch, capsys):
    """Python calls a signal's handler when LLVM calls back, where exceptions are only printed."""

    def two(x):
        return 2 * x

    hook = sys.unraisablehook
    engine = cpu_target.target_context.codegen()._engine._ee
    interrupted = _Interrupted(error, engine._object_cache_notify)
    monkeypatch.setattr(engine, "_object_cache_notify", interrupted)
    two = _ours(two)
    with pytest.raises(type(error)) as raised:
        two(2.0)
    assert raised.value is error
    assert "Exception ignored" not in capsys.readouterr().err
    assert sys.unraisablehook == hook
    assert two._cache._turn._descriptor is None
    assert two(2) == 4  # another signature


def test_without_machine_code_and_without_a_signal_numbas_own_error_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    own = cache.KernelCache(_plain)

    def fail(*_):
        raise RuntimeError("no compiled object yet for _plain")

    monkeypatch.setattr(cache.FunctionCache, "save_overload", fail)
    with pytest.raises(RuntimeError, match="no compiled object yet"):
        own.save_overload(None, None)


def test_only_callbacks_of_the_compiling_thread_are_kept(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    swallowed = cache._Swallowed()
    swallowed.begin()
    callback = ctypes.CFUNCTYPE(None)(lambda: 1 / 0)
    thread = threading.Thread(target=callback)
    thread.start()
    thread.join()
    assert [told.exc_type for told in heard] == [ZeroDivisionError]
    callback()
    assert len(heard) == 1
    assert isinstance(swallowed.end(), ZeroDivisionError)
    assert swallowed.end() is None
    callback()
    assert len(heard) == 2


def _plain(x):
    return x


# --- borrowers -------------------------------------------------------------------------------------------


def first_of_copy(rows, r):
    return rows[r].copy()[0]


def test_a_borrower_counts_no_references_where_a_helper_does():
    counted = []
    for compiled in (helper(sum_rows.py_func), borrower(sum_rows.py_func)):
        compiled.compile("void(int64, int64, int32[::1], int64, int64, float32[::1], int64)")
        [code] = compiled.inspect_llvm().values()
        of_its_own = code.split("_sum_narrow_rows")[0]
        counted.append(bool(re.search(r"call .*@NRT_(incref|decref)", of_its_own)))
    assert counted == [True, False]


def test_a_borrower_makes_no_array_but_a_helper_that_it_calls_first_may():
    with pytest.raises(Exception, match="NRT required"):
        borrower(first_of_copy).compile("float32(float32[:, ::1], int64)")
    copies = helper(first_of_copy)

    def call(rows, r):
        return copies(rows, r)

    by_borrower = borrower(call)
    run = numba.njit(lambda rows: by_borrower(rows, 1))
    assert run(np.array([[1, 2], [3, 4]], np.float32)) == 3
