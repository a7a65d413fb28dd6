"""Models of combinations of tasks: made once, and of many combinations the latest."""

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.training.engines.kernel_calls.kept_models import KeptModels


def layout_of(*names):
    return HeadLayout((HeadSpec(Kind.SOFTMAX, 2),) * len(names), names)


def test_a_model_is_made_once_and_the_oldest_goes():
    kept, made = KeptModels(2), []

    def make(layout):
        made.append(layout.names)
        return layout.names

    for names in (("a",), ("b",), ("a",), ("a", "b"), ("b",), ("a",)):
        assert kept.of(layout_of(*names), make) == names
        assert len(kept) <= 2
    assert made == [("a",), ("b",), ("a", "b"), ("a",)]
    assert list(kept) == [("a", "b"), ("a",)]
