"""Memory that a step has freed is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource
    import torch
    from mt2st_fast.training.engines.freed_memory import keep_freed_memory

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            held = [torch.ones(800_000) for _ in range(6)]
            del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    before = faults()
    keep_freed_memory()
    faults()
    print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heap")
def test_the_heap_is_kept(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    found = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True).stdout
    before, after = map(int, found.split())
    if before < 1_000:
        pytest.skip("glibc keeps the memory already: something has freed a large block while it was imported")
    assert after < before / 10
