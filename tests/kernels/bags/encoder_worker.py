"""Run encoders over the Triton kernels in the interpreter and print what holds, as JSON: python -m <this> CHECK...

Run by `run_interpreted` (tests/kernels/interpreter.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast import SGD, BagEncoder, LazyAdam, RowwiseAdagrad, WindowEncoder
from mt2st_fast.kernels import prepare_on_device, prepared_embedding_bag
from mt2st_fast.kernels.bags.on_triton import blocks
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from tests.kernels.launches import WaitError, counted_launches, refused_waits

T, R, M, D = 30, 40, 5, 12
OPTIMIZERS: dict[str, Callable[..., RowSparseOptimizer]] = {
    "sgd": lambda p, lr: SGD(p, lr=lr),
    "adagrad": lambda p, lr: RowwiseAdagrad(p, lr=lr),
    # As on a GPU: what AdamW does with a rate on a CPU otherwise reads it.
    "adam": lambda p, lr: LazyAdam(p, lr=lr, fused=True),
}


def rows_of_types(generator: torch.Generator) -> Tensor:
    rows = torch.randint(1, R, (T, M), generator=generator)
    rows[::3, 2:] = 0  # padding
    rows[7] = 0  # a word without any row
    return rows


def encoder(kind: str, subwords: bool, backend: str, sparse: bool) -> Any:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    rows = {"rows_of_type": rows_of_types(generator), "num_rows": R} if subwords else {}
    options = {"sparse": sparse, "backend": backend, **rows}
    if kind == "window":
        return WindowEncoder(T, D, window=1, hidden=None, **options)
    return BagEncoder(T, D, mode=kind, **options)


def inputs_of(kind: str, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if kind == "window":
        types = torch.randint(-1, T, (9, 3), generator=generator, dtype=torch.int32)
        types[::2] = 4  # a frequent word
        return types
    starts = torch.tensor([0, 0, 6, 7, 20, 20, 26])
    types = torch.randint(-1, T, (26,), generator=generator, dtype=torch.int32)
    types[::3] = 4
    return types, starts


def upstream_of(features: Tensor, seed: int) -> Tensor:
    return torch.randn(features.shape, generator=torch.Generator().manual_seed(seed + 100))


def gradient(kind: str, subwords: bool, backend: str, sparse: bool) -> tuple[Tensor, Tensor]:
    model = encoder(kind, subwords, backend, sparse)
    features = model(inputs_of(kind, 0))
    features.backward(upstream_of(features, 0))
    return features.detach(), model.table.grad.to_dense()


def steps(
    kind: str, subwords: bool, backend: str, name: str, rate: float | Tensor, fused: bool
) -> list[Tensor]:
    """The table and its state after two steps, whose rate falls."""
    model = encoder(kind, subwords, backend, sparse=True)
    optimizer = OPTIMIZERS[name]([model.table], lr=rate)
    if fused:
        optimizer.fuse([model.table])
    for seed in range(2):
        group = optimizer.param_groups[0]
        if isinstance(rate, Tensor):
            group["lr"].fill_(0.125 / (seed + 1))
        else:
            group["lr"] = float(torch.tensor(0.125 / (seed + 1)))
        features = model(inputs_of(kind, seed))
        features.backward(upstream_of(features, seed))
        optimizer.step()
        optimizer.zero_grad()
    state = [value for key, value in optimizer.state[model.table].items() if key.startswith("row_")]
    return [model.table.detach(), *state]


def close(found: Any, expected: Any, tolerance: float = 2e-6) -> bool:
    return all(
        a.shape == b.shape and bool(((a - b).abs() <= tolerance * max(1.0, float(b.abs().max()))).all())
        for a, b in zip(found, expected, strict=True)
    )


def equal(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def check_encoders() -> dict[str, bool]:
    held = {}
    for kind in ("window", "mean", "sum"):
        for subwords in (True, False):
            name = f"{kind}{', subwords' if subwords else ''}"
            expected = gradient(kind, subwords, "reference", sparse=False)
            for sparse in (True, False):
                found = gradient(kind, subwords, "triton", sparse)
                held[f"gradient: {name}, {'sparse' if sparse else 'dense'}"] = close(found, expected)
            for rule in OPTIMIZERS:
                by_reference = steps(kind, subwords, "reference", rule, 0.125, fused=False)
                fused = steps(kind, subwords, "triton", rule, 0.125, fused=True)
                on_device = steps(kind, subwords, "triton", rule, torch.tensor(0.125), fused=True)
                held[f"steps: {name}, {rule}"] = close(fused, by_reference, 1e-5)
                held[f"rate on the device: {name}, {rule}"] = equal(on_device, fused)
    return held


def check_capacity() -> dict[str, bool]:
    """Ids past the last bag, all of them rows, change no bit; nor does a batch that was sorted before."""
    held = {}
    for subwords in (True, False):
        for mode in ("mean", "sum"):
            found = []
            for way in ("as it is", "in a longer buffer", "prepared", "copied"):
                model = encoder(mode, subwords, "triton", sparse=True)
                optimizer = OPTIMIZERS["adam"]([model.table], lr=0.125)
                optimizer.fuse([model.table])
                types, starts = inputs_of(mode, 0)
                if way != "as it is":
                    types = torch.cat([types, torch.full((11,), 5, dtype=torch.int32)])
                batch: Any = (types, starts)
                if way in ("prepared", "copied"):
                    batch = model.prepare(types, starts)
                if way == "copied":
                    other = types.clone().fill_(3), torch.tensor([0, 2, 2, 2, 2, 2, 2])
                    buffer = model.prepare(*other)
                    buffer.copy_from(batch)
                    batch = buffer
                features = model(batch)
                features.backward(upstream_of(features, 0))
                found.append([features.detach(), model.table.detach()])
            name = f"{mode}{', subwords' if subwords else ''}"
            held[f"longer buffer: {name}"] = equal(found[1], found[0])
            held[f"prepared: {name}"] = equal(found[2], found[0]) and equal(found[3], found[0])
            held[f"moved: {name}"] = not equal(found[0][1:], [encoder(mode, subwords, "triton", True).table])
    return held


def check_waits() -> dict[str, bool]:
    """A step of every built-in encoder reads nothing back, at a rate on the device."""
    held = {}
    for kind in ("window", "mean", "sum"):
        for subwords in (True, False):
            for name, make in OPTIMIZERS.items():
                for sparse in (True, False):
                    model = encoder(kind, subwords, "triton", sparse)
                    output = nn.Linear(model.out_features, 3)
                    optimizer = make([*model.parameters(), *output.parameters()], lr=torch.tensor(0.125))
                    if name == "sgd":  # as on a GPU
                        optimizer.param_groups[0]["fused"] = True
                    if sparse:
                        optimizer.fuse([model.table])
                    batch, before = inputs_of(kind, 0), model.table.detach().clone()
                    key = f"{kind}{', subwords' if subwords else ''}, {name}{', sparse' if sparse else ''}"
                    # RowwiseAdagrad's own step of dense parameters is a Numba kernel on a CPU.
                    dense = name != "adagrad"
                    try:
                        with refused_waits():
                            output(model(batch)).square().sum().backward()
                            if dense:
                                optimizer.step()
                            optimizer.zero_grad()
                    except WaitError as error:
                        print(key, error, file=sys.stderr)
                        held[key] = False
                        continue
                    moved = not torch.equal(model.table, before)
                    held[key] = moved == (sparse or dense)
    return held


def check_frozen() -> dict[str, bool]:
    """Frozen rows stay as they are, the others move as beside them in the reference, and nobody waits."""
    held = {}
    frozen = torch.arange(R) % 3 == 0
    frozen[4] = True  # the frequent word
    for kind in ("window", "mean", "sum"):
        for subwords in (True, False):
            found = {}
            for way in ("reference", "fused", *(("prepared",) if kind != "window" else ())):
                backend = "reference" if way == "reference" else "triton"
                model = encoder(kind, subwords, backend, sparse=True)
                before, stays = model.table.detach().clone(), frozen[: len(model.table)]
                optimizer = OPTIMIZERS["adam"]([model.table], lr=0.125)
                optimizer.freeze_rows(model.table, stays)
                batch, upstream = inputs_of(kind, 0), upstream_of(model(inputs_of(kind, 0)), 0)
                if way == "reference":
                    model(batch).backward(upstream)
                    optimizer.step()
                else:
                    batch = model.prepare(*batch) if way == "prepared" else batch
                    optimizer.fuse([model.table])
                    with refused_waits():
                        model(batch).backward(upstream)
                moved = (model.table != before).any(1)
                name = f"{kind}{', subwords' if subwords else ''}, {way}"
                held[f"stay: {name}"] = bool(moved.any()) and not moved[stays].any()
                state = optimizer.state[model.table]
                found[way] = [model.table.detach(), *(state[key] for key in state if key.startswith("row_"))]
                held[f"as the reference: {name}"] = close(found[way], found["reference"], 1e-5)
    return held


def what_waits_is_seen() -> dict[str, bool]:
    tensor, held = torch.tensor([1, 0]), {}
    asked = {
        "item": lambda: tensor[0].item(),
        "int": lambda: int(tensor[0]),
        "bool": lambda: bool(tensor[0]),
        "nonzero": lambda: tensor.nonzero(),
        "unique": lambda: torch.unique(tensor),
        "tolist": lambda: tensor.tolist(),
        "mask": lambda: tensor[tensor > 0],
        "sparse gradient": lambda: gradient("window", True, "triton", sparse=True),
    }
    for name, ask in asked.items():
        try:
            with refused_waits():
                ask()
            held[name] = False
        except WaitError:
            held[name] = True
    return held


# --- launches --------------------------------------------------------------------------------------------


def tagger(sparse: bool = True) -> tuple[WindowEncoder, Tensor]:
    """The encoder of a tagger as `train` makes it, and a batch: 512 windows of 5 words, 12 rows a word, D = 64."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 60_000, (20_000, 12), generator=generator)
    model = WindowEncoder(
        20_000, 64, window=2, hidden=128, rows_of_type=rows, num_rows=60_000, sparse=sparse, backend="triton"
    )
    return model, torch.randint(-1, 20_000, (512, 5), generator=generator, dtype=torch.int32)


def count_launches() -> dict[str, list[str]]:
    found = {}
    model, windows = tagger()
    optimizer = OPTIMIZERS["adam"](model.parameters(), lr=torch.tensor(0.01))
    optimizer.fuse([model.table])
    upstream = torch.ones(512, 5, 64)
    with counted_launches(execute=False) as n:
        model.pool(windows).backward(upstream)
    found["tagger: embedding side"] = n.names
    for p in model.hidden.parameters():
        p.grad = torch.zeros_like(p)
    with counted_launches(execute=False) as n:
        optimizer.step()
    found["tagger: dense step"] = n.names
    optimizer.zero_grad()
    features = torch.ones(512, 128)
    with counted_launches(execute=False) as n:
        model(windows).backward(features)
        optimizer.step()
        optimizer.zero_grad()
    found["tagger: whole step"] = n.names

    bags = BagEncoder(60_000, 64, sparse=True, backend="triton")
    optimizer = OPTIMIZERS["adagrad"](bags.parameters(), lr=torch.tensor(0.01))
    optimizer.fuse([bags.table])
    ids = torch.zeros(20_000, dtype=torch.int32)
    starts = torch.arange(0, 20_001, 40)
    upstream = torch.ones(500, 64)
    with counted_launches(execute=False) as n:
        bags((ids, starts)).backward(upstream)
        optimizer.step()
    found["bags"] = n.names
    with counted_launches(execute=False) as n:
        prepared = bags.prepare(ids, starts)
    found["bags: prepare"] = n.names
    with counted_launches(execute=False) as n:
        bags(prepared).backward(upstream)
        optimizer.step()
    found["bags: prepared"] = n.names
    few, few_starts = ids[:1000], starts[:26]
    with counted_launches(execute=False) as n:
        bags((few, few_starts)).backward(upstream[:25])
    found["bags: few"] = n.names
    return found


def refusals() -> dict[str, str]:
    table, ids, starts = torch.zeros(9, 4), torch.zeros(3, dtype=torch.int32), torch.tensor([0, 3])
    prepared = prepare_on_device(table, ids, starts, backend="triton")
    told = {}
    wrong: dict[str, Callable[[], Any]] = {
        "table": lambda: prepared_embedding_bag(torch.zeros(8, 4), prepared, backend="triton"),
        "copy": lambda: prepared.copy_from(prepare_on_device(table, ids[:2], starts, backend="triton")),
        "mode": lambda: prepare_on_device(table, ids, starts, "max", backend="triton"),  # type: ignore[arg-type]
        "device": lambda: prepare_on_device(table, ids, starts, backend="reference"),
    }
    for name, call in wrong.items():
        try:
            call()
            told[name] = "nothing"
        except (ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


AT_REAL_SIZES: dict[str, Callable[[], dict[str, Any]]] = {"launches": count_launches, "refusals": refusals}
IN_SMALL_BLOCKS: dict[str, Callable[[], dict[str, Any]]] = {
    "encoders": check_encoders,
    "capacity": check_capacity,
    "waits": check_waits,
    "frozen": check_frozen,
    "seen": what_waits_is_seen,
}


def main(asked: list[str]) -> None:
    results = {name: AT_REAL_SIZES[name]() for name in asked if name in AT_REAL_SIZES}
    # Small enough for the interpreter, and in several chunks and pieces.
    blocks.CHUNK, blocks.RANK_BLOCK, blocks.MERGE_BLOCK, blocks.MERGE_CHUNKS = 64, 16, 32, 4
    blocks.PIECE, blocks.SCAN = 16, 4
    results |= {name: IN_SMALL_BLOCKS[name]() for name in asked if name not in AT_REAL_SIZES}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
