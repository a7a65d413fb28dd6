"""Helpers are optimized once, with the kernel that calls them; other functions may call them, too."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import pytest
from numba.core.codegen import JITCodeLibrary

from mt2st_fast.kernels.machine.jit import exact_entry, helper
from mt2st_fast.kernels.machine.linking import _all_of, _HelperLibrary, lacking


@helper
def _twice(x):
    return 2 * x


@helper
def _twice_and_one(x):
    return _twice(x) + 1


@helper
def _sum_of_both(x):
    return _twice_and_one(x) + _twice(x)


@pytest.fixture
def optimized(monkeypatch):
    """The names of the functions that are optimized from now on."""
    names, optimize = [], JITCodeLibrary._optimize_final_module

    def listed(library):
        names.append(library.name)
        optimize(library)

    monkeypatch.setattr(JITCodeLibrary, "_optimize_final_module", listed)
    monkeypatch.setattr("mt2st_fast.kernels.machine.jit.kernel_cache", lambda function: None)
    return names


def test_helpers_are_optimized_once_with_the_kernel_that_calls_them(optimized):
    @exact_entry
    def kernel(x):
        return _sum_of_both(x)

    assert kernel(5) == 21
    own = [name for name in optimized if name != "nrt"]  # Numba's runtime, once in a process
    assert [name.rpartition(".")[2] for name in own] == ["kernel"]


def test_a_function_of_a_users_own_may_call_a_helper_of_helpers():
    @numba.njit
    def own(x):
        return _sum_of_both(x) + _twice_and_one(x)

    assert own(5) == 32


class _Calling(_HelperLibrary):
    """Code that calls that of these libraries."""

    def __init__(self, name, calls=()):
        self._name, self._linking_libraries = name, list(calls)


def test_what_helpers_call_is_linked_after_all_that_call_it():
    """Until something calls it, LLVM leaves it out, and nothing brings it later."""
    called = _Calling("called")
    between = _Calling("between", [called])
    outer = _Calling("outer", [between, called])
    other = _Calling("other", [called, outer])
    for libraries in ([called, outer], [outer, called], [called, other, between], [between, other]):
        order = _all_of(libraries)
        assert len(order) == len(set(order))
        for caller in order:
            assert all(order.index(caller) < order.index(each) for each in caller._linking_libraries)


OTHER_NUMBA = """
import sys
sys.modules["mt2st_fast.kernels.machine.linking"] = None
from mt2st_fast.kernels.machine.jit import exact_entry, helper

@helper
def twice(x):
    return 2 * x

@exact_entry
def kernel(x):
    return twice(x) + twice(x)

print(kernel(5))
"""


def test_where_numba_is_another_inside_it_compiles_in_its_own_way(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", OTHER_NUMBA], capture_output=True, text=True, check=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert found.stdout.strip() == "20"
    assert "kernels compile more slowly" in found.stderr


def test_what_a_version_of_numba_lacks_is_named():
    assert lacking({JITCodeLibrary: ("finalize",)}) == []
    assert lacking({JITCodeLibrary: ("finalize", "gone")}) == ["JITCodeLibrary.gone"]
