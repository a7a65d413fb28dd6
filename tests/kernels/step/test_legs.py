"""The passes of a step: a layer is computed once on the way up and once on the way down, wherever they are cut."""

from __future__ import annotations

from itertools import combinations

import pytest

from mt2st_fast.kernels.step.on_numba.legs import legs_of

CASES = [
    (L, reach, cuts)
    for L in range(4)
    for reach in range(L + 2)
    for n in range(L + 1)
    for cuts in combinations(range(L), n)
]


@pytest.mark.parametrize(("L", "reach", "cuts"), CASES)
def test_layers_are_passed_in_order(L, reach, cuts):
    legs = legs_of(L, reach, cuts)
    assert [leg["begins"] for leg in legs] == [1] + [0] * (len(legs) - 1)
    assert [leg["ends"] for leg in legs] == [0] * (len(legs) - 1) + [1]
    assert sum(leg["turns"] for leg in legs) == 1
    up, down, turned = [], [], False
    for leg in legs:
        layers = list(range(leg["up"], leg["up_end"]))
        up += [("product", n) for n in layers if leg["begins"] or n > leg["up"]]
        up += [("activate", n) for n in layers if not (leg["measures"] and n == layers[-1])]
        turned |= bool(leg["turns"])
        layers = list(range(leg["down"], leg["down_end"], -1))
        assert turned or not layers
        down += [("deactivate", n) for n in layers if leg["turns"] or n < leg["down"]]
        down += [("product", n) for n in layers if not (leg["pauses"] and n == layers[-1])]
    reached = [n for n in range(L) if n >= L - reach]
    for work, passed, layers in (("activate", up, range(L)), ("deactivate", down, reached)):
        assert sorted(n for what, n in passed if what == "product") == list(layers)
        assert sorted(n for what, n in passed if what == work) == list(layers)
    assert len(legs) == 1 + len(cuts) + len([cut for cut in cuts if cut in reached])
