"""The passes of a step: a layer is computed once on the way up and once on the way down, wherever they are cut."""

from __future__ import annotations

from itertools import combinations

import pytest

from mt2st_fast.kernels.step.on_numba.tile_passes import tile_passes_of

CASES = [
    (L, reach, cuts)
    for L in range(4)
    for reach in range(L + 2)
    for n in range(L + 1)
    for cuts in combinations(range(L), n)
]


@pytest.mark.parametrize(("L", "reach", "cuts"), CASES)
def test_layers_are_passed_in_order(L, reach, cuts):
    passes = tile_passes_of(L, reach, cuts)
    assert [tile_pass["begins"] for tile_pass in passes] == [1] + [0] * (len(passes) - 1)
    assert [tile_pass["ends"] for tile_pass in passes] == [0] * (len(passes) - 1) + [1]
    assert sum(tile_pass["turns"] for tile_pass in passes) == 1
    up, down, turned = [], [], False
    for tile_pass in passes:
        layers = list(range(tile_pass["up"], tile_pass["up_end"]))
        up += [("product", n) for n in layers if tile_pass["begins"] or n > tile_pass["up"]]
        up += [("activate", n) for n in layers if not (tile_pass["measures"] and n == layers[-1])]
        turned |= bool(tile_pass["turns"])
        layers = list(range(tile_pass["down"], tile_pass["down_end"], -1))
        assert turned or not layers
        down += [("deactivate", n) for n in layers if tile_pass["turns"] or n < tile_pass["down"]]
        down += [("product", n) for n in layers if not (tile_pass["pauses"] and n == layers[-1])]
    reached = [n for n in range(L) if n >= L - reach]
    for work, passed, layers in (("activate", up, range(L)), ("deactivate", down, reached)):
        assert sorted(n for what, n in passed if what == "product") == list(layers)
        assert sorted(n for what, n in passed if what == work) == list(layers)
    assert len(passes) == 1 + len(cuts) + len([cut for cut in cuts if cut in reached])
