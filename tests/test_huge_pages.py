"""Large tables and their moments are advised to lie on huge pages, wherever they come from; numbers stay the same."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mt2st_fast import BagEncoder, Classification, LazyAdam, MultiTaskHeads, Trainer, huge_pages

ROWS, D = huge_pages.LEAST_BYTES // 64, 16
DATA = [((torch.arange(8) * 99, torch.arange(0, 9, 2)), {"a": torch.arange(4) % 2})] * 3


def _is_advised(tensor: Tensor) -> bool:
    """Whether the system knows that huge pages are wanted in the middle of a tensor."""
    address, is_here = tensor.data_ptr() + tensor.nbytes // 2, False
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *rest = line.split()
            if not name.endswith(":"):
                first, last = (int(bound, 16) for bound in name.split("-"))
                is_here = first <= address < last
            elif is_here and name == "VmFlags:":
                return "hg" in rest
    return False


needs_huge_pages = pytest.mark.skipif(
    huge_pages._system_call() is None or not Path("/proc/self/smaps").exists(),
    reason="the system has no huge pages",
)


def _trainer(encoder: BagEncoder) -> Trainer:
    heads = MultiTaskHeads(D, {"a": Classification(2)}, "a")
    return Trainer(encoder, heads, optimizer=lambda p: LazyAdam(p, lr=0.1), device="cpu")


def _moments(trainer: Trainer) -> list[Tensor]:
    states: Any = trainer.run.optimizer.state.values()
    return [t for state in states for t in state.values() if t.shape == (ROWS, D)]


@needs_huge_pages
def test_a_large_table_and_its_moments_are_advised() -> None:
    encoder = BagEncoder(ROWS, D, sparse=True)
    assert _is_advised(encoder.table)
    trainer = _trainer(encoder)
    trainer.fit(DATA, epochs=1)
    assert len(_moments(trainer)) == 2
    assert all(map(_is_advised, _moments(trainer)))


def test_a_small_table_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # The system is not asked: the memory may have been advised for a large table that is gone.
    advised: list[Any] = []
    monkeypatch.setattr(huge_pages, "_system_call", lambda: lambda *call: advised.append(call))
    _trainer(BagEncoder(ROWS // 2, D, sparse=True)).fit(DATA, epochs=1)
    assert not advised
    _trainer(BagEncoder(ROWS, D, sparse=True)).fit(DATA, epochs=1)
    assert advised


@needs_huge_pages
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), lambda e: e.double().float()]
)
def test_so_is_a_copy_once_it_trains(copied: Any) -> None:
    encoder = BagEncoder(ROWS, D, sparse=True)
    other = copied(encoder)
    _trainer(other).fit(DATA, steps=1)
    assert _is_advised(other.table)


@needs_huge_pages
def test_so_is_a_table_made_without_memory_at_first() -> None:
    with torch.device("meta"):
        encoder = BagEncoder(ROWS, D, sparse=True)
    encoder.to_empty(device="cpu")
    assert _is_advised(encoder.table)


@needs_huge_pages
def test_so_are_moments_that_were_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    _trainer(BagEncoder(ROWS, D, sparse=True)).fit(DATA, epochs=1, checkpoint=path)
    resumed = _trainer(BagEncoder(ROWS, D, sparse=True))
    resumed.fit(DATA, epochs=2, checkpoint=path, resume=True)
    assert len(_moments(resumed)) == 2
    assert all(map(_is_advised, [*_moments(resumed), resumed.encoder.table]))  # type: ignore[arg-type]


def test_numbers_stay_as_they_are() -> None:
    numbers = torch.rand(ROWS + 7, D)
    before = numbers.clone()
    huge_pages.move_to_huge_pages(numbers, numbers.view(-1)[3:], torch.empty(4), numbers.to("meta"))
    assert torch.equal(numbers, before)


class _Wrapper(Tensor):
    """A tensor whose numbers another one has, as those of a sharded table."""

    @staticmethod
    def __new__(cls, inside: Tensor) -> _Wrapper:
        return Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype, device=inside.device)  # type: ignore[attr-defined,no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("nothing computes with it")


def test_the_system_is_not_told_of_what_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, ...]] = []
    monkeypatch.setattr(huge_pages, "_system_call", lambda: lambda *args: told.append(args))
    numbers = torch.zeros(ROWS, D)
    huge_pages.move_to_huge_pages(_Wrapper(numbers))
    with FakeTensorMode():  # which warns of whoever asks for an address
        BagEncoder(ROWS, D, sparse=True)
    assert not told
    huge_pages.move_to_huge_pages(numbers, torch.nn.Parameter(numbers))
    assert len(told) == 4


def test_a_system_without_them_trains_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for call in (huge_pages._system_call, lambda: None, lambda: lambda *args: -1):
        monkeypatch.setattr(huge_pages, "_system_call", call)
        torch.manual_seed(0)
        encoder = BagEncoder(ROWS, D, sparse=True)
        _trainer(encoder).fit(DATA, epochs=2)
        found.append(encoder.table.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("said", "has_call"),
    [("always [madvise] never", True), ("[always] madvise never", True), ("always madvise [never]", False)],
)
def test_who_has_turned_them_off_gets_none(
    said: str, has_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text(said)
    monkeypatch.setattr(huge_pages, "SETTING", str(setting))
    huge_pages._system_call.cache_clear()
    try:
        if huge_pages.sys.platform.startswith("linux"):  # type: ignore[attr-defined]
            assert (huge_pages._system_call() is not None) == has_call
        monkeypatch.setattr(huge_pages, "SETTING", str(tmp_path / "none"))
        huge_pages._system_call.cache_clear()
        assert huge_pages._system_call() is None
    finally:
        huge_pages._system_call.cache_clear()
