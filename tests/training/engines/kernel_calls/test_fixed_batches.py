"""Batches that are put together once a phase, and what training keeps about them."""

import copy
import gc
import json
from itertools import chain, islice

import numpy as np
import pytest
import torch

from mt2st_fast import (
    BagEncoder,
    Classification,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    Switch,
    Trainer,
)
from mt2st_fast.data import MISSING, BagBatches, Corpus, TargetColumn
from mt2st_fast.errors import InputError
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.engines.kernel_calls import bag_training as bag_training_module

N = 60
TASKS = {"main": Classification(2), "aux": Classification(N)}


def document_corpus(labelled=range(N)):
    """Document d is the words d, d, .., d times; the task aux tells which document it is."""
    lengths = np.arange(N)
    main = np.full(N, MISSING)
    main[list(labelled)] = np.arange(len(labelled)) % 2
    return Corpus(
        np.repeat(np.arange(N), lengths).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        {
            "main": TargetColumn("classes", ("a", "b"), main),
            "aux": TargetColumn("classes", tuple(map(str, range(N))), np.arange(N)),
        },
        "document",
    )


def fixed(labelled=range(N), batch_size=8, **settings):
    return BagBatches(document_corpus(labelled), batch_size, "main", fixed_batches=True, **settings)


def documents(batch):
    return batch[1]["aux"].tolist()


def test_every_epoch_brings_the_same_tensors_in_another_order():
    batches = fixed()
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == 8
    for epoch in (first, second):
        assert sorted(chain.from_iterable(map(documents, epoch))) == list(range(N))
        assert {len(documents(batch)) for batch in epoch} == {7, 8}
    assert {id(inputs[0]) for inputs, _ in first} == {id(inputs[0]) for inputs, _ in second}
    assert [documents(batch) for batch in first] != [documents(batch) for batch in second]
    assert documents(first[0]) != sorted(documents(first[0]))


def test_who_changes_the_targets_of_a_batch_changes_that_one_alone():
    batches = fixed(batch_size=N)
    next(iter(batches))[1].clear()
    assert len(next(iter(batches))[1]) == 2


def test_rare_main_labels_fill_their_share_of_each_batch():
    batches = fixed(labelled=[3, 10, 40], share=0.5)
    taken = list(islice(chain(batches, batches, batches), 15))
    assert all((targets["main"] != MISSING).sum() == 4 for _, targets in taken)
    others = [
        row
        for batch in taken
        for row, label in zip(documents(batch), batch[1]["main"].tolist(), strict=True)
        if label == MISSING
    ]
    assert sorted(others) == sorted(set(range(N)) - {3, 10, 40})


@pytest.mark.parametrize(("batch_size", "share", "n_labelled"), [(5, 0.5, 27), (4, 0.34, 19), (8, 0.5, 3)])
def test_no_row_is_left_out(batch_size, share, n_labelled):
    """A share of a batch is rounded: there may be more labelled rows than the others' batches have places for."""
    batches = fixed(range(n_labelled), batch_size, share=share)
    taken = islice(chain.from_iterable(batches for _ in range(9)), 40)
    assert set(chain.from_iterable(map(documents, taken))) == set(range(N))


def test_closed_batches_are_let_go_and_made_again():
    batches = fixed(batch_size=N)
    first = next(iter(batches))[0][0]
    batches.close()
    again = next(iter(batches))[0][0]
    assert again is not first
    assert torch.equal(again, first)


def test_a_share_of_everything_draws_labelled_documents_alone():
    batches = fixed(labelled=range(9), share=1.0)
    taken = list(islice(chain(batches, batches), 4))
    assert sorted(chain.from_iterable(map(documents, taken))) == sorted([*range(9)] * 2)


def test_a_single_task_phase_has_batches_of_its_own():
    batches = fixed(labelled=range(0, N, 2))
    before = [*batches]
    batches.enter_phase(("main",))
    after = [*batches]
    assert len(after) == 8
    assert not {id(inputs[0]) for inputs, _ in before} & {id(inputs[0]) for inputs, _ in after}
    assert all(list(targets) == ["main"] and (targets["main"] != MISSING).all() for _, targets in after)
    assert len({id(inputs[0]) for inputs, _ in after}) == 4  # 30 documents, so each comes twice


@pytest.mark.parametrize("labelled", [range(N), [3, 10, 40]], ids=["all labelled", "rare labels"])
def test_resuming_at_any_batch_goes_on_with_the_same_batches(labelled):
    def run(batches, first, last, state_at=None):
        taken, state = [], None
        while first + len(taken) < last:
            for batch in batches:
                taken.append(batch[0][0].tolist())
                if first + len(taken) == 13:
                    batches.enter_phase(("main",))
                if first + len(taken) == state_at:
                    state = json.loads(json.dumps(batches.state_dict()))
                if first + len(taken) == last:
                    break
        return taken, state

    whole, _ = run(fixed(labelled), 0, 24)
    for position in range(1, 24):
        _, state = run(fixed(labelled), 0, 24, position)
        resumed = fixed(labelled)
        resumed.load_state_dict(state)
        assert run(resumed, position, 24)[0] == whole[position:]


def test_fixed_batches_do_not_resume_others():
    others = BagBatches(document_corpus(), 8, "main")
    with pytest.raises(InputError, match="fixed=True, but these have False"):
        others.load_state_dict(fixed().state_dict())
    with pytest.raises(InputError, match="fixed=False, but these have True"):
        fixed().load_state_dict(others.state_dict())


def trained(batches, epochs=3, **options):
    torch.manual_seed(0)
    encoder, heads = BagEncoder(N, 16, sparse=True), MultiTaskHeads(16, TASKS, "main")
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: RowwiseAdagrad(p, lr=0.1), backward="fused", device="cpu", **options
    )  # fmt: skip
    trainer.fit(batches, epochs=epochs)
    return [p.detach() for module in (encoder, heads) for p in module.parameters()]


class Forgetful(BagBatches):
    """The same batches, but none that a trainer could keep anything about."""

    def __iter__(self):
        for (ids, starts), targets in super().__iter__():
            yield (ids.clone(), starts), targets


@pytest.mark.parametrize("schedule", [MultiTask(), Switch(at=0.5)])
def test_what_is_kept_changes_no_bit(schedule, monkeypatch):
    prepared = []
    prepare = bag_training_module.prepare_bags

    def counted(*args):
        prepared.append(args)
        return prepare(*args)

    monkeypatch.setattr(bag_training_module, "prepare_bags", counted)
    kept = trained(fixed(labelled=range(0, N, 2)), epochs=4, schedule=schedule)
    n_kept = len(prepared)
    forgetful = Forgetful(document_corpus(range(0, N, 2)), 8, "main", fixed_batches=True)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, trained(forgetful, epochs=4, schedule=schedule), strict=True)
    )
    # After the switch there are 4 batches of the 30 labelled documents.
    assert n_kept == (8 if isinstance(schedule, MultiTask) else 8 + 4)
    assert len(prepared) - n_kept == 4 * 8


def test_what_is_kept_goes_with_its_batch():
    encoder, heads = BagEncoder(N, 16, sparse=True), MultiTaskHeads(16, TASKS, "main")
    optimizer = RowwiseAdagrad([*encoder.parameters(), *heads.parameters()], lr=0.1)
    training = bag_training_module.BagTraining(encoder, heads, optimizer, fixed_batches=True)
    batches = fixed()
    for inputs, targets in batches:
        training(inputs, targets, torch.ones(2))
    assert len(training._kept) == 8
    del inputs, targets
    batches.close()
    gc.collect()
    assert len(training._kept) == 0


class Reloads(Callback):
    """Puts the optimizer's state of the second step back after the third."""

    def on_step(self, trainer):
        optimizer = trainer.run.optimizer
        if trainer.step == 2:
            self.state = copy.deepcopy(optimizer.state_dict())
        if trainer.step == 3:
            optimizer.load_state_dict(self.state)


def test_a_state_loaded_between_steps_is_the_one_that_counts():
    sums = {}
    for backward in ("autograd", "auto"):
        torch.manual_seed(0)
        encoder, heads = BagEncoder(N, 16, sparse=True), MultiTaskHeads(16, TASKS, "main")
        trainer = Trainer(
            encoder, heads, schedule=MultiTask(), optimizer=lambda p: RowwiseAdagrad(p, lr=0.1), backward=backward,
            device="cpu", callbacks=[Reloads()],
        )  # fmt: skip
        trainer.fit(fixed(), epochs=1)
        assert (trainer.history.phases[-1].engine == "one kernel call") == (backward == "auto")
        sums[backward] = trainer.run.optimizer.dense_state(heads.linear("aux").weight).per_row
    torch.testing.assert_close(sums["auto"], sums["autograd"], rtol=1e-4, atol=1e-9)


def test_loaders_that_promise_nothing_are_looked_at_every_time(monkeypatch):
    """The same tensor object may hold other numbers, written through numpy, at its next turn."""
    ids, starts = torch.zeros(8, dtype=torch.int32), torch.arange(9)
    targets = {"main": torch.zeros(8, dtype=torch.int64)}

    class Refilled:
        def __len__(self):
            return 2

        def __iter__(self):
            for row in (3, 5):
                ids.numpy()[:] = row
                yield (ids, starts), targets

    torch.manual_seed(0)
    before = BagEncoder(N, 16, sparse=True).table.detach().clone()
    table = trained(Refilled(), epochs=1)[0]
    assert (table != before).any(1).nonzero().flatten().tolist() == [3, 5]
