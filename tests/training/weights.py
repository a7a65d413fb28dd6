"""The weights of a trainer's encoder and heads, to compare what two runs made of them."""

from __future__ import annotations


def weights_of(trainer):
    modules = {"encoder": trainer.encoder, "heads": trainer.heads}
    return {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
        if value.is_floating_point()  # heads also say which of them are active
    }
