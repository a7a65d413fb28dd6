"""What holds for every norm in an MLP whose step is one kernel call: LayerNorms, RMSNorms and BatchNorms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import MultiTaskHeads
from mt2st_fast.kernels import NOTHING
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from tests.training.engines.kernel_calls import test_stack_batch_norms as batch_norms
from tests.training.engines.kernel_calls import test_stack_norms as layer_norms
from tests.training.engines.kernel_calls.normed_stacks import (
    NORMS,
    assert_dropout_is_that_of_its_keys,
    batches_of,
    buffers,
)
from tests.training.engines.kernel_calls.test_stack_training import (
    OPTIMIZERS,
    TASKS,
    WEIGHTS,
    batch,
    eager,
    optimizer_of,
    parameters,
    stepped,
)
from tests.training.small_runs import Stop, assert_same, assert_same_on_threads

KINDS = {"layer": layer_norms, "batch": batch_norms}


def cases(of_kind):
    """(kind, name) for every name that a kind of norms has."""
    return [(kind, name) for kind, norms in KINDS.items() for name in of_kind(norms)]


def state(model):
    return [*parameters(*model), *buffers(model[0])]


def trained(model):
    return StackTraining(*model, optimizer_of(OPTIMIZERS["AdamW"], *model))


@pytest.mark.parametrize(("kind", "encoder"), cases(lambda norms: [*norms.ENCODERS, *norms.BAGS]))
def test_the_bits_do_not_depend_on_the_number_of_threads(kind, encoder):
    def run():
        model = KINDS[kind].made(encoder)
        held = optimizer_of(OPTIMIZERS["AdamW"], *model)
        losses, _ = stepped(*model, held, batches_of(encoder, [33, 200, 64]), clip_norm=0.1)
        return losses, state(model)

    assert_same_on_threads(run)


@pytest.mark.parametrize("width", [1, 33, 500])
@pytest.mark.parametrize(("norm", "N", "far"), [(nn.LayerNorm, 40, 300), (nn.BatchNorm1d, 140, 3000)])
def test_numbers_far_from_0_keep_their_digits(norm, N, far, width):
    torch.manual_seed(width)
    encoder, heads = nn.Sequential(norm(width)), MultiTaskHeads(width, TASKS, "a")
    inputs, targets = torch.randn(N, width) + far, batch(N)[1]
    truth = heads.double()(encoder.double()(inputs.double()), targets, WEIGHTS).losses
    encoder, heads = encoder.float(), heads.float()
    theirs = float((heads(encoder(inputs), targets, WEIGHTS).losses - truth).abs().max())
    error = float((trained((encoder, heads))(inputs, targets, WEIGHTS, NOTHING) - truth).abs().max())
    assert error <= 2 * theirs + 2e-7, (error, theirs)


@pytest.mark.parametrize("N", [1, 33, 100])
@pytest.mark.parametrize(("kind", "encoder"), cases(lambda norms: norms.ENCODERS))
def test_what_a_larger_batch_has_left_in_memory_does_not_count(kind, encoder, N):
    found = []
    for before in ([], batches_of(encoder, [400])):
        model = KINDS[kind].made(encoder)
        training = trained(model)
        for inputs, targets in before:
            training(torch.full_like(inputs, float("nan")), targets, WEIGHTS, NOTHING)
        [one] = batches_of(encoder, [max(N, KINDS[kind].LEAST_ROWS)])
        found.append([training(*one, WEIGHTS), *state(model)])
    assert torch.isfinite(found[0][0]).all()
    assert all(map(torch.equal, found[0], found[1]))


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize(("kind", "encoder"), cases(lambda norms: norms.PARTLY_FROZEN))
def test_what_is_frozen_stays_and_all_else_moves_as_beside_it(kind, encoder, clip_norm):
    make = KINDS[kind].made
    names = [name for name, _ in make(encoder)[0].named_parameters()]
    norms = [f"{n}." for n, module in enumerate(make(encoder)[0]) if isinstance(module, NORMS)]
    for frozen in [
        *[(name,) for name in names],
        tuple(norms),
        tuple(names[:4]),
        tuple(names[:-2]),
        tuple(names),
    ]:
        found = []
        for run in (eager, stepped):
            model = make(encoder)
            for name, parameter in model[0].named_parameters():
                parameter.requires_grad_(not name.startswith(frozen))
            before = parameters(*model)
            moving = [p for part in model for p in part.parameters() if p.requires_grad]
            optimizer = KINDS[kind].adamw(moving)
            done = run(*model, optimizer, batches_of(encoder, [50, 50]), clip_norm=clip_norm)
            found.append((*done, buffers(model[0])))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=KINDS[kind].ATOL)
        of_encoder = zip(names, before, found[1][1], strict=False)
        assert all(torch.equal(a, b) == name.startswith(frozen) for name, a, b in of_encoder)


@pytest.mark.parametrize(("part", "of_encoder"), [("shared", True), ("tasks", False)])
@pytest.mark.parametrize(("kind", "encoder"), cases(lambda norms: norms.ENCODERS))
def test_one_side_moves_alone_and_losses_alone_move_nothing(kind, encoder, part, of_encoder):
    model = KINDS[kind].made(encoder)
    training = trained(model)
    [one] = batches_of(encoder, [50])
    before = state(model)
    losses = training(*one, WEIGHTS, NOTHING)
    assert all(map(torch.equal, before, state(model)))
    assert torch.equal(training(*one, WEIGHTS, MOVES[part]), losses)
    n = len(list(model[0].parameters()))
    same = [torch.equal(*pair) for pair in zip(before, parameters(*model), strict=False)]
    assert same == [not of_encoder] * n + [of_encoder] * (len(same) - n)
    other = KINDS[kind].made(encoder)[0]
    other(one[0])
    torch.testing.assert_close(buffers(model[0]), buffers(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "N"), [(nn.LayerNorm, 50), (nn.BatchNorm1d, 130)])
def test_dropout_is_that_of_its_keys_on_both_sides_of_it(norm, N):
    assert_dropout_is_that_of_its_keys(norm, N)


@pytest.mark.parametrize(("kind", "reason"), cases(lambda norms: norms.REFUSED))
def test_another_norm_is_not_taken(kind, reason):
    encoder = nn.Sequential(nn.Linear(7, 33), KINDS[kind].REFUSED[reason]())
    heads = MultiTaskHeads(33, TASKS, "a")
    assert reason in StackTraining.obstacle(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))


@pytest.mark.parametrize("stop", [3, 9])
@pytest.mark.parametrize(("kind", "encoder"), [
    ("layer", "before an activation"), ("batch", "after it"), ("batch", "of inputs, and last"),
])  # fmt: skip
def test_a_resumed_run_goes_on_with_the_same_bits(kind, encoder, stop, tmp_path):
    norms = KINDS[kind]
    whole, resumed = norms.trainer(encoder=encoder), norms.trainer(encoder=encoder)
    stopped = norms.trainer(encoder=encoder, callbacks=[Stop(stop)])
    whole.fit(norms.loader(), epochs=4)
    stopped.fit(norms.loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed.fit(norms.loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert resumed.history.phases[-1].engine == "one kernel call"
    assert_same(whole, resumed)
    assert all(map(torch.equal, buffers(whole.encoder), buffers(resumed.encoder)))
