"""Files of modules: what torch.compile wraps has the same names, and what is no tensor is refused before training."""

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiTaskHeads, Trainer, load_modules, save_modules


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer, self.last = nn.Linear(4, width), nn.Linear(width, width)

    def configuration(self):
        return {"width": self.layer.out_features}

    def forward(self, inputs):
        return self.last(self.layer(inputs).relu())


class Counting(Encoder):
    """Has state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def whole(encoder):
    return torch.compile(encoder, backend="eager")


def a_part(encoder):
    encoder.layer = torch.compile(encoder.layer, backend="eager")
    return encoder


def _heads():
    return MultiTaskHeads(8, {"a": Classification(3), "b": Classification(2)}, main="a")


def _trainer(encoder):
    return Trainer(encoder, _heads(), device="cpu")


def _batches():
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 4, generator=draw), {"a": torch.arange(6) % 3, "b": torch.arange(6) % 2})
        for _ in range(4)
    ]


def _same(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("compiled", [whole, a_part])
@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_fits_an_encoder_compiled_or_not(compiled, first, tmp_path):
    ways = [compiled, lambda encoder: encoder]
    before, after = ways if first else ways[::-1]
    path = tmp_path / "checkpoint"
    trainer = _trainer(before(Encoder(8)))
    trainer.fit(_batches(), epochs=2, checkpoint=path)
    loaded = _trainer(after(Encoder(8)))
    assert not loaded.load(path).skipped
    assert _same(trainer.encoder, loaded.encoder)
    resumed = _trainer(after(Encoder(8)))
    resumed.fit(_batches(), epochs=2, checkpoint=path, resume=True)
    assert _same(trainer.encoder, resumed.encoder)


@pytest.mark.parametrize("compiled", [whole, a_part])
def test_a_compiled_encoder_is_saved_as_what_it_is(compiled, tmp_path):
    encoder = compiled(Encoder(8))
    save_modules(tmp_path / "model", encoder, _heads())
    found, _ = load_modules(tmp_path / "model", classes=(Encoder,))
    assert type(found) is Encoder
    assert _same(encoder, found)


def test_state_that_is_no_tensor_is_refused_before_the_first_step(tmp_path):
    trainer = _trainer(Counting(8))
    with pytest.raises(InputError, match="encoder/_extra_state is of type dict"):
        trainer.fit(_batches(), epochs=1, checkpoint=tmp_path / "checkpoint")
    assert trainer.step == 0
    assert not list(tmp_path.iterdir())
    trainer.fit(_batches(), epochs=1)  # without files there is no need


def test_it_is_refused_in_a_model_as_well(tmp_path):
    with pytest.raises(InputError, match="so the encoder cannot be saved"):
        save_modules(tmp_path / "model", Counting(8), _heads())
    assert not list(tmp_path.iterdir())
