"""Within an evaluation every part of a module is in evaluation mode, and afterwards in its own."""

from __future__ import annotations

import pytest
from torch import nn

from mt2st_fast.model.modes import evaluating


class Merging(nn.Linear):
    """A layer that does more than set a flag, as those of LoRA."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.asked: list[bool] = []

    def train(self, mode: bool = True) -> Merging:
        self.asked.append(mode)
        return super().train(mode)


def modes_of(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def stack(layer: nn.Module) -> nn.Sequential:
    made = nn.Sequential(layer, nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.ReLU())
    made[1][0].eval()  # frozen
    return made


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), Merging()])
@pytest.mark.parametrize("fails", [False, True])
def test_every_part_is_evaluated_and_has_its_mode_again(layer, fails):
    module = stack(layer.train())
    before = modes_of(module)
    assert not all(before)
    if fails:
        with pytest.raises(KeyError), evaluating(module):
            raise KeyError
    else:
        with evaluating(module):
            assert not any(modes_of(module))
    assert modes_of(module) == before


def test_what_changes_its_mode_in_its_own_way_is_asked_to():
    layer = Merging()
    with evaluating(stack(layer)):
        assert layer.asked == [False]
    assert layer.asked == [False, True]

    replaced, calls = nn.Linear(2, 2), []
    replaced.train = lambda mode=True: calls.append(mode) or replaced  # type: ignore[method-assign]
    with evaluating(replaced):
        pass
    assert calls == [False, True]
