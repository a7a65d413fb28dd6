"""python -m bench.profile_gpu: which kernels run, for how long, and how close they come to the device's limits.

The torch profiler traces the heads' forward and backward pass, and a training step before the switch, after it and in
a single-task (STL) run, with and without graphs. Bytes per second count each input read once and each output written
once (features, weight, bias, targets and gradients), operations per second the three GEMMs; the ceilings are a
measured copy and a measured GEMM. The kernels after the switch are compared with those of the STL step. Writes
`profile.md` and, with --traces, one trace per step for chrome://tracing. Exits with code 1 if the kernels after the
switch differ from those of the STL step. Without a GPU, prints one line and exits with code 0.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from bench.device import NO_GPU

if TYPE_CHECKING:
    from bench.step_cases import StepCase

Write = Callable[[list[str]], None]  # adds lines to the report

REPEATS = 10  # calls under the profiler
WARM_UP_CALLS = 15
MOST_KERNELS = 10  # per table; the last line sums up the others


class Launch(NamedTuple):
    """One operation of the GPU."""

    name: str
    start_us: float
    microseconds: float


class Profile(NamedTuple):
    """The operations of the GPU in REPEATS calls, in order."""

    title: str
    launches: list[Launch]

    @property
    def busy_us(self) -> float:
        """Microseconds per call in which the GPU was busy."""
        return sum(launch.microseconds for launch in self.launches) / REPEATS

    @property
    def span_us(self) -> float:
        """Microseconds per call from the first launch to the end of the last, including gaps."""
        if not self.launches:
            return 0.0
        return (
            max(e.start_us + e.microseconds for e in self.launches) - min(e.start_us for e in self.launches)
        ) / REPEATS

    def names(self) -> Counter[str]:
        """Count how often each kernel ran."""
        return Counter(launch.name for launch in self.launches)


def profile(title: str, run: Callable[[], object], trace: Path | None = None) -> Profile:
    """Run REPEATS times under the profiler, after a warm-up; the trace is written to a .json.gz file."""
    for _ in range(WARM_UP_CALLS):
        run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    if trace is not None:
        plain = trace.with_suffix("")
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(trace, "wb") as target:
            shutil.copyfileobj(source, target)
        plain.unlink()
    return Profile(title, _launches(profiler.events()))


def _launches(events: Iterable[object]) -> list[Launch]:
    found = [
        Launch(e.name, e.time_range.start, e.time_range.end - e.time_range.start)  # type: ignore[attr-defined]
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
        and not getattr(e, "is_user_annotation", False)
    ]
    return sorted(found, key=lambda launch: launch.start_us)


# --- the report ------------------------------------------------------------------------------------------


def kernel_table(found: Profile) -> list[str]:
    """Return a table of kernels by their total time."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for launch in found.launches:
        by_name[launch.name].append(launch.microseconds)
    rows = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    others = rows[MOST_KERNELS:]
    shown = [(f"`{_short(name)}`", times) for name, times in rows[:MOST_KERNELS]]
    if others:
        together = [time for _, times in others for time in times]
        shown.append((f"{len(others)} other{'s' if len(others) > 1 else ''}", together))
    lines = ["| kernel | launches per call | µs each | µs per call | share |", "|---|---:|---:|---:|---:|"]
    busy = max(found.busy_us, 1e-9)
    for name, times in shown:
        of_call = sum(times) / REPEATS
        lines.append(
            f"| {name} | {len(times) / REPEATS:g} | {sum(times) / len(times):.1f} | {of_call:.1f} "
            f"| {of_call / busy:.0%} |"
        )
    return lines


def _short(name: str, longest: int = 90) -> str:
    # A bar would end the table's cell.
    name = name.replace("|", "/")
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def against_ceilings(
    found: Profile, n_bytes: int, flops: int, copy: float | None, gemm: float | None
) -> list[str]:
    """Return achieved bytes and operations per second, and their share of the device's limits."""
    seconds = found.busy_us / 1e6
    if not seconds:
        return ["The profiler recorded nothing on the GPU.", ""]
    lines = [
        f"GPU busy {found.busy_us:.1f} µs of {found.span_us:.1f} µs per call, "
        f"{len(found.launches) / REPEATS:g} launches.",
    ]
    for what, amount, ceiling, unit in (
        ("bytes that must move", n_bytes, copy, "TB/s"),
        ("operations of the GEMMs", flops, gemm, "TFLOP/s"),
    ):
        share = (
            ""
            if ceiling is None
            else f", {amount / seconds / ceiling:.0%} of the measured {ceiling / 1e12:.3g}"
        )
        lines.append(
            f"{what}: {amount:,} in {found.busy_us:.1f} µs = {amount / seconds / 1e12:.3g} {unit}{share}."
        )
    return [*lines, ""]


def difference(after: Profile, single: Profile) -> list[str]:
    """Return one line per kernel that differs; empty if both ran the same kernels equally often."""
    ours, theirs = after.names(), single.names()
    return [
        f"{name}: {ours[name] / REPEATS:g} per step after the switch, {theirs[name] / REPEATS:g} in the STL step"
        for name in sorted({*ours, *theirs})
        if ours[name] != theirs[name]
    ]


# --- what is profiled ------------------------------------------------------------------------------------


def profile_heads(traces: Path | None, write: Write) -> None:
    """Profile forward and backward of every GPU case; with a folder for traces, trace the first."""
    from bench.cases import GPU_HEAD_CASES
    from bench.floors import copy_bytes_per_second, gemm_flops_per_second
    from bench.peers import ours

    device = torch.device("cuda")
    copy = copy_bytes_per_second(device)
    gemm = {
        dtype: gemm_flops_per_second(device, dtype)
        for dtype in dict.fromkeys(case.dtype for case in GPU_HEAD_CASES)
    }
    write(["## Heads, forward and backward", ""])
    for number, case in enumerate(GPU_HEAD_CASES):
        torch.cuda.empty_cache()
        peer = ours(case.inputs(device=device), "forward+backward")

        def run(peer=peer) -> None:  # type: ignore[no-untyped-def]
            peer.clear()
            peer.run()

        trace = traces / "trace-heads.json.gz" if traces is not None and number == 0 else None
        try:
            found = profile(case.name, run, trace)
        except Exception as error:  # the failure of one case must not affect the others
            write([f"### {case.name}", "", f"Failed: {type(error).__name__}: {error}", ""])
            continue
        n_bytes = case.input_bytes + case.gradient_bytes
        rates = against_ceilings(found, n_bytes, case.gemm_flops, copy, gemm[case.dtype])
        write([f"### {case.name}: {case.shape}", "", *rates, *kernel_table(found), ""])


def profile_steps(traces: Path | None, write: Write) -> bool:
    """Profile each model's step with all tasks, after the switch and as STL; False if the last two differ."""
    from bench.step_cases import GPU_STEP_CASES

    same = True
    write(["## Training step", ""])
    for case in GPU_STEP_CASES[:2]:  # the tagger, as `train` makes it, and an embedding model
        for graph in (False, True):
            try:
                of_case, alike = _profile_step(case, graph, traces)
            except Exception as error:  # a step that is not captured must not affect the others
                of_case, alike = [f"### {case.name}{', graph' * graph}", "", f"Failed: {error}", ""], False
            write(of_case)
            same = same and alike
    return same


def _profile_step(case: StepCase, graph: bool, traces: Path | None) -> tuple[list[str], bool]:
    from bench.step_cases import graphed_step, trainer_step
    from mt2st_fast import MultiTask, SingleTask, Switch

    model = case.build(torch.device("cuda"))
    make, suffix = (graphed_step, ", graph") if graph else (trainer_step, "")
    _, before = make(model, MultiTask())
    # With graphs, the second phase must also be captured before it is timed.
    _, after = graphed_step(model, Switch(at_step=6), steps=14) if graph else make(model, Switch(at_step=2))
    _, single = make(model, SingleTask())
    profiles = {}
    for name, run in (("before the switch", before), ("after the switch", after), ("STL", single)):
        file = None if traces is None or not graph else traces / f"trace-{name.replace(' ', '-')}.json.gz"
        profiles[name] = profile(name, run, file)
    lines: list[str] = []
    for name, found in profiles.items():
        lines += [f"### {name}{suffix}: {case.name}", ""]
        lines += [
            f"GPU busy {found.busy_us:.1f} µs of {found.span_us:.1f} µs per step, "
            f"{len(found.launches) / REPEATS:g} launches.",
            "",
            *(kernel_table(found) if name != "STL" else []),
            "",
        ]
    unlike = difference(profiles["after the switch"], profiles["STL"])
    verdict = "different kernels than the STL step:" if unlike else "the same kernels as the STL step."
    lines += [f"After the switch{suffix}: {verdict}", "", *(f"- {line}" for line in unlike), ""]
    return lines, not unlike and bool(profiles["STL"].launches)


def main() -> int:
    """Profile, print and write `profile.md`."""
    parser = argparse.ArgumentParser(prog="bench.profile_gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/profile"), help="folder to write to")
    parser.add_argument("--traces", action="store_true", help="write traces as well")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_GPU.format(done="profiled"))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    traces = arguments.out if arguments.traces else None
    file = arguments.out / "profile.md"
    with file.open("w", encoding="utf-8") as report:

        def write(lines: list[str]) -> None:
            # At once: what follows may fail, or be stopped at a time limit.
            report.write("\n".join([*lines, ""]))
            report.flush()

        write([f"# Profile on {torch.cuda.get_device_name()}, torch {torch.__version__}", ""])
        same = profile_steps(traces, write)
        profile_heads(traces, write)
    print(f"wrote {file}; after the switch: {'the same kernels' if same else 'different kernels'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
