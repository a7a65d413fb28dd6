"""Whether a run is resumed with other data than its checkpoint was made with."""

from __future__ import annotations

from pathlib import Path

from mt2st_fast.data.batches import EvaluationBatches, TrainingBatches
from mt2st_fast.training.checkpoints.checkpoint import Checkpoint

WORDS = "words"  # the setting by which a run knows the words of its data again


def has_other_data(checkpoint: Path, train: TrainingBatches, held_out: EvaluationBatches) -> bool:
    """Return whether training or held-out rows differ from those of a checkpoint."""
    state = Checkpoint(checkpoint).state
    if state["run"][WORDS] != train.data_settings[WORDS]:
        return True
    then = {
        state["source"][train.main]["loader"]["data"],
        state["run"].get("held-out data", held_out.digest()),
    }
    return then != {train.state_dict()["data"], held_out.digest()}
