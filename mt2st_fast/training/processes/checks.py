"""What several processes do not support, refused by name before the first step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.row_shards import has_lost_its_rows, shard_of
from mt2st_fast.model.sharded import fsdp_modules, has_sharded, is_dtensor, let_go_of_gathered
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables
from mt2st_fast.training.own_metrics import metric_name
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.schedules.abilities import Ability, check_allowed

# What a schedule may do where processes exchange the gradients of a step once, and where nobody has whole parameters.
# Named one by one, so that a new ability is refused until it has been tried.
WITH_ONE_EXCHANGE = frozenset(
    {
        Ability.LEARNS_WEIGHTS,
        Ability.TAKES_TURNS,
        Ability.SELECTS_PARTS,
        Ability.SEES_GRADIENTS,
        Ability.SEES_HELD_OUT_GRADIENTS,
        Ability.OBSERVES_HELD_OUT,
        Ability.OBSERVES_LOSSES,
    }
)
WITH_SHARDED = WITH_ONE_EXCHANGE - {Ability.TAKES_TURNS, Ability.SELECTS_PARTS}


def check_options(processes: Processes, *, graph: bool, backward: str, metrics: Mapping[str, object]) -> None:
    """Raises InputError for options that need a step without an exchange of gradients, or all rows in one place."""
    if not processes.are_several:
        return
    for task, metric in metrics.items():
        raise InputError(
            f"the metric of {task}, {metric_name(metric)}, needs all rows in one process, but {processes.count} "
            "processes measure a part each; leave out metrics= (or the flag --metric), and measure in one process"
        )
    for option, asked in (("graph=True", graph), ('backward="fused"', backward == "fused")):
        if asked:
            raise InputError(
                f"{option} is for one process: {processes.count} exchange the gradients of every step; leave it out, "
                'or let every process train a model of its own with distributed="none"'
            )


def check_schedule(processes: Processes, schedule: object) -> None:
    """Raises InputError for a schedule that needs more than one exchange of gradients per step."""
    if not processes.are_several:
        return
    check_allowed(
        schedule,
        WITH_ONE_EXCHANGE,
        why_not=f"which is for one process: {processes.count} exchange the gradients of a step once; use another "
        'schedule, or let every process train a model of its own with distributed="none"',
    )


def check_sharded(
    processes: Processes, schedule: object, encoder: nn.Module, heads: MultiTaskHeads, precision: str
) -> None:
    """Raises InputError for sharded parameters that no run supports, and for options that do not work with them."""
    let_go_of_gathered(encoder)
    let_go_of_gathered(heads)
    _check_divided_tables(processes, encoder)
    _check_dtensors(processes, encoder, heads)
    if not has_sharded(encoder):
        return
    check_allowed(schedule, WITH_SHARDED, why_not="which is not for a sharded encoder: leave one of them out")
    for asked, what in (
        (
            any(map(heads.is_word_task, heads.names)),
            "a task on words reads the table outside a forward pass",
        ),
        (precision == "float16", "precision float16 checks whole gradients for overflow"),
    ):
        if asked:
            raise InputError(f"{what}, which is not for a sharded encoder: leave one of them out")


def _check_divided_tables(processes: Processes, encoder: nn.Module) -> None:
    if any(map(has_lost_its_rows, encoder.modules())):
        raise InputError(
            "the encoder is a copy of one whose table is divided by rows, and does not know which rows it holds; "
            "copy it before shard_rows"
        )
    for table in row_sparse_tables(encoder):
        shard = shard_of(table)
        if shard is not None and shard.count != processes.count:
            raise InputError(
                f"the encoder's table is divided among {shard.count} processes, and {processes.count} "
                f"train{'s' if processes.count == 1 else ''}: let all of them train together"
            )


def _check_dtensors(processes: Processes, encoder: nn.Module, heads: MultiTaskHeads) -> None:
    """Allow torch's divided tensors only as dense encoder parameters, by fully_shard, over all processes."""
    for name, parameter in heads.named_parameters():
        if is_dtensor(parameter):
            raise InputError(
                f"heads.{name} is sharded (FSDP), but the Trainer reads heads outside a forward pass; shard the "
                "encoder alone, or both in a custom loop"
            )
    tables = {id(table) for table in row_sparse_tables(encoder)}
    units = [f"{name}." if name else "" for name, _ in fsdp_modules(encoder)]
    for name, parameter in encoder.named_parameters():
        if not is_dtensor(parameter):
            continue
        if not name.startswith(tuple(units)):
            raise InputError(
                f"encoder.{name} is divided by something else than fully_shard, whose processes see the same rows "
                "(tensor parallel), and here each has its own: train it in a loop of your own"
            )
        placements, mesh = parameter.placements, parameter.device_mesh  # type: ignore[attr-defined]
        if mesh.size() != processes.count or len(placements) != 1 or not placements[0].is_shard():
            raise InputError(
                f"encoder.{name} is {placements} on {mesh}, and {processes.count} processes train: shard it over all "
                "of them by fully_shard with a mesh of one dimension"
            )
        if id(parameter) in tables:
            raise InputError(
                f"encoder.{name} is row-sparse, and sharded (FSDP), which makes its gradients dense: leave it whole by "
                "fully_shard(..., ignored_params={the table})"
            )


def check_modules(processes: Processes, modules: Mapping[str, nn.Module]) -> None:
    """Raises InputError for modules, by name, that exchange something themselves, or would have to."""
    if not processes.are_several:
        return
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,  # takes its time, and one process needs none of it
    )

    for name, module in modules.items():
        for part_name, part in module.named_modules():
            where = f"{name}.{part_name}" if part_name else f"the {name}"
            if isinstance(part, DistributedDataParallel):
                raise InputError(
                    f"{where} is wrapped in DistributedDataParallel, but the Trainer exchanges all gradients itself; "
                    "pass the wrapped module (.module)"
                )
            if isinstance(part, FullyShardedDataParallel):
                raise InputError(
                    f"{where} is wrapped in FullyShardedDataParallel, whose gradients cannot be combined here; use "
                    "torch.distributed.fsdp.fully_shard"
                )
            if isinstance(part, _BatchNorm):
                raise InputError(
                    f"{where} is a {type(part).__name__}, whose statistics {processes.count} processes do not share; "
                    "use LayerNorm or GroupNorm, or train in one process"
                )
