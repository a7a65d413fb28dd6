"""Pictures show the names of a user letter by letter."""

from __future__ import annotations

import pytest

from mt2st_fast.runs.plots import plain, plot_seconds, svg


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "a\nb", "\udcff", "中文"])
def test_any_name_can_be_drawn(name: str) -> None:
    figure = plot_seconds({name: [[(0.0, 0.5)]], "other": [[(1.0, 0.5)]]}, name)
    assert svg(figure)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [plain(name), "other"]
