"""Lightning: two tasks over one encoder, of which one retires after 60 % of the steps.

Runs in seconds on data made on the spot:  python examples/lightning_tagger.py
"""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mt2st_fast import Classification, MultiTaskHeads, Switch
from mt2st_fast.integrations.lightning import PhaseCallback

TASKS = {"sign": Classification(2), "quarter": Classification(4)}


class Tagger(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.heads = MultiTaskHeads(32, TASKS, main="sign")

    def training_step(self, batch, batch_idx):
        inputs, sign, quarter = batch
        return self.heads(self.encoder(inputs), {"sign": sign, "quarter": quarter}).total

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def made_up(n=256):
    inputs = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    first, second = inputs[:, 0] > 0, inputs[:, 1] > 0
    return TensorDataset(inputs, first.long(), (2 * first + second.int()).long())


def main(epochs=10, at=0.6, resume=None, callbacks=(), **more):
    L.seed_everything(0, verbose=False)
    module, phases = Tagger(), PhaseCallback(Switch(at=at))
    loader = DataLoader(made_up(), batch_size=32, shuffle=False)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[phases, *callbacks], **{"enable_checkpointing": False, **more},
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=resume)
    return trainer, module


if __name__ == "__main__":
    _, trained = main()
    inputs, sign, _ = made_up().tensors
    right = (trained.heads.logits(trained.encoder(inputs), "sign").argmax(1) == sign).float().mean()
    print("active at the end:", trained.heads.active, "right:", float(right))
