"""Tensors in safetensors files, written straight from their memory."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mt2st_fast.files import replacing

_OS_ERROR = re.compile(r"os error (\d+)")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replace `path` by a file of these tensors, as `on_cpu_apart` returns them, whole or not at all.

    Raises OSError where it cannot be written.
    """
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(dict(tensors), partial, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            if (found := _OS_ERROR.search(str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        partial.chmod(mode)  # safetensors makes a file that nobody else can read


def on_cpu_apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous and without shared memory, as safetensors requires.

    Only tensors that are not so yet are copied: a table of gigabytes is written from where it is.
    """
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # A single number counts as contiguous whatever its strides, but not for code that views its bytes.
        if value.untyped_storage().data_ptr() in taken or value.numel() == 1:
            value = value.clone(memory_format=torch.contiguous_format)
        taken.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found


def digest_of(tensor: Tensor, name: str, digest: hashlib._Hash | None = None) -> hashlib._Hash:
    """Update SHA-256 with the name, type, shape and bytes of a contiguous tensor; `digest` is continued if given."""
    digest = hashlib.sha256() if digest is None else digest
    digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest
