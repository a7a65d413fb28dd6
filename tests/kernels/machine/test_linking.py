"""Helpers are optimized once, with the kernel that calls them; other functions may call them, too."""

from __future__ import annotations

import numba
import pytest
from numba.core.codegen import JITCodeLibrary

from mt2st_fast.kernels.machine.jit import exact_entry, helper


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
