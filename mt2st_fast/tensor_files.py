"""Tensors in safetensors files, written from the memory in which they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mt2st_fast.files import replacing


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replace `path` by a file of these tensors, as `on_cpu_apart` gives them, whole or not at all."""
    with replacing(path) as partial:
        save_file(dict(tensors), partial, None if metadata is None else dict(metadata))


def on_cpu_apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor on the CPU, in one piece, and on memory of its own, as safetensors wants them (it refuses tied ones).

    Only what is not so yet is copied: a table of gigabytes is written from where it is.
    """
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # One number is in one piece whatever its strides are, and not for who looks at bytes.
        if value.untyped_storage().data_ptr() in taken or value.numel() == 1:
            value = value.clone(memory_format=torch.contiguous_format)
        taken.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found


def digest_of(tensor: Tensor, name: str, digest: hashlib._Hash | None = None) -> hashlib._Hash:
    """SHA-256 of the name, type, shape and bytes of a tensor in one piece, after what `digest` has seen."""
    digest = hashlib.sha256() if digest is None else digest
    digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest
