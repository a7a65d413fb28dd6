"""The heads of all tasks, computed together; a retired head is not computed at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mt2st_fast.kernels import MultitaskLoss, Pooling, losses_apart, multitask_gradients, multitask_loss
from mt2st_fast.model.called_heads import (
    RowLosses,
    call_layer,
    called,
    reason_to_call,
    reason_to_call_module,
    say_once,
    take_gradients_directly,
)
from mt2st_fast.model.denominators import (
    Reduction,
    TokenWeights,
    as_number,
    check_denominators,
    label_count,
    scale_of,
    weights_of_rows,
)
from mt2st_fast.model.fused_call import FusedCall, HeadBatch
from mt2st_fast.model.head_bank import HeadBank
from mt2st_fast.model.one_head import backward_of_one, is_for_torch
from mt2st_fast.model.open_tasks import checked_loss
from mt2st_fast.model.over_tasks import (
    check_features,
    check_target,
    check_width,
    flat_target,
    spread,
    spread_losses,
    sum_losses,
)
from mt2st_fast.model.pooling import pool
from mt2st_fast.model.task_features import TaskFeatures, features_of
from mt2st_fast.model.word_tasks import VectorsOf

Weights = Tensor | Mapping[str, float] | None
Denominators = Mapping[str, float | Tensor] | None


def _records() -> bool:
    """Return whether autograd would record this call as it stands: gradients are wanted, in the features' dtype."""
    return torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class MultiTaskHeads(HeadBank):
    """One linear head per task over shared features (..., D), trained by the fused loss.

    Every head is its own torch.nn.Linear under `linears`, so an optimizer, DDP and a state dict can name its
    parameters; the state dict also says which tasks are active. All are at first; `set_active` retires the others.
    Anything wrapped around a head or put in its place (a hook, an adapter, a shard) is called, never bypassed: this is
    slower, and the log says so once. A WordTask has no head: it is a module under `word_tasks`, with a loss on the
    encoder's table (`word_loss`). An OpenTask has none either: it is a module under `open_tasks`, with its own loss on
    the same features.

    Raises ValueError for a main task that is not among `tasks`, or is a WordTask.
    """

    def forward(
        self,
        features: Tensor | TaskFeatures,
        targets: Mapping[str, Tensor],
        weights: Weights = None,
        *,
        mask: Tensor | None = None,
        denominators: Denominators = None,
        token_weights: TokenWeights = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> MultitaskLoss:
        """Compute the weighted loss of the active tasks that have a target here.

        features: (N, D) or (N, T, D), or each task's own from a TaskAdaptedEncoder. targets: (N,) or (N, T) for a
        classification; for other kinds with a last axis C (optional if C = 1); for a task that pools a sequence, as for
        features (N, D). weights: (K,) over `active`, or by name (1 for a missing name); by default those of
        `set_weights`. The result's `losses` and `correct` are (K,) over `active`: 0 for a task that is missing from
        this batch. mask: (N,) or (N, T), tells a task that pools, and an OpenTask, which features are real (not
        padding).

        A task's loss is the sum over its labels, divided by their number here. denominators: other divisors by task,
        such as the number of labels in all batches of one optimizer step. The gradients of these batches then add up to
        the gradient of one large batch, whatever labels are missing (`label_counts` counts). reduction="sum" does not
        divide. Where the labels of a batch count 0 (all of them of classes of weight 0), its mean is 0, and its sum is
        what label smoothing moves to the other classes.
        token_weights: weights of rows in both sums: (N,) or (N, T) for every task on these rows, or by task.

        Raises ValueError for a target of an unknown task, for targets of a task on words beside others, and whatever
        `multitask_loss` raises; RuntimeError if a backend was requested by name and a head must be called.
        """
        if not isinstance(features, Tensor) and isinstance(features, TaskFeatures):
            options: dict[str, Any] = {
                "denominators": denominators, "token_weights": token_weights, "reduction": reduction,
            }  # fmt: skip
            parts = []
            for name in self._present(targets):
                own, own_mask = features_of(features, name, mask)
                parts.append(self.forward(own, {name: targets[name]}, weights, mask=own_mask, **options))
            return sum_losses(parts)
        reasons = self.reasons_to_call()
        if not (self._open or self._poolings or reasons or denominators or token_weights is not None) and (
            reduction == "mean"
        ):
            return self._fused_loss(features, targets, weights)
        check_denominators(denominators, reduction, of_rows=False)
        # The fused heads check their targets; a batch with other tasks only never reaches them.
        present = self._present(targets)
        weights_k = self._weights(weights, features.device)
        by_row = self._row_weights(token_weights, present, features)
        self._check_known(denominators or ())
        divisors = dict.fromkeys(present, 1.0) if reduction == "sum" else dict(denominators or {})
        sums = self.uncounted & divisors.keys()
        scale_k = self._scales(targets, by_row, divisors, sums, features.device)
        scaled_k = weights_k if scale_k is None else weights_k * scale_k
        reasons |= dict.fromkeys(
            sums, "smooths labels of classes of weight 0, and is not divided by its own count"
        )
        reasons |= dict.fromkeys(by_row, "has token weights")
        parts = []
        fused: list[str] = []
        for name in present:
            if name in self._open:
                parts.append(self._open_loss(name, features, targets[name], mask, scaled_k))
            elif name in reasons:
                say_once(name, reasons[name], self.backend, self.plan)
                rows = self._rows(name, features, targets[name], mask)
                parts.append(self._of_rows(name, rows, by_row.get(name), scaled_k, as_sum=name in sums))
            else:
                fused.append(name)
        parts += self._fused_by_pooling(fused, features, targets, mask, scaled_k)
        out = sum_losses(parts)
        return out if scale_k is None else MultitaskLoss(out.total, out.losses * scale_k, out.correct)

    def backward(
        self, features: Tensor | TaskFeatures, targets: Mapping[str, Tensor], weights: Tensor
    ) -> Tensor | None:
        """Do at once what `forward` and its `total.backward()` do on a CPU; returns the losses (K,).

        None, with nothing done, if only they can: on other devices, under autocast, for heads that are called, pool or
        compute their own loss, for hooks on these heads or their parameters, for learned weights, and where nothing
        needs a gradient. Faster where it is possible: autograd's record of the fused loss costs more than small heads
        do, and for a single one torch's own loss costs less. Errors are those of `forward`.

        The parameters must be the heads' own: what else waits for their gradients is not told of these.
        """
        if (
            type(self) is not MultiTaskHeads
            or not isinstance(features, Tensor)
            or reason_to_call_module(self)
        ):
            return None
        if self._open or self._poolings or weights.requires_grad or not _records():
            return None
        if len(targets) == len(self._active) == 1 and self.main in targets:
            layer, spec = self._layers()[self._places[self.main]], self._specs[self.main]
            if is_for_torch(spec, self.backend, self.plan) and reason_to_call(layer) is None:
                found = backward_of_one(features, layer, targets[self.main], weights, spec)
                if found is not None:
                    return found
        if self.reasons_to_call():
            return None
        call = self._fused_call(features, targets, weights)
        parameters = [*call.weight, *(call.bias or ())]
        if not take_gradients_directly(parameters):
            return None
        if not (features.requires_grad or True in [p.requires_grad for p in parameters]):
            return None
        made = multitask_gradients(
            call.features, call.weight, call.bias, call.batch.targets, call.batch.weights, call.batch.layout,
            backend=self.backend, plan=self.plan,
        )  # fmt: skip
        if made is None:
            return None
        for parameter, gradient in zip(parameters, (*made.weights, *made.biases), strict=True):
            if gradient is not None and parameter.requires_grad:
                # A layer may serve two tasks.
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if made.features is not None:
            features.backward(made.features.view(features.shape))  # type: ignore[no-untyped-call]
        return self.over_active(made.losses, call.batch)

    def task_losses(
        self,
        features: Tensor | TaskFeatures,
        targets: Mapping[str, Tensor],
        *,
        mask: Tensor | None = None,
        denominators: Denominators = None,
        token_weights: TokenWeights = None,
        reduction: Reduction = "mean",
    ) -> dict[str, Tensor]:
        """Return the unweighted loss () of every active task that has a target here, each with its own gradient.

        For methods that use the gradient of every task (TorchJD, GradNorm, PCGrad, DWA): on a CPU one pass for all
        heads on the rows of the features, elsewhere and for any other task one for each. Arguments and errors are those
        of `forward`. reduction="none" gives losses in the shape of the rows instead, 0 for a row without a valid
        target: their sum divided by `label_counts` is the mean loss. An OpenTask has no losses of rows.
        """
        check_denominators(denominators, reduction)
        present = self._present(targets)
        if reduction == "none":
            return self._losses_of_rows(features, targets, mask, present, token_weights)
        divisors = dict.fromkeys(present, 1.0) if reduction == "sum" else dict(denominators or {})
        found = self._losses_apart(features, targets, present, divisors, token_weights)
        for name in present:
            if name in found:
                continue
            own, own_mask = features_of(features, name, mask)
            ones_k = torch.ones(len(self._active), dtype=torch.float32, device=own.device)
            found[name] = self.forward(
                own, {name: targets[name]}, ones_k, mask=own_mask, denominators=denominators,
                token_weights=token_weights, reduction=reduction,
            ).total  # fmt: skip
        return {name: found[name] for name in present}

    def _losses_apart(
        self,
        features: Tensor | TaskFeatures,
        targets: Mapping[str, Tensor],
        present: Sequence[str],
        divisors: Mapping[str, float | Tensor],
        token_weights: TokenWeights,
    ) -> dict[str, Tensor]:
        """Return the losses of the tasks for which one kernel call can make the gradient of each; maybe none."""
        if type(self) is not MultiTaskHeads or not isinstance(features, Tensor) or not features.is_cpu:
            return {}
        if reason_to_call_module(self) or not _records():
            return {}
        if isinstance(token_weights, Mapping):
            self._check_known(token_weights)
        self._check_known(divisors)
        others = self.reasons_to_call().keys() | self._open | self._poolings.keys()
        others |= self.uncounted & divisors.keys()
        names = [n for n in present if n not in others and weights_of_rows(token_weights, n) is None]
        if len(names) < 2:
            return {}
        some = {name: targets[name] for name in names}
        scale_k = self._scales(some, {}, divisors, (), features.device)
        call = self._fused_call(features, some, {} if scale_k is None else scale_k)
        losses = losses_apart(
            features, call.weight, call.bias, call.batch.targets, call.batch.weights, call.batch.layout,
            backend=self.backend, plan=self.plan,
        )  # fmt: skip
        return {} if losses is None else dict(zip(names, losses, strict=True))

    def label_counts(
        self, targets: Mapping[str, Any], *, token_weights: TokenWeights = None
    ) -> dict[str, Tensor]:
        """Return the divisor of the loss of every active task with a target here: () float32 each.

        It is the number of labels; with class weights or token weights, the sum of these; for a task without a head,
        what `OpenTask.count` returns. Summed over the batches of an optimizer step, it is the denominator for each
        batch.
        """
        counts = {}
        for name in self._active:
            if name not in targets:
                continue
            target = targets[name]
            if name in self.tasks:
                check_target(name, target, self._specs[name])
                counts[name] = label_count(self._specs[name], target, weights_of_rows(token_weights, name))
                continue
            count = self._module(name).count(target)  # type: ignore[operator]
            moves = isinstance(target, Tensor) and not isinstance(count, Tensor)
            counts[name] = as_number(count, target.device if moves else None)
        return counts

    def _fused_loss(self, features: Tensor, targets: Mapping[str, Tensor], weights: Weights) -> MultitaskLoss:
        """Return the weighted loss of the tasks with a head."""
        call = self._fused_call(features, targets, weights)
        batch = call.batch
        out = multitask_loss(
            call.features, call.weight, call.bias, batch.targets, batch.weights, batch.layout,
            backend=self.backend, plan=self.plan,
        )  # fmt: skip
        return out if batch.places is None else spread_losses(out, batch.places, len(self._active))

    def _fused_call(self, features: Tensor, targets: Mapping[str, Tensor], weights: Weights) -> FusedCall:
        """Return what the kernels get for the tasks with a head."""
        check_features(features)
        batch = self.batch(targets, features.shape[:-1], weights, features.device)
        layers, places = self._layers(), self._places
        owners = [layers[places[name]]._parameters for name in batch.layout.names]
        weight: list[Any] = [own["weight"] for own in owners]
        bias: list[Any] = [own["bias"] for own in owners]
        check_width(features, weight[0].shape[-1])
        flat = features.flatten(0, -2) if features.dim() > 2 else features
        return FusedCall(flat, weight, None if bias[0] is None else bias, batch)

    def _fused_by_pooling(
        self,
        names: Sequence[str],
        features: Tensor,
        targets: Mapping[str, Tensor],
        mask: Tensor | None,
        weights: Tensor,
    ) -> list[MultitaskLoss]:
        """Return the weighted losses of heads, computed together where they pool alike."""
        alike: dict[Pooling, list[str]] = {}
        for name in names:
            alike.setdefault(self.pooling(name), []).append(name)
        return [
            self._fused_loss(pool(features, how, mask, some[0]), {n: targets[n] for n in some}, weights)
            for how, some in alike.items()
        ]

    def _rows(self, name: str, features: Tensor, target: Tensor, mask: Tensor | None) -> RowLosses:
        """Return the losses of the rows of one task, by calling its head."""
        head = self._specs[name]
        pooled = pool(features, self.pooling(name), mask, name)
        flat = flat_target(name, target, head, pooled.shape[:-1])
        return called(name, self.linear(name), pooled.flatten(0, -2), flat, head)

    def _of_rows(
        self, name: str, rows: RowLosses, by_row: Tensor | None, weights_k: Tensor, *, as_sum: bool
    ) -> MultitaskLoss:
        """Return the weighted loss of one task from its rows, as `forward` would with every other task missing."""
        loss = rows.loss(by_row, as_sum=as_sum)
        k, K = self._active.index(name), len(self._active)
        correct = rows.correct
        # As the kernels: a head of weight 0 is nothing.
        if not (torch.is_grad_enabled() and weights_k.requires_grad):
            loss, correct = (torch.where(weights_k[k] == 0, 0, value) for value in (loss, correct))
        mean = loss.detach().float().reshape(1)
        return spread_losses(MultitaskLoss(weights_k[k] * loss, mean, correct.reshape(1)), [k], K)

    def _losses_of_rows(
        self,
        features: Tensor | TaskFeatures,
        targets: Mapping[str, Tensor],
        mask: Tensor | None,
        present: Sequence[str],
        token_weights: TokenWeights,
    ) -> dict[str, Tensor]:
        losses = {}
        for name in present:
            if name not in self.tasks:
                raise ValueError(
                    f"{name} computes its own loss and has no losses per row; leave its targets out"
                )
            say_once(name, "is asked for losses per row", self.backend, self.plan)
            own, own_mask = features_of(features, name, mask)
            by_row = self._row_weights(token_weights, (name,), own)
            of_rows = self._rows(name, own, targets[name], own_mask).losses
            of_rows = of_rows * by_row[name] if name in by_row else of_rows
            losses[name] = of_rows.unflatten(0, self._row_shape(name, own))
        return losses

    def _row_shape(self, name: str, features: Tensor) -> torch.Size:
        """Return the shape of the rows of a task: tokens, or sequences."""
        return features.shape[:-1] if self.pooling(name) == "none" else features.shape[:1]

    def _row_weights(
        self, token_weights: TokenWeights, present: Sequence[str], features: Tensor
    ) -> dict[str, Tensor]:
        """Return (N,) float32 weights by task. Raises ValueError for another shape, and for a task without rows."""
        if isinstance(token_weights, Mapping):
            self._check_known(token_weights)
        found = {}
        for name in present:
            given = weights_of_rows(token_weights, name)
            if given is None or (isinstance(token_weights, Tensor) and name not in self.tasks):
                continue
            if name not in self.tasks:
                raise ValueError(
                    f"token_weights has {name}, which computes its own loss and weights its rows itself; leave it out"
                )
            if given.shape != (rows := self._row_shape(name, features)):
                raise ValueError(f"token_weights of {name} must be {tuple(rows)}, not {tuple(given.shape)}")
            found[name] = given.reshape(-1).float()
        return found

    def _scales(
        self,
        targets: Mapping[str, Tensor],
        by_row: Mapping[str, Tensor],
        divisors: Mapping[str, float | Tensor],
        sums: Collection[str],
        device: torch.device,
    ) -> Tensor | None:
        """(K,) factors that turn each mean into a sum over another denominator; None if all are means.

        sums: tasks whose losses are sums already.
        """
        if not divisors:
            return None
        of_task = [torch.ones((), device=device, dtype=torch.float32)] * len(self._active)
        counts = self.label_counts({n: targets[n] for n in divisors if n in targets}, token_weights=by_row)
        for name, count in counts.items():
            of_task[self._active.index(name)] = scale_of(
                as_number(divisors[name], device), None if name in sums else count.to(device)
            )
        return torch.stack(of_task)

    def _open_loss(
        self, name: str, features: Tensor, target: Any, mask: Tensor | None, weights_k: Tensor
    ) -> MultitaskLoss:
        """Return the weighted loss of one active OpenTask, as `forward` would with every other task missing."""
        k, K = self._active.index(name), len(self._active)
        loss = checked_loss(name, self._module(name).loss(features, target, mask))  # type: ignore[operator]
        correct = torch.zeros(1, dtype=torch.int64, device=loss.device)
        weighted = weights_k[k] * loss.float()
        return spread_losses(MultitaskLoss(weighted, loss.detach().float().reshape(1), correct), [k], K)

    def batch(
        self,
        targets: Mapping[str, Tensor],
        rows: torch.Size,
        weights: Tensor | Mapping[str, float] | None,
        device: torch.device,
    ) -> HeadBatch:
        """Return what `forward` passes to the kernels beside features (*rows, D) and parameters; raises as it does."""
        # Lists, not generators: this is Python's part of every step.
        present = tuple([name for name in self._active if name in targets and name in self.tasks])
        if len(present) < len(targets):
            self._check_known(targets)
            self.check_together(name for name in self._active if name in targets)
        if not present:
            raise ValueError(f"targets contain none of the active tasks {', '.join(self._active)}")
        weights_k = self._weights(weights, device)
        layout = self._layout(present)
        is_flat = len(rows) == 1
        flat_targets = []
        for name, head, takes_classes in zip(present, layout.heads, layout.takes_classes, strict=True):
            target = targets[name]
            if not (is_flat and takes_classes and type(target) is Tensor and target.shape == rows):
                target = flat_target(name, target, head, rows)
            flat_targets.append(target)
        if len(present) == len(self._active):
            return HeadBatch(layout, flat_targets, weights_k, None)
        places = [self._active.index(name) for name in present]
        # Indexing with a list would copy it to the device, which a CUDA graph cannot capture.
        return HeadBatch(layout, flat_targets, torch.stack([weights_k[k] for k in places]), places)

    def over_active(self, values: Tensor, batch: HeadBatch) -> Tensor:
        """(K,) values over the active tasks, from those of the tasks in a batch; 0 for a missing task."""
        return values if batch.places is None else spread(values, batch.places, len(self._active))

    def word_loss(
        self,
        name: str,
        vectors_of: VectorsOf,
        inputs: Any,
        target: Tensor,
        weights: Tensor | Mapping[str, float] | None = None,
    ) -> MultitaskLoss:
        """Return the weighted loss of one active WordTask; vectors_of maps word types to vectors.

        The result is that of `forward` with every other task missing. Raises ValueError for a task that is not an
        active WordTask.
        """
        if not self.is_word_task(name) or name not in self._active:
            raise ValueError(
                f"{name} is not an active task on words; active tasks: {', '.join(self._active)}"
            )
        k, K = self._active.index(name), len(self._active)
        weight = self._weights(weights, target.device)[k]
        loss = self._module(name)(vectors_of, inputs, target)
        correct = torch.zeros(1, dtype=torch.int64, device=loss.device)
        return spread_losses(MultitaskLoss(weight * loss, loss.detach().reshape(1), correct), [k], K)

    def logits(self, features: Tensor | TaskFeatures, task: str, mask: Tensor | None = None) -> Tensor:
        """(..., C) outputs of one task, active or retired; (N, C) for a task that pools a sequence by `mask` (N, T)."""
        layer, (own, mask) = self.linear(task), features_of(features, task, mask)
        return call_layer(layer, pool(own, self.pooling(task), mask, task))

    def _present(self, targets: Mapping[str, Any]) -> list[str]:
        """Return the active tasks with a target. Raises ValueError if there is none, one is unknown, or two clash."""
        self._check_known(targets)
        self.check_together(name for name in self._active if name in targets)
        present = [name for name in self._active if name in targets and name not in self._on_words]
        if not present:
            raise ValueError(f"targets contain none of the active tasks {', '.join(self._active)}")
        return present

    def _weights(self, weights: Weights, device: torch.device) -> Tensor:
        if isinstance(weights, Tensor):
            if weights.shape != (len(self._active),):
                raise ValueError(
                    f"weights must be ({len(self._active)},), one for each active task "
                    f"({', '.join(self._active)}), not {tuple(weights.shape)}"
                )
            return weights
        by_name = (self._default_weights if weights is None else weights) or {}
        self._check_known(by_name)
        if not by_name:  # filled in, which a CUDA graph can capture
            return torch.ones(len(self._active), dtype=torch.float32, device=device)
        given = [float(by_name.get(name, 1.0)) for name in self._active]
        values = torch.tensor(given, dtype=torch.float32, device="cpu")
        return values.to(device, non_blocking=True)  # the host does not wait for this copy
