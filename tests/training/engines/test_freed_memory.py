"""Memory that a step has freed is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest

from mt2st_fast.training.engines import freed_memory

# Nothing but NumPy: other libraries free large blocks while they are imported, after which glibc keeps all by itself.
PROGRAM = """
    import importlib.util
    import resource
    import sys

    import numpy as np

    spec = importlib.util.spec_from_file_location("freed_memory", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            held = [np.ones(800_000, np.float32) for _ in range(6)]
            del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    before = faults()
    module.keep_freed_memory()
    faults()
    print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
def test_the_heap_is_kept(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), freed_memory.__file__]
    found = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True).stdout
    before, after = map(int, found.split())
    assert before > 1_000
    assert after < before / 10
