"""Pictures show the names of a user letter by letter."""

from __future__ import annotations

import pytest

from mt2st_fast.runs.plots import median_curve, plain, plot_curves, plot_seconds, svg
from mt2st_fast.training.history import History, StepRecord


@pytest.mark.parametrize("name", [r"$\frac$", "_hidden", "a\nb", "\udcff", "中文"])
def test_any_name_can_be_drawn(name: str) -> None:
    figure = plot_seconds({name: [[(0.0, 0.5)]], "other": [[(1.0, 0.5)]]}, name)
    assert svg(figure)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [plain(name), "other"]


def test_several_curves_have_a_median_and_are_faint_themselves() -> None:
    curves = [[(1.0, 0.1), (2.0, 0.5), (3.0, 0.6)], [(2.0, 0.3), (6.0, 0.4)], [(1.5, 0.2), (9.0, 0.9)]]
    assert median_curve(curves) == [(1.5, 0.2), (6.0, 0.5)]  # one run ended early
    (axes,) = plot_seconds({"stl": curves, "one": [[(1.0, 0.2)]], "none": [[]]}, "quality").axes
    assert [len(line.get_xdata()) for line in axes.lines] == [3, 2, 2, 2, 1]
    assert [line.get_marker() for line in axes.lines] == ["None", "None", "None", "o", "s"]


def test_a_logarithmic_scale_has_plain_numbers() -> None:
    """Within a decade all labels are minor ones, which matplotlib writes as powers: 7 × 10⁻¹."""
    losses = [1.2, 0.9, 0.7]
    steps = [
        StepRecord(i, 1.0, loss, {"a": loss}, {"a": 1.0}, 0.1, 1.0, 1.0) for i, loss in enumerate(losses)
    ]
    figure = plot_curves(History("a", steps), "accuracy")
    svg(figure)
    axis = figure.axes[0].yaxis
    shown = [t.get_text() for t in [*axis.get_majorticklabels(), *axis.get_minorticklabels()] if t.get_text()]
    assert {"0.7", "0.8", "1"} <= set(shown)


@pytest.mark.parametrize(("name", "as_text"), [("情感", True), ("tone", False)])
def test_letters_that_the_font_lacks_are_left_to_the_browser(name: str, as_text: bool) -> None:
    drawn = svg(plot_seconds({name: [[(0.0, 0.5)]], "stl": [[(0.0, 0.4)]]}, "quality")).decode()
    assert ("<text" in drawn) == as_text
    assert (name in drawn.replace(f"<!-- {name} -->", "")) == as_text


def test_a_name_is_no_wider_than_a_picture() -> None:
    figure = plot_seconds({"$" * 300: [[(0.0, 0.5)]], "stl": [[(0.0, 0.4)]]}, "quality")
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width
