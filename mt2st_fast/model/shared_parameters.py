"""Parameters that the encoder and a head have in common, such as an embedding that is also the weight of a head."""

from __future__ import annotations

from torch import nn


def of_encoder(encoder: nn.Module, heads: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the encoder's modules, without those of the heads where they are among these modules.

    A parameter that a head holds as well belongs to the encoder: it trains as long as the encoder does.
    """
    of_heads = {id(module) for module in heads.modules()}
    return [
        parameter
        for module in encoder.modules()
        if id(module) not in of_heads
        for parameter in module.parameters(recurse=False)
    ]
