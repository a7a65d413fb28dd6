"""A slow training loop in plain torch and float64, written apart from the package; every engine is compared with it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

# Of every Adam; such an eps lets no gradient count that is only rounding.
EPS, BETAS, DECAY = 1e-3, (0.8, 0.95), 0.1


ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu}


def vectors_of(p, case, types):
    """(..., D) the mean of the rows of each type; zeros without any, and for -1."""
    table = p["encoder.table"]
    rows, real = rows_of(case, types)
    found = (table[rows] * real.unsqueeze(-1)).sum(-2)
    return found / real.sum(-1, keepdim=True).clamp_min(1)


def rows_of(case, types):
    """(..., M) the rows of types, and which of them are real."""
    of_type = torch.arange(case.V).unsqueeze(1) if case.rows is None else case.rows
    rows = of_type[types.long().clamp_min(0)]
    return rows, (types >= 0).unsqueeze(-1) & ((rows > 0) if case.rows is not None else True)


def features_of(p, case, inputs):
    """(N, D) or (N, T, D)."""
    if case.encoder == "tokens":
        return torch.tanh(inputs[0].double() @ p["encoder.mix.weight"].T + p["encoder.mix.bias"])
    if case.encoder == "mlp":
        return mlp_features_of(p, case, inputs.double())
    if case.encoder == "window":
        window = vectors_of(p, case, inputs).flatten(1)
        if case.hidden is None:
            return window
        return torch.relu(window @ p["encoder.hidden.weight"].T + p["encoder.hidden.bias"])
    types, starts = inputs
    vectors, bags = vectors_of(p, case, types), list(pairwise(starts))
    sums = torch.stack([vectors[first:last].sum(0) for first, last in bags])
    if case.mode == "sum":
        return sums
    counts = torch.stack([(types[first:last] >= 0).sum() for first, last in bags])
    return sums / counts.clamp_min(1).unsqueeze(1)


def mlp_features_of(p, case, x):
    """(N, D): every linear layer, and the activation after the first one."""
    weights = [name for name in p if name.startswith("encoder.") and name.endswith(".weight")]
    for place, name in enumerate(weights):
        x = x @ p[name].T + p.get(name.replace("weight", "bias"), 0.0)
        x = ACTIVATIONS[case.activation](x) if place == 0 else x
    return x


def logits_of(p, case, name, inputs):
    """(rows, C)."""
    features, how = features_of(p, case, inputs), case.tasks[name].pooling
    if how == "first":
        features = torch.stack([f[int(m.int().argmax())] for f, m in zip(features, inputs[1], strict=True)])
    elif how == "mean":
        features = torch.stack(
            [f[m].sum(0) / max(1, int(m.sum())) for f, m in zip(features, inputs[1], strict=True)]
        )
    logits = features @ p[f"heads.linears.{name}.weight"].T
    return (logits + p[f"heads.linears.{name}.bias"] if case.bias else logits).flatten(0, -2)


def loss_of(task, logits, target):
    """Mean () over the labels, 0 if there is none, and whether there are any."""
    if hasattr(task, "classes"):
        weights = None if task.class_weights is None else torch.tensor(task.class_weights).double()
        known = target != task.ignore_index
        if not known.any():
            return 0.0 * logits.sum(), False
        return F.cross_entropy(
            logits[known], target[known].long(), weights, label_smoothing=task.label_smoothing
        ), True
    known, target = ~target.isnan(), target.double()
    if not known.any():
        return 0.0 * logits.sum(), False
    z, y = logits[known], target[known]
    if hasattr(task, "labels"):
        weights = torch.ones(task.labels) if task.pos_weight is None else torch.tensor(task.pos_weight)
        pos_weight = weights.double().expand_as(logits)[known]
        return F.binary_cross_entropy_with_logits(z, y, pos_weight=pos_weight), True
    return (
        F.mse_loss(z, y) if task.huber_delta is None else F.huber_loss(z, y, delta=task.huber_delta)
    ), True


class Rows:
    """A row-sparse rule, as documented: sgd, adagrad (one sum a row) or adam (a row's own steps n of the table's t)."""

    def __init__(self, rule, w):
        self.rule, self.t = rule, 0
        self.n, self.first, self.second = (
            torch.zeros(len(w)).double(),
            torch.zeros_like(w),
            torch.zeros_like(w),
        )

    def move(self, w, g, rows, lr):
        """Move the rows (V,) bool of w (V, D)."""
        self.t += 1
        g, by_row = g[rows], self.n[rows]
        if self.rule == "sgd":
            step = g
        elif self.rule == "adagrad":
            by_row = by_row + g.square().mean(1)
            step = g / (by_row.sqrt() + EPS).unsqueeze(1)
        else:
            by_row = by_row + 1
            n, (beta1, beta2) = by_row.unsqueeze(1), BETAS
            self.first[rows] = beta1 * self.first[rows] + (1 - beta1) * g
            self.second[rows] = beta2 * self.second[rows] + (1 - beta2) * g.square()
            root = (self.second[rows] / (1 - beta2**n)).sqrt() + EPS
            far = (self.t / n).clamp(1, 1 / (1 - beta2)).sqrt()
            step = far * self.first[rows] / (1 - beta1**n) / root
        self.n[rows] = by_row
        w[rows] -= lr * step


class AllRows(torch.optim.Optimizer):
    """Steps dense parameters by Adagrad with one sum for each index of their first axis."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    w = p.view(p.shape[0] if p.dim() else 1, -1)
                    rule = self.state[p].setdefault("rule", Rows("adagrad", w))
                    rule.move(w, p.grad.view_as(w), torch.ones(len(w)).bool(), group["lr"])


def dense_optimizer(name, groups, lr):
    if name == "adagrad":
        return AllRows(groups, {"lr": lr})
    if name in ("adam", "torch adam"):
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY)
    if name == "torch l2 adam":
        return torch.optim.Adam(groups, lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY)
    if name == "torch plain sgd":
        return torch.optim.SGD(groups, lr=lr, weight_decay=DECAY)
    momentum = {"momentum": 0.9, "nesterov": True, "weight_decay": DECAY} if name == "torch sgd" else {}
    return torch.optim.SGD(groups, lr=lr, **momentum)


class PlainLoop:
    """p: the parameters by name, float64; those in `trained` move. losses: by task, of every step so far."""

    def __init__(self, case, values, trained):
        self.case = case
        self.p = {n: v.detach().double().clone().requires_grad_(n in trained) for n, v in values.items()}
        self.noise = {n: torch.zeros((), dtype=torch.float64, requires_grad=True) for n in case.tasks}
        self.moving = [v for v in self.p.values() if v.requires_grad]
        if case.schedule == "learnt":
            self.moving += self.noise.values()
        self.optimizer = dense_optimizer(case.optimizer, case.groups(self.p, self.moving), case.lr)
        self.scheduler = case.scheduler and case.scheduler(self.optimizer)
        self.table = self.p.get("encoder.table")
        self.rows = Rows(case.optimizer, self.table.detach()) if case.sparse else None
        self.losses = []

    def step(self, weights, micro_batches, part):
        """Take one step on batches that count as one; weights: of the active tasks."""
        found, touched = {}, torch.zeros(0 if self.table is None else len(self.table)).bool()
        for inputs, targets in micro_batches:
            if self.rows is not None:
                rows, real = rows_of(self.case, inputs if self.case.encoder == "window" else inputs[0])
                touched[rows[real.expand_as(rows)]] = True
            for name in weights.keys() & targets.keys():
                logits = logits_of(self.p, self.case, name, inputs)
                target = targets[name].reshape(
                    -1, *([] if hasattr(self.case.tasks[name], "classes") else logits.shape[1:])
                )
                found.setdefault(name, []).append((logits, target))
        total, seen = torch.zeros((), dtype=torch.float64), dict.fromkeys(weights, 0.0)
        for name, parts in found.items():
            task = self.case.tasks[name]
            loss, labelled = loss_of(task, *(torch.cat(each) for each in zip(*parts, strict=True)))
            weight = weights[name]
            if self.case.schedule == "learnt":
                half = getattr(task, "huber_delta", 1.0) is None
                weight = (0.5 if half else 1.0) * torch.exp(-self.noise[name])
                total = total + (self.noise[name] / 2 if labelled else 0.0)
                weight = weight if labelled else 0.0
            seen[name] = float(loss.detach()) if self.case.schedule == "learnt" or weights[name] else 0.0
            total = total + weight * loss
        self.losses.append(seen)
        self._move(total, touched, part)

    def _move(self, total, touched, part):
        ours = {id(v) for n, v in self.p.items() if n.startswith("encoder.")}
        moving = [v for v in self.moving if part == "all" or (id(v) in ours) == (part == "shared")]
        for v, gradient in zip(moving, torch.autograd.grad(total, moving, allow_unused=True), strict=True):
            v.grad = gradient
        gradients = [v.grad for v in moving if v.grad is not None]
        if self.rows is not None and self.table.grad is not None and self.case.frozen_rows is not None:
            self.table.grad[self.case.frozen_rows] = 0.0
            touched &= ~self.case.frozen_rows
        if self.case.clip_norm is not None:
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            for g in gradients:
                g *= min(1.0, self.case.clip_norm / (norm + 1e-6))
        of_rows = None
        if self.rows is not None:
            of_rows, self.table.grad = self.table.grad, None
        self.optimizer.step()
        if of_rows is not None:
            rate = next(
                g["lr"] for g in self.optimizer.param_groups if any(p is self.table for p in g["params"])
            )
            with torch.no_grad():
                self.rows.move(self.table, of_rows, touched, rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
