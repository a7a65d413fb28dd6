"""python -m bench.memory_safety: check that captured training steps survive what others do to the device's memory.

Captures a step with all tasks and one with only the main task as CUDA graphs. Then the cuBLAS workspaces are cleared,
the allocator's cache is emptied, other tensors take the freed memory, and a torch.compile(mode="reduce-overhead")
module runs its own graphs; after each of these, both graphs are replayed. At the end, the other tensors must be
untouched and the weights must match those of the same steps without graphs. Exits with code 0 if they do, else 1.
bench/gpu.sh also runs it under compute-sanitizer. Without a GPU, prints one line and exits with code 0.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.accuracy import InaccurateError, relative_error
from bench.device import NO_GPU, clear_workspaces, synchronize
from bench.step_cases import Step, StepModel, embedding_model, graphed_step, trainer_step
from mt2st_fast import MultiTask, SingleTask, Trainer
from mt2st_fast.training.schedules import Schedule

SIZES = (17, 2, 2, 3, 4, 5, 6, 8)
SCHEDULES: dict[str, Callable[[], Schedule]] = {"all tasks": MultiTask, "main task": SingleTask}
STEPS = 8  # before the first disturbance, including the capture
REPLAYS = 4  # after each disturbance
# Float32 steps differ in the order of additions; a replay that accesses foreign memory is off by more, or NaN.
ALLOWED_ERROR = 1e-4
MARK = 7.0
# Elements of the tensors that take the freed memory: as large as a cuBLAS workspace, as a segment, and small.
TAKEN = (*(8 << 20,) * 8, *(1 << 20,) * 32, *(1 << 14,) * 64)


class Pair(NamedTuple):
    """The same training twice: with a graph, and without."""

    name: str
    graphed: Trainer
    replay: Step
    plain: Trainer
    step: Step

    def advance(self, steps: int) -> None:
        """Advance both by the same number of steps."""
        for _ in range(steps):
            self.replay()
            self.step()

    def hold(self, after: str) -> None:
        """Raise InaccurateError if the two differ."""
        for kind in ("encoder", "heads"):
            ours, theirs = (getattr(trainer, kind).state_dict() for trainer in (self.graphed, self.plain))
            for key, truth in theirs.items():
                if not truth.is_floating_point():
                    continue
                error = relative_error(ours[key], truth.double())
                if not error <= ALLOWED_ERROR:  # NaN must fail
                    raise InaccurateError(f"{self.name}, {after}: {kind} {key} is off by {error:.3g}")


def make_pair(model: StepModel, name: str, *, graph: bool = True) -> Pair:
    """Return both at the same step. Raises RuntimeError with the reason if the step is not captured."""
    make = graphed_step if graph else _eager_twin
    graphed, replay = make(model, SCHEDULES[name](), STEPS)
    plain, step = _eager_twin(model, SCHEDULES[name](), STEPS)
    return Pair(name, graphed, replay, plain, step)


def _eager_twin(model: StepModel, schedule: Schedule, steps: int) -> tuple[Trainer, Step]:
    trainer, step = trainer_step(model, schedule)
    for _ in range(steps):
        step()
    return trainer, step


def take_memory(device: torch.device, taken: tuple[int, ...] = TAKEN) -> list[Tensor]:
    """Return tensors full of MARK, allocated where memory is free."""
    return [torch.full((n,), MARK, dtype=torch.float32, device=device) for n in taken]


def check_untouched(tensors: list[Tensor], after: str) -> None:
    """Raise InaccurateError if anything was written into the tensors."""
    for tensor in tensors:
        changed = int((tensor != MARK).sum())
        if changed:
            raise InaccurateError(f"{after}: {changed} numbers of a tensor of {len(tensor)} were overwritten")


def run_compiled(device: torch.device) -> None:
    """Run a module under torch.compile(mode="reduce-overhead"), which captures its own graphs."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 17)).to(device)
    inputs = torch.randn(256, 64, device=device)
    targets = torch.randint(17, (256,), device=device)
    loss = torch.compile(lambda: F.cross_entropy(module(inputs), targets), mode="reduce-overhead")
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        loss().backward()
        module.zero_grad(set_to_none=True)


def _clear_and_empty() -> None:
    clear_workspaces()
    torch.cuda.empty_cache()


def check(device: torch.device, *, compiled: bool = True, say: Callable[[str], object] = print) -> None:
    """Disturb two graphs, and compare them with the same steps without graphs.

    Raises InaccurateError, and RuntimeError if a step is not captured.
    """
    on_gpu = device.type == "cuda"
    model = embedding_model(2000, 64, 256, 8, SIZES, device)
    pairs = [make_pair(model, name, graph=on_gpu) for name in SCHEDULES]
    taken: list[Tensor] = []
    disturbances: dict[str, Callable[[], object]] = {"after the captures": lambda: None}
    if on_gpu:
        disturbances |= {"workspaces cleared": clear_workspaces, "cache emptied": torch.cuda.empty_cache}
    disturbances["memory taken"] = lambda: taken.extend(take_memory(device, TAKEN if on_gpu else TAKEN[-8:]))
    if compiled:
        disturbances["a compiled module ran"] = lambda: run_compiled(device)
    if on_gpu:
        disturbances["cleared and emptied again"] = _clear_and_empty
    for name, disturb in disturbances.items():
        disturb()
        for pair in pairs:
            pair.advance(REPLAYS)
        synchronize(device)
        check_untouched(taken, name)
        for pair in pairs:
            pair.hold(name)
        say(f"{name}: ok")


def main() -> int:
    """Run the checks, and print one line per disturbance."""
    parser = argparse.ArgumentParser(prog="bench.memory_safety", description=__doc__)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled module")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_GPU.format(done="checked"))
        return 0
    warnings.simplefilter("ignore")  # of torch.compile, about itself
    try:
        check(
            torch.device("cuda"), compiled=not arguments.no_compile, say=lambda line: print(line, flush=True)
        )
    except (InaccurateError, RuntimeError) as error:
        print(f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    print("two graphs, with a compiled module beside them: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
