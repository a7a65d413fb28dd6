"""A checkpoint with any wrong byte is refused in one line."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save

from mt2st_fast.errors import InputError
from mt2st_fast.training.checkpoints.checkpoint import FORMAT, Checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path):
    encoder = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(encoder.parameters())
    encoder(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"encoder": encoder}, optimizer, {"steps_done": 1, "history": "step_ms"})
    return path


def test_a_whole_checkpoint_is_read(path):
    assert Checkpoint(path).state == {"steps_done": 1, "history": "step_ms"}


def test_a_wrong_byte_anywhere_is_refused_in_one_line(path):
    good = path.read_bytes()
    (header,) = struct.unpack_from("<Q", good)
    # Padding of the header says nothing; every other byte does.
    said = len(good[8 : 8 + header].rstrip(b" "))
    places = [*range(0, 8 + said, 97), *range(8 + header, len(good), 97)]
    for place in places:
        wrong = bytearray(good)
        wrong[place] ^= 0x04
        path.write_bytes(wrong)
        with pytest.raises(InputError) as refused:
            Checkpoint(path)
        assert "\n" not in str(refused.value), place


def test_a_number_that_changed_in_the_state_is_refused(path):
    path.write_bytes(path.read_bytes().replace(b"step_ms", b"step_mX", 1))
    with pytest.raises(InputError, match="checksum does not match"):
        Checkpoint(path)


@pytest.mark.parametrize(
    "text", ["[]", "3", json.dumps({"format": FORMAT}), "{", json.dumps({"format": "1"})]
)
def test_metadata_of_another_make_is_refused(path, text):
    path.write_bytes(save({"w": torch.zeros(2)}, {"json": text}))
    with pytest.raises(InputError):
        Checkpoint(path)
