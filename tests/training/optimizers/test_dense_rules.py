"""Rules are packed again where an option of the optimizer has changed, and only there."""

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import SGD, LazyAdam
from mt2st_fast.kernels import Decay
from mt2st_fast.kernels.bags.rules import packed
from mt2st_fast.training.optimizers import dense_rules
from mt2st_fast.training.optimizers.dense_rules import KeptRules, rules_of


def groups():
    return [{"params": [nn.Parameter(torch.randn(3))]}, {"params": [nn.Parameter(torch.randn(2))], "lr": 0.5}]


MAKERS = {
    "LazyAdam": lambda: LazyAdam(groups(), lr=0.01, weight_decay=0.0),
    "LazyAdam, decay": lambda: LazyAdam(groups(), lr=0.01, weight_decay=0.1),
    "LazyAdam, a tensor": lambda: LazyAdam(groups(), lr=torch.tensor(0.01)),
    "SGD": lambda: SGD(groups(), lr=0.1),
    "AdamW": lambda: torch.optim.AdamW(groups(), lr=0.01),
    "torch's SGD": lambda: torch.optim.SGD(groups(), lr=0.1, momentum=0.9, weight_decay=0.2),
}
CHANGES = {
    "rate": lambda group: group.update(lr=0.25),
    "rate in place": lambda group: (
        group["lr"].mul_(2) if isinstance(group["lr"], torch.Tensor) else group.update(lr=2)
    ),
    "betas": lambda group: group.update(betas=(0.5, 0.6), eps=0.1, momentum=0.3),
    "weight_decay": lambda group: group.update(weight_decay=0.7),
}


def assert_current(kept: KeptRules, optimizer: torch.optim.Optimizer, of_table: int | None) -> None:
    rules, decays = rules_of(optimizer)
    if of_table is not None:
        rules, decays = [*rules, rules[of_table]], [*decays, Decay()]
    found = kept.now()
    assert found[0].tobytes() == packed(rules).tobytes()
    assert np.array_equal(found[1], np.array(decays, np.float32))


@pytest.mark.parametrize("of_table", [None, 1])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rules_are_those_of_the_optimizer_now(make, change, of_table):
    optimizer = make()
    kept = KeptRules(optimizer, of_table)
    for _ in range(2):
        assert_current(kept, optimizer, of_table)
    for group in optimizer.param_groups:
        change(group)
        for _ in range(2):
            assert_current(kept, optimizer, of_table)


def test_momentum_kept_in_a_tensor_is_read_again():
    optimizer = LazyAdam(groups(), lr=0.01)
    beta = torch.tensor(0.5)
    optimizer.param_groups[0]["betas"] = (beta, 0.9)
    kept = KeptRules(optimizer)
    kept.now()
    beta.fill_(0.75)
    assert_current(kept, optimizer, None)


def test_betas_changed_in_place_are_read_again():
    optimizer = LazyAdam(groups(), lr=0.01)
    optimizer.param_groups[0]["betas"] = betas = [0.5, 0.9]
    kept = KeptRules(optimizer)
    kept.now()
    betas[0] = 0.75
    assert_current(kept, optimizer, None)


def test_nothing_is_packed_again_for_another_rate(monkeypatch):
    optimizer = LazyAdam(groups(), lr=0.01, weight_decay=0.0)
    kept = KeptRules(optimizer, 0)
    kept.now()
    monkeypatch.setattr(dense_rules, "rules_of", lambda _: pytest.fail("packed again"))
    kept.now()
    optimizer.param_groups[0]["lr"] = 0.002
    rules, _ = kept.now()
    assert rules["lr"].tolist() == [np.float32(0.002), 0.5, np.float32(0.002)]
