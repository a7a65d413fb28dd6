"""`pytest bench --benchmark-only` times real sizes; any other run of pytest only checks that the benchmarks run."""

from __future__ import annotations

import pytest

from bench.environment import describe

# Markers of a quick comparison at real sizes, and of sizes too small to show speed.
TIMED, TRIED = "timed", "tried"


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark looks at its options
def pytest_configure(config: pytest.Config) -> None:
    """Disable timing unless it is requested."""
    option = config.option
    asked = ("benchmark_only", "benchmark_enable", "benchmark_skip", "benchmark_autosave", "benchmark_save",
             "benchmark_json", "benchmark_compare")  # fmt: skip
    if not any(getattr(option, name, None) for name in asked):
        option.benchmark_disable = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that do not belong to this run, as `-m` does."""
    timing = bool(getattr(config.option, "benchmark_only", False))
    unwanted = TRIED if timing else TIMED
    left_out = [item for item in items if item.get_closest_marker(unwanted)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(unwanted)]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Add versions, threads and the processor's name to the output of `--benchmark-json`."""
    machine_info["mt2st_fast"] = describe()
