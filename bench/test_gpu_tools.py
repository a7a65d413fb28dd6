"""The GPU tools without a GPU: the arithmetic of the profile, and their one-line message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from bench import profile_gpu
from bench.cases import HeadCase
from bench.environment import ROOT
from bench.memory import peak_extra_bytes
from bench.profile_gpu import REPEATS, Launch, Profile, against_ceilings, difference, kernel_table

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


SCRIPT = (ROOT / "bench" / "gpu.sh").read_text("utf-8")


def measurements() -> list[str]:
    """The modules that the script's stages run on the device, with their options as they stand there."""
    lines = SCRIPT.replace("\\\n", " ").splitlines()
    commands = [
        line.split('"$PYTHON" -m ')[1] for line in lines if re.search(r"^ *stage .* -m bench\.", line)
    ]
    for pattern, by in (
        (r'"\$\{corpus\[@\]\}"', "--corpus x"),
        (r'"\$\w+"', "x"),
        (r'"\$\(scaled (\d+)\)"', r"\1"),
    ):
        commands = [re.sub(pattern, by, command) for command in commands]
    return commands


# Runs modules as `python -m` does, one after another.
ALL = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = command.split()
    print("--", command)
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        assert not left.code, left.code
"""


def lines_of(*program):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    run = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    return run.stdout.splitlines()


@WITHOUT_GPU
def test_without_a_gpu_the_script_says_so_in_one_line():
    [line] = lines_of("bash", str(Path("bench") / "gpu.sh"))
    assert line.startswith("no GPU")


@WITHOUT_GPU
def test_without_a_gpu_every_stage_says_so_in_one_line():
    commands = [*dict.fromkeys(measurements())]
    lines = lines_of(sys.executable, "-c", ALL, *commands)
    assert lines[::2] == [f"-- {command}" for command in commands]
    assert len(lines) == 2 * len(commands)
    assert all(line.startswith("no GPU") for line in lines[1::2])


def test_the_stages_of_a_gpu_machine_fit_its_budget():
    budget = int(re.search(r"BUDGET_SECONDS:-(\d+)", SCRIPT)[1])
    stages = re.findall(r"^ *stage \d+ (\w+|\"[^\"]+\") (\d+) ", SCRIPT, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^ *stage \d", SCRIPT, re.MULTILINE)) >= 10
    limits = {name: int(limit) for name, limit in stages}  # of a name there is one at a time
    assert sum(limits.values()) <= budget <= 350


def test_every_package_that_the_project_needs_is_looked_for():
    """What is installed there without its dependencies names them if they are missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {re.split(r"[ >=;]", dependency)[0] for dependency in project["dependencies"]} - {"torch"}
    assert needed <= set(re.search(r'^wanted = "(.+)"$', SCRIPT, re.MULTILINE)[1].split())


# Stands for Python: its tests fail, and leave a process behind that hears no Ctrl-C, as pytest's workers do.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
-) cat >/dev/null ;;
"-m pytest"*) (trap "" INT; exec sleep 60) & echo $! >"$LEFT"; echo "2 passed, 1 failed in 3s"; exit 1 ;;
"-m bench"*) echo "ran $*" ;;
esac
"""


def test_no_stage_lives_longer_than_its_command(tmp_path):
    python, left, out = tmp_path / "python", tmp_path / "left", tmp_path / "out"
    python.write_text(FAKE_PYTHON, "utf-8")
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(out), "LEFT": str(left)}
    run = subprocess.run(
        ["bash", str(Path("bench") / "gpu.sh")], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=40,
    )  # fmt: skip
    assert run.returncode == 2, run.stdout
    stages = [
        line.split(":")[0] for line in run.stdout.split("--- stages")[0].splitlines() if " after " in line
    ]
    assert stages == [
        "tests on the GPU", "ceilings", "training step", "heads", "other jobs", "training run", "bags of words",
        "profile", "memory safety",
    ]  # fmt: skip
    assert "2 passed, 1 failed" in (out / "tests.txt").read_text("utf-8")
    assert "bench.measure heads" in (out / "log.txt").read_text("utf-8")
    process = Path("/proc", left.read_text("utf-8").strip())
    assert not process.exists() or "Z" in (process / "status").read_text("utf-8").split("State:")[1][:3]


def fake_tool(path: Path, code: str) -> Path:
    path.write_text(code, "utf-8")
    path.chmod(0o755)
    return path


def test_what_cannot_be_killed_does_not_hold_up_the_rest(tmp_path):
    """As a process that waits for a device that hangs: `timeout` would wait for it for ever."""
    (tmp_path / "bin").mkdir()
    fake_tool(
        tmp_path / "bin" / "timeout",
        '#!/bin/bash\ncase "$*" in *-m\\ pytest*) trap "" INT; sleep 100 ;; esac\n',
    )
    python, out = fake_tool(tmp_path / "python", FAKE_PYTHON), tmp_path / "out"
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHON": str(python), "OUT": str(out), "BUDGET_SECONDS": "8",
    }  # fmt: skip
    started = time.monotonic()
    run = subprocess.run(
        ["bash", str(Path("bench") / "gpu.sh")], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert "tests on the GPU: stopped at its time limit" in run.stdout
    assert "heads: not started" in run.stdout
    assert time.monotonic() - started < 40


def test_more_time_is_shared_out(tmp_path):
    """The limits within a stage, too: of 700 seconds, each has twice what it has of 350."""
    python, out = fake_tool(tmp_path / "python", FAKE_PYTHON), tmp_path / "out"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": str(python),
        "OUT": str(out),
        "LEFT": str(tmp_path / "left"),
    }
    run = subprocess.run(
        ["bash", str(Path("bench") / "gpu.sh")], cwd=ROOT, env={**environment, "BUDGET_SECONDS": "700"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    log = (out / "log.txt").read_text("utf-8")
    assert run.returncode == 2, run.stdout
    assert "bench.measure heads --device cuda --rounds 20 --limit-seconds 4 --total-seconds 116 " in log
    of_stages = sum(
        int(limit) for limit in re.findall(r"^ *stage \d+ (?:\w+|\"[^\"]+\") (\d+) ", SCRIPT, re.MULTILINE)
    )
    last = int(re.findall(r"=== memory safety \(at most (\d+) s\)", log)[0])
    assert last <= 700
    assert last > of_stages


def test_a_python_without_torch_is_no_missing_gpu(tmp_path):
    python = fake_tool(tmp_path / "python", "#!/bin/bash\nexit 1\n")
    run = subprocess.run(
        ["bash", str(Path("bench") / "gpu.sh")], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "cannot import torch" in run.stdout


# Its training steps take minutes, note that they were interrupted, and leave a process behind.
SLOW_PYTHON = """#!/bin/bash
case "$*" in
-) cat >/dev/null ;;
"-m bench.measure step"*) (trap "" INT; exec sleep 60) & echo $! $$ >"$LEFT"; trap 'echo interrupted; exit' INT
    sleep 60 ;;
"-m bench"*) echo "ran $*" ;;
esac
"""


def until(condition):
    """Wait for at most 20 seconds."""
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it has not come to that")


def heed_interrupts():
    """A shell cannot trap what it was told to ignore, as jobs in the background are."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_is_known_when_it_is_stopped_is_written(tmp_path, how):
    python, left, out = tmp_path / "python", tmp_path / "left", tmp_path / "out"
    python.write_text(SLOW_PYTHON, "utf-8")
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(out), "LEFT": str(left)}
    with subprocess.Popen(
        ["bash", str(Path("bench") / "gpu.sh")], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    ) as run:  # fmt: skip
        until(lambda: left.exists() and left.read_text("utf-8").endswith("\n"))
        run.send_signal(how)
        if how is signal.SIGKILL:
            run.wait(10)
            assert "tests on the GPU: passed" in (out / "summary.txt").read_text("utf-8")
            for process in left.read_text("utf-8").split():
                os.kill(int(process), signal.SIGKILL)
            return
        printed, _ = run.communicate(timeout=20)
    assert run.returncode == 143
    told = (out / "summary.txt").read_text("utf-8")
    assert "ran -m bench.summary" in told
    assert "tests on the GPU: passed" in told
    assert "stopped from outside" in told
    assert told in printed
    assert "interrupted" in (out / "log.txt").read_text("utf-8")
    process = Path("/proc", left.read_text("utf-8").split()[0])
    assert not process.exists() or "Z" in (process / "status").read_text("utf-8").split("State:")[1][:3]


def profile_of(*names, microseconds=2.0):
    launches = [Launch(name, 10.0 * i, microseconds) for i, name in enumerate(names)]
    return Profile("x", [launch for launch in launches for _ in range(REPEATS)])


def test_kernels_are_listed_by_their_time():
    found = Profile("x", [Launch("short", 0.0, 1.0), Launch("long|kernel", 5.0, 3.0)] * REPEATS)
    table = kernel_table(found)
    assert table[2] == "| `long/kernel` | 1 | 3.0 | 3.0 | 75% |"
    assert found.busy_us == pytest.approx(4.0)
    assert found.span_us == pytest.approx(8.0 / REPEATS)


def test_achieved_rates_are_shares_of_the_ceilings():
    found = profile_of("a", "b", microseconds=5.0)  # 10 µs a call
    lines = against_ceilings(found, 20_000_000, 4_000_000_000, 4e12, 8e14)
    assert lines[1] == "bytes that must move: 20,000,000 in 10.0 µs = 2 TB/s, 50% of the measured 4."
    assert (
        lines[2]
        == "operations of the GEMMs: 4,000,000,000 in 10.0 µs = 400 TFLOP/s, 50% of the measured 800."
    )


def test_a_kernel_too_many_is_found():
    assert difference(profile_of("a", "b"), profile_of("b", "a")) == []
    assert difference(profile_of("a", "b", "b"), profile_of("a", "b")) == [
        "b: 2 per step after the switch, 1 in the STL step"
    ]


def test_a_profile_that_is_stopped_keeps_what_it_has(monkeypatch, tmp_path):
    """bench/gpu.sh stops it at a time limit, as Ctrl-C does."""

    def steps(traces, write):
        write(["the steps", ""])
        return True

    def heads(traces, write):
        write(["the first case", ""])
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["profile_gpu", "--out", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(profile_gpu, "profile_steps", steps)
    monkeypatch.setattr(profile_gpu, "profile_heads", heads)
    with pytest.raises(KeyboardInterrupt):
        profile_gpu.main()
    assert (tmp_path / "profile.md").read_text("utf-8").split("\n\n")[1:] == [
        "the steps",
        "the first case",
        "",
    ]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs")
def test_peak_memory_of_a_call_is_that_of_its_logits():
    case = HeadCase("x", N=2048, D=64, sizes=(8192,))
    logits = 2048 * 8192 * 4
    # Logits, their log-softmax and its gradient: between two and four times the logits.
    assert 1.9 * logits < peak_extra_bytes(case, "eager") < 4.1 * logits
