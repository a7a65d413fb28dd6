"""How many rows a run has read, by which its tokens a second and the examples of comparisons are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mt2st_fast.data import open_data
from mt2st_fast.data.sampler import Sampler
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = "".join(f"good film {i % 7},{'ab'[i % 2]},{'xyz'[i % 3]}\n" for i in range(130))
    (tmp_path / "t.csv").write_text("text,kind,mood\n" + rows)
    return f"csv:{tmp_path / 't.csv'}"


@pytest.mark.parametrize("engine", ["fused", "torch"])
@pytest.mark.parametrize("label_fraction", [1.0, 0.1])
@pytest.mark.parametrize("accumulate", [1, 4, 100_000])
def test_rows_are_those_that_were_drawn(
    accumulate: int, label_fraction: float, engine: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch has fewer batches; a phase of the main task alone has fewer rows where it is rare."""
    config = Config(
        data=table, batch_size=8, dim=4, buckets=20, epochs=3.0, strategy="switch", accumulate=accumulate,
        label_fraction=label_fraction,
    )  # fmt: skip
    splits = open_data(config.data, label_fraction=label_fraction)
    experiment = Experiment.prepare(config.on_engine(engine), splits)
    drawn: list[int] = []
    next_rows = Sampler.next_rows

    def counted(sampler: Any) -> Any:
        rows = next_rows(sampler)
        drawn.append(len(rows))
        return rows

    monkeypatch.setattr(Sampler, "next_rows", counted)
    experiment.run()
    step = experiment.trainer.step
    assert step == experiment.total_steps == 3 * -(-len(experiment.train) // accumulate)
    assert experiment.rows_read(step) == sum(drawn)
    assert len(drawn) == 3 * len(experiment.train)
    assert experiment.rows_read(0) == 0
    first = min(accumulate, len(experiment.train))
    assert experiment.rows_read(1) == sum(drawn[:first])
