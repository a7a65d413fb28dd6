"""Hugging Face transformers: a model of any encoder with our heads, its collator, its phases, and a Trainer.

    model = MultiTaskModel.from_encoder(AutoModel.from_pretrained(name), tasks, main="upos")
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=rows, data_collator=DataCollatorForMultiTask(tokenizer, tasks),
        callbacks=[PhaseCallback(Switch(at=0.6))],
    )

A row is the output of the tokenizer and "labels": {task: labels}, or a column per task; any labels may be missing.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate.data_loader import IterableDatasetShard
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import ModelOutput

from mt2st_fast.errors import InputError
from mt2st_fast.integrations.collating import DataCollatorForMultiTask, check_labels_arrive
from mt2st_fast.integrations.counted import check_counts, row_of, step_counts, sums_of
from mt2st_fast.integrations.encoder_making import AUTO, Making, made, making_of, way_to_load
from mt2st_fast.integrations.evaluated import Evaluated, common_widths
from mt2st_fast.integrations.finding import heads_of, say_frozen
from mt2st_fast.integrations.padding import with_active
from mt2st_fast.integrations.together import check_steps
from mt2st_fast.model.heads import MultiTaskHeads, MultitaskLoss
from mt2st_fast.model.task_json import tasks_from_json, tasks_to_json
from mt2st_fast.model.tasks import Task
from mt2st_fast.training.phases.controller import PhaseController
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.training.schedules.abilities import Stateful

logger = logging.getLogger("mt2st_fast")
UNKNOWN_REPEATS = (
    "the rows that fill the last batches of this evaluation's stream may count twice, as every process reads it and "
    'none knows its length; with accelerator_config={"dispatch_batches": True, "split_batches": True}, one process '
    "reads it, and every row counts once"
)
NO_LABELS = (
    'no row of the first step has a label of %s, so the step trains nothing; rows need "labels": {task: labels}, or a '
    "column per task, which transformers keeps with MultiTaskTrainer or remove_unused_columns=False"
)

__all__ = [
    "DataCollatorForMultiTask",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskTrainer",
    "PhaseCallback",
]


class MultiTaskConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of a MultiTaskModel.

    encoder: the configuration of an encoder of transformers; that of a model is its encoder's own, so that changes of
    the one are changes of the other. encoder_class, encoder_arguments: how the encoder is made from it (see
    `encoder_making`); by default as AutoModel does. tasks: as `tasks_to_json` describes them. Raises InputError for an
    encoder without a model_type.
    """

    model_type = "mt2st_fast"
    # So that transformers sets attention and dtype in the encoder's configuration as well.
    sub_configs = {"encoder": AutoConfig}  # type: ignore[dict-item, unused-ignore]  # noqa: RUF012
    keys_to_ignore_at_inference = ["losses"]  # noqa: RUF012 (transformers adds lists to it)

    def __init__(
        self,
        encoder: PretrainedConfig | Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
        main: str | None = None,
        encoder_class: str = AUTO,
        encoder_arguments: Mapping[str, bool] | None = MappingProxyType({}),
        **others: Any,
    ) -> None:
        self.tasks = None if tasks is None else dict(tasks)
        self.main = main
        self.encoder_class = encoder_class
        self.encoder_arguments = None if encoder_arguments is None else dict(encoder_arguments)
        self.encoder: PretrainedConfig | None = None
        super().__init__(**others)
        # Only now: the line above sets the attention of all parts, to none where none is given.
        self.encoder = _encoder_config(encoder)
        attention: Any = self._attn_implementation  # type: ignore[has-type, unused-ignore]
        if attention is not None:
            self._attn_implementation = attention  # sets that of the encoder as well

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """Return the configuration that has the size of the vocabulary: the encoder's."""
        return self if self.encoder is None else self.encoder.get_text_config(decoder, encoder)

    @property
    def making(self) -> Making:
        """How the encoder is made."""
        return Making(self.encoder_class, self.encoder_arguments)

    def take(self, encoder: PreTrainedModel) -> None:
        """Describe this encoder from now on."""
        self.encoder = encoder.config
        self.encoder_class, self.encoder_arguments = making_of(encoder)


def _encoder_config(given: PretrainedConfig | Mapping[str, Any] | None) -> PretrainedConfig | None:
    if given is None or isinstance(given, PretrainedConfig):
        return given
    if "model_type" not in given:
        raise InputError("the configuration of an encoder needs its model_type, such as 'bert'")
    return AutoConfig.for_model(**given)


@dataclass
class MultiTaskOutput(ModelOutput):  # type: ignore[misc]
    """Output of a MultiTaskModel.

    loss: (), weighted by the phase. losses: (K,), of the active tasks. logits: by active task.
    """

    loss: Tensor | None = None
    losses: Tensor | None = None
    logits: dict[str, Tensor] | None = None


class MultiTaskModel(PreTrainedModel):  # type: ignore[misc]
    """An encoder of transformers with one head per task; which tasks are active is saved with the weights.

    Raises InputError for a configuration that lacks its encoder, tasks or main task.
    """

    config_class = MultiTaskConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # What the encoder does not support, it refuses itself.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _has_warned = False  # of an encoder that cannot be created anew
    accepts_loss_kwargs = True  # so that a Trainer passes the label counts of all batches of a step

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.encoder is None or config.tasks is None or config.main is None:
            raise InputError(
                "a MultiTaskConfig needs encoder, tasks and main; MultiTaskModel.from_encoder(encoder, tasks, main) "
                "makes one"
            )
        if encoder is None:
            encoder = made(config.encoder, config.making)
            config.encoder = encoder.config
        else:
            config.take(encoder)
        self.encoder = encoder
        width = encoder.config.get_text_config().hidden_size
        self.heads = MultiTaskHeads(width, tasks_from_json(config.tasks), config.main)
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: PreTrainedModel, tasks: Mapping[str, Task], main: str) -> Self:
        """Put heads on an encoder that is already loaded. Raises InputError for a task that cannot be saved."""
        config = MultiTaskConfig(encoder=encoder.config, tasks=tasks_to_json(tasks), main=main)
        return cls(config, encoder)

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        """As in any model of transformers; warns once if `from_pretrained` will not be able to create the encoder."""
        super().save_pretrained(*args, **options)
        if not self._has_warned and (how := way_to_load(self.config.making)) is not None:
            logger.warning("%s", how)
            self._has_warned = True

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's input embeddings."""
        return self.encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        **of_encoder: Any,
    ) -> MultiTaskOutput | tuple[Any, ...]:
        """Compute the loss if there are labels, and logits if there are none or the model is not in training mode.

        Logits are those of the active tasks, as only these were trained to the end. labels: by task, (N, T), or (N,)
        for a task that pools, with a last axis C for values; without labels no loss is computed. num_items_in_batch: by
        task, the divisor of the loss: the number of labels in all batches of a step, which a MultiTaskTrainer passes.
        return_dict: False for a tuple of what is not None; by default as the configuration says. token_type_ids and
        all others are the encoder's; the former are named for Trainer, which drops columns without a parameter.
        """
        if token_type_ids is not None:
            of_encoder["token_type_ids"] = token_type_ids
        if not (num_items_in_batch is None or isinstance(num_items_in_batch, Mapping)):
            raise InputError(
                "num_items_in_batch must be {task: labels}, as MultiTaskTrainer counts them; one number does not "
                "tell tasks apart"
            )
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **of_encoder)
        features = encoded[0] if isinstance(encoded, tuple) else encoded.last_hidden_state
        mask = None if attention_mask is None or attention_mask.dim() != 2 else attention_mask.bool()
        loss = losses = logits = None
        if labels is not None:
            out = _loss(self.heads, features, labels, mask, num_items_in_batch)
            loss, losses = out.total, out.losses
        if labels is None or not self.training:
            with_heads = [name for name in self.heads.active if name in self.heads.tasks]
            logits = {name: self.heads.logits(features, name, mask) for name in with_heads}
        output = MultiTaskOutput(loss=loss, losses=losses, logits=logits)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


# So that AutoModel.from_pretrained loads a saved model, once this module is imported.
AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig, exist_ok=True)
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _loss(
    heads: MultiTaskHeads,
    features: Tensor,
    labels: Mapping[str, Tensor],
    mask: Tensor | None,
    denominators: Mapping[str, Tensor] | None,
) -> MultitaskLoss:
    # Excluded from torch_compile, which would gain nothing: the heads are kernels already.
    return heads(features, labels, mask=mask, denominators=denominators)  # type: ignore[no-any-return]


class MultiTaskTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, extended to count the labels of every task in all batches of a step or an evaluation.

    This makes gradient accumulation and `eval_loss` exact, whichever labels are missing: transformers itself only
    counts `labels` that are one tensor, and otherwise averages the means of the batches. In an evaluation, labels that
    a batch lacks, and places behind its rows, have the marks of missing labels; rows that accelerate repeats count
    once. With remove_unused_columns, columns that the encoder takes are kept. Raises InputError for a
    label_smoothing_factor, for several GPUs in one process, and, in every process, if some have no batch for a step.
    """

    compute_metrics: Any  # transformers sets it

    def __init__(self, *args: Any, **options: Any) -> None:
        self._evaluated: Evaluated | None = None
        self._labels_checked = False  # whether the first step has labels
        super().__init__(*args, **options)
        _check_smoothing(self.args)
        _check_one_device(self.args)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of a step, and by task the divisor of its loss, over all processes."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        labels = [batch.get("labels") for batch in batches]
        heads = heads_of(self.accelerator.unwrap_model(self.model))
        are_by_task = all(isinstance(of_one, Mapping) for of_one in labels)
        own = step_counts(heads, labels) if are_by_task else {}
        if self.args.world_size > 1:
            # One message of one length, whatever these batches hold: otherwise processes would wait for each other.
            row = row_of(heads, own, len(batches), are_by_task, device)
            of_all = self.accelerator.gather(row[None])
            check_counts(of_all)
            if self.args.average_tokens_across_devices:
                own = sums_of(heads, of_all)
        if not batches or not are_by_task:
            return batches, counted
        self._check_labels(heads, own)
        return batches, {name: count.to(device) for name, count in own.items()}

    def _check_labels(self, heads: MultiTaskHeads, counts: Mapping[str, Tensor]) -> None:
        """Warn of a first step without any label of an active task; later ones may be without: labels can be rare."""
        if self._labels_checked:
            return
        self._labels_checked = True
        if not any(float(count) for count in counts.values()) and self.is_world_process_zero():
            logger.warning(NO_LABELS, ", ".join(heads.active))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss as transformers does; in an evaluation, its sums are kept, and a row counts once."""
        labels = inputs.get("labels")
        if isinstance(labels, Mapping):
            labels = self._losable(labels, self._ids(inputs), num_items_in_batch)
            inputs = {**inputs, "labels": labels}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
        if self._evaluated is not None and isinstance(labels, Mapping) and losses is not None:
            self._evaluated.add(labels, losses)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Return what transformers does, with labels of all tasks, which have one width in all processes."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self._evaluated is None:
            return loss, logits, labels
        several, gather = self.accelerator.num_processes > 1, self.accelerator.gather
        given, ids = inputs.get("labels"), self._ids(inputs)
        places = ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 else 0
        widths = self._evaluated.widths(given, places)
        if several:
            widths = common_widths(gather(widths[None].to(self.accelerator.device)).cpu())
        if isinstance(labels, Mapping):
            labels = self._evaluated.completed(labels, widths, self.accelerator.num_processes)
        return loss, logits, labels

    def _losable(self, labels: Mapping[str, Any], ids: Any, counted: Any) -> Mapping[str, Any]:
        """Return labels of a batch of which a loss can be computed; counted: the labels of its step, in training."""
        if self._evaluated is not None:
            return self._evaluated.losable(labels, ids, self._n_first_rows)
        heads = heads_of(self.accelerator.unwrap_model(self.model))
        has_others = isinstance(counted, Mapping) and any(name in counted for name in heads.active)
        return with_active(heads, labels, ids) if has_others or self.args.world_size > 1 else labels

    def _ids(self, inputs: Mapping[str, Any]) -> Any:
        return inputs.get(getattr(self.model, "main_input_name", "input_ids"))

    def _n_first_rows(self, rows: int) -> int:
        """Return how many of this batch's rows no process has had before.

        Where the rows of an evaluation do not fill the last batches of all processes, accelerate repeats some.
        """
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader:
            return rows
        if isinstance(getattr(state.active_dataloader, "dataset", None), IterableDatasetShard):
            logger.warning("%s", UNKNOWN_REPEATS)
            return rows
        if state.remainder <= 0:
            return rows
        return min(max(0, state.remainder - self.accelerator.process_index * rows), rows)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Evaluate as transformers does, with the loss over all labels in place of the mean of the batches' losses.

        Also, as eval_TASK_loss, that of every active task.
        """
        evaluated = self._evaluated = Evaluated(heads_of(self.accelerator.unwrap_model(self.model)))
        given = self.compute_metrics
        if given is not None and not self.args.batch_eval_metrics:

            def of_marked(seen: Any, **options: Any) -> dict[str, float]:
                evaluated.mark(seen.label_ids)
                return given(seen, **options)

            self.compute_metrics = of_marked
        try:
            output = super().evaluation_loop(*args, **options | {"metric_key_prefix": metric_key_prefix})
        finally:
            self._evaluated, self.compute_metrics = None, given
        parts = evaluated.parts()
        if self.args.world_size > 1:
            parts = self.accelerator.reduce(parts.to(self.accelerator.device), "sum")
        loss, name = evaluated.loss(parts), f"{metric_key_prefix}_loss"
        if output.metrics is not None and name in output.metrics and not evaluated.is_untouched:
            if loss is None:
                del output.metrics[name]  # transformers' own is 0 without a label: the best that there is
            else:
                output.metrics[name] = loss
            for task, of_task in evaluated.losses(parts).items():
                output.metrics.setdefault(f"{metric_key_prefix}_{task}_loss", of_task)
        evaluated.mark(output.label_ids)
        return output

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the encoder's inputs as well, which the model passes on: without token types, BERT takes all for one."""
        known = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        model = _bare(self.accelerator.unwrap_model(self.model))
        columns: Any = self._signature_columns
        if not known and isinstance(self.data_collator, DataCollatorForMultiTask):
            columns += list(self.data_collator.tasks)
        if not known and isinstance(model, MultiTaskModel):
            columns += list(inspect.signature(_bare(model.encoder).forward).parameters)


def _bare(model: Any) -> Any:
    """Return what peft has wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_smoothing(args: TrainingArguments) -> None:
    if args.label_smoothing_factor:
        raise InputError(
            "label_smoothing_factor only works for labels in one tensor; leave it out and set it per task, as in "
            f"Classification(4, label_smoothing={args.label_smoothing_factor:g})"
        )


def _check_one_device(args: TrainingArguments) -> None:
    if args.n_gpu > 1:
        raise InputError(
            f"transformers would use {args.n_gpu} GPUs in one process (nn.DataParallel), where the labels of a step "
            f"cannot be counted; start a process per GPU (torchrun --nproc-per-node {args.n_gpu}), or let it see one "
            "(CUDA_VISIBLE_DEVICES=0)"
        )


class PhaseCallback(TrainerCallback):  # type: ignore[misc]
    """Retires a model's tasks as the schedule says; the model has MultiTaskHeads anywhere inside.

    A retired task has no forward pass, no gradient and, with `prune`, no optimizer state. A resumed run continues bit
    for bit. Under DDP with activation checkpointing, set ddp_find_unused_parameters=True. Raises InputError for a
    schedule with state, which checkpoints of transformers do not store, for a label_smoothing_factor, for rows that
    have lost their labels, for processes whose loaders differ in length, and what PhaseController raises.
    """

    def __init__(self, schedule: Schedule, *, prune: bool = True) -> None:
        if isinstance(schedule, Stateful):
            raise InputError(
                f"the schedule {type(schedule).__name__} has state, which a resumed run of transformers would lose; "
                "use one that depends on the step alone"
            )
        self.schedule, self.prune = schedule, prune
        self.controller: PhaseController | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Start a new PhaseController for this run, and enter its first phase: labels are counted before a step."""
        _check_smoothing(args)
        model = others["model"]
        if args.world_size > 1:
            _check_together(state.max_steps, _steps_per_epoch(args, state, others))
        check_labels_arrive(others.get("train_dataloader"))
        say_frozen(heads_of(model))
        self.controller = PhaseController(heads_of(model), self.schedule, encoder=model, prune=self.prune)
        self._step(args, state, others)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Enter the phase that is due."""
        if self.controller is None:
            self.on_train_begin(args, state, control, **others)
        self._step(args, state, others)

    def _step(self, args: TrainingArguments, state: TrainerState, others: Mapping[str, Any]) -> None:
        assert self.controller is not None
        self.controller.optimizer = others.get("optimizer")
        self.controller.step(state.global_step, state.max_steps, _steps_per_epoch(args, state, others))


def _check_together(steps: int, per_epoch: int) -> None:
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, [int(steps), int(per_epoch)])
    check_steps(of_all)


def _steps_per_epoch(args: TrainingArguments, state: TrainerState, others: Mapping[str, Any]) -> int:
    loader = others.get("train_dataloader")
    try:
        batches = len(loader)  # type: ignore[arg-type]
    except TypeError:  # a stream without a length: all of it is one epoch
        return int(state.max_steps)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
