"""Every test here needs a GPU, and is skipped one by one without: imports, names and parameters are run everywhere."""

from __future__ import annotations

import pytest

from bench.summary import REASON
from tests.on_gpu import helpers


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    if reason := helpers.obstacle():
        pytest.skip(reason)


class _Reasons:
    """Tells at once why a test has failed: a run that is stopped at its time limit prints no tracebacks."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.ensure_newline()
            terminal.write_line(f"{REASON}{report.nodeid}: {helpers.reason_of(report.longreprtext)}")


def pytest_configure(config: pytest.Config) -> None:
    # Of pytest-xdist's processes, the one that writes to the terminal.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Reasons(config))
