"""Calls that need all processes, made by one of them alone, by two with different calls, or with different batches."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    LazyAdam,
    MultiTaskHeads,
    Trainer,
    gather_rows,
    shard_rows,
)
from mt2st_fast.errors import InputError
from mt2st_fast.model import meeting
from mt2st_fast.training.processes import board
from tests.training.processes.together import wait_for

meeting.PATIENCE_SECONDS = 1.0


@contextlib.contextmanager
def _giving_up() -> Iterator[None]:
    """Within the block, a call is waited for by others for a second. Elsewhere they come later on a busy machine."""
    before, meeting.GIVE_UP_SECONDS = meeting.GIVE_UP_SECONDS, 1.0
    try:
        yield
    finally:
        meeting.GIVE_UP_SECONDS = before


def _encoder() -> BagEncoder:
    torch.manual_seed(0)
    encoder = BagEncoder(9, 8, sparse=True)
    shard_rows(encoder)
    return encoder


def _batches(n: int = 2) -> list[Any]:
    bags = (torch.tensor([1, 2, 3, 8], dtype=torch.int32), torch.tensor([0, 2, 4]))
    return [(bags, {"classes": torch.tensor([1, 3])})] * n


def _trainer(encoder: nn.Module) -> Trainer:
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    return Trainer(encoder, heads, device="cpu", optimizer=LazyAdam)


def _alone(call: Callable[[], Any], then: Callable[[], Any]) -> dict[str, Any]:
    """Process 0 calls something alone and catches what that raises; afterwards all call it."""
    found: dict[str, Any] = {}
    if dist.get_rank() == 0:
        began = time.monotonic()
        try:
            with _giving_up():
                call()
        except Exception as error:
            found = {"line": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - began}
    dist.barrier()
    return found | {"together": then()}


def evaluated(folder: Path) -> dict[str, Any]:
    trainer = _trainer(_encoder())
    return _alone(lambda: trainer.evaluate(_batches()), lambda: trainer.evaluate(_batches()))


def evaluated_by_fsdp(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8))
    fully_shard(encoder, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    trainer = Trainer(encoder, heads, device="cpu")
    data = [(torch.ones(2, 4), {"classes": torch.tensor([1, 3])})]
    return _alone(lambda: trainer.evaluate(data), lambda: trainer.evaluate(data))


def vectors(folder: Path) -> dict[str, Any]:
    encoder = _encoder()
    return _alone(encoder.vectors, lambda: encoder.vectors().tolist())


def gathered(folder: Path) -> dict[str, Any]:
    encoder = _encoder()
    return _alone(lambda: gather_rows(encoder), lambda: (gather_rows(encoder), encoder.table.tolist())[1])


def _data() -> list[Any]:
    return [(torch.full((4, 4), 0.1 * i), {"classes": torch.tensor([0, 1, 2, 3])}) for i in range(1, 5)]


def _dense(**options: Any) -> Trainer:
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    return Trainer(nn.Linear(4, 8), heads, device="cpu", **options)


def fitted(folder: Path) -> dict[str, Any]:
    def fit() -> list[float]:
        trainer = _dense()
        trainer.fit(_data(), epochs=1)
        return trainer.heads.linears["classes"].bias.tolist()

    return _alone(fit, fit)


def steps_and_no_more(folder: Path) -> None:
    """Loops of different lengths: one process closes its run while the other takes a step."""
    run = _dense().begin(_data(), epochs=2)
    try:
        for _ in range(3 + dist.get_rank()):
            run.step()
    finally:
        run.close()


def steps_and_no_more_by_gloo(folder: Path) -> None:
    board.MOST_PROCESSES = 1
    steps_and_no_more(folder)


def fitted_and_stepped(folder: Path) -> None:
    if dist.get_rank():
        _dense().fit(_data(), epochs=2)
    else:
        run = _dense().begin(_data(), epochs=2)
        try:
            run.step()
        finally:
            run.close()


def fitted_within_a_run(folder: Path) -> None:
    """One process alone begins another run within its run."""
    run = _dense().begin(_data(), epochs=2)
    run.step()
    if dist.get_rank():
        _dense().fit(_data(), epochs=1)
    run.step()


def left_alone(folder: Path) -> None:
    """Process 1 ends; the other has just come to fit."""
    if dist.get_rank():
        os._exit(0)
    _dense().fit(_data(), epochs=1)


def late(folder: Path) -> dict[str, Any]:
    """Process 1 comes when process 0 has given up once and waits again."""
    encoder, lines, given_up = _encoder(), [], folder / "given up"
    if dist.get_rank():
        wait_for(given_up)
        time.sleep(0.5)
    else:
        try:
            with _giving_up():
                encoder.vectors()
        except Exception as error:
            lines.append(str(error))
        given_up.touch()
    encoder.vectors()
    return {"lines": lines}


def in_a_new_group(folder: Path) -> dict[str, Any]:
    """Process 0 has met nobody in one group; in the next one, made by the same processes, all find each other."""
    encoder = _encoder()
    for _ in range(2):
        if dist.get_rank() == 0:
            with contextlib.suppress(InputError), _giving_up():
                encoder.vectors()
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'again'}", rank=int(os.environ["RANK"]),
                            world_size=int(os.environ["WORLD_SIZE"]))  # fmt: skip
    return {"vectors": len(_encoder().vectors())}


def different_calls(folder: Path) -> None:
    encoder = _encoder()
    if dist.get_rank():
        gather_rows(encoder)
    else:
        _trainer(encoder).evaluate(_batches())


def more_batches(folder: Path) -> None:
    _trainer(_encoder()).evaluate(iter(_batches(1 + dist.get_rank())))


def failing_batch(folder: Path) -> None:
    """What stops one process ends the other, which would wait for it."""
    batches = _batches()
    if dist.get_rank():
        batches[1] = (batches[1][0], {"another": torch.zeros(2)})
    _trainer(_encoder()).evaluate(batches)


def within_a_run(folder: Path) -> dict[str, Any]:
    """All may evaluate and save within a run, however late one of them comes."""
    trainer = _trainer(_encoder())
    mine = [(inputs, {"classes": torch.tensor([1, dist.get_rank()])}) for inputs, _ in _batches(4)]
    run = trainer.begin(mine, epochs=1)
    run.step()
    time.sleep(2.0 * dist.get_rank())
    value = trainer.evaluate(_batches())
    time.sleep(2.0 * dist.get_rank())
    run.save(folder / "alone.safetensors")
    run.step()
    run.close()
    return {"value": value, "steps": run.steps_done}


class Saving(Callback):
    """Saves in one process alone, as if only that one had to write."""

    def on_step(self, trainer: Any) -> None:
        if trainer.writes and trainer.step == 1:
            trainer.run.save(Path("unused"))


def saved(folder: Path) -> None:
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    trainer = Trainer(nn.Linear(4, 8), heads, device="cpu", callbacks=[Saving()])
    rank = dist.get_rank()
    trainer.fit(
        [(torch.full((2, 4), rank + i), {"classes": torch.tensor([1, 3])}) for i in (0.1, 0.2)], epochs=1
    )


def slow_passes(folder: Path) -> dict[str, Any]:
    """A pass waits for a late process, and the log says so."""
    lines: list[str] = []
    handler = logging.Handler()
    told = folder / "told"

    def tell(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())
        meeting.PATIENCE_SECONDS = 60.0  # what comes then may take a moment
        told.touch()

    handler.emit = tell  # type: ignore[method-assign]
    meeting.logger.addHandler(handler)
    encoder = _encoder()
    if dist.get_rank():
        wait_for(told)
        meeting.PATIENCE_SECONDS = 60.0
    encoder(_batches()[0][0])
    meeting.logger.removeHandler(handler)
    meeting.PATIENCE_SECONDS = 1.0
    return {"lines": lines}
