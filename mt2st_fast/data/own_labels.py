"""Labels that a model gives to rows without one, for self-training: from logits, and as text for checkpoints.

Self-training is older than its names: Scudder, "Probability of error of some adaptive pattern-recognition machines",
1965; Yarowsky, ACL 1995; with neural networks, Lee, "Pseudo-Label", ICML workshop 2013.
"""

import base64
import zlib

import numpy as np
import torch
from torch import Tensor


def labels_from(logits: Tensor, kind: str) -> np.ndarray:
    """Return what a model says, as targets of a column of that kind; logits (N, C).

    "classes": the likeliest, int64 (N,). "labels": those with a probability above 1/2, and "values": the logits
    themselves, both float32 (N, C).
    """
    if kind == "classes":
        return logits.argmax(1).cpu().numpy()
    found = (logits > 0) if kind == "labels" else logits
    return found.to("cpu", torch.float32).numpy()


def packed(labels: np.ndarray) -> str:
    """Return labels as text, compressed."""
    smallest = np.min_scalar_type(int(labels.max(initial=0))) if labels.dtype == np.int64 else labels.dtype
    content = zlib.compress(labels.astype(smallest).tobytes(), level=1)
    return f"{smallest} {base64.b64encode(content).decode()}"


def unpacked(text: str, like: np.ndarray) -> np.ndarray:
    """Return the labels of `packed`, with dtype and trailing shape of a column."""
    stored_as, content = text.split()
    found = np.frombuffer(zlib.decompress(base64.b64decode(content)), np.dtype(stored_as))
    return found.reshape(-1, *like.shape[1:]).astype(like.dtype)
