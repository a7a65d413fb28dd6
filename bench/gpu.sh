#!/usr/bin/env bash
# Everything that a GPU machine should run, tests first, in at most 9 minutes and without network.
#
#   bench/gpu.sh            records go to bench/records, ready to commit; logs and traces to runs/gpu
#   OUT=DIR bench/gpu.sh    all of it goes to DIR (records to DIR/records: append them to bench/records)
#   PYTHON=python3.12       the interpreter that has torch and triton
#   MT2ST_COMMIT=HASH       what the records name as their commit where this is a copy without git
#
# Every stage has a time limit and the next one runs whatever becomes of it. The exit code is the sum of the
# stages that failed: 1 installation, 2 tests on the GPU, 4 heads, 8 training step, 16 scaling, 32 profile, 64
# power, 128 bags of words. Without a GPU: one line, exit code 0.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
BUDGET_SECONDS=${BUDGET_SECONDS:-530}
export PYTHONUNBUFFERED=1 COLUMNS=150

if ! "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "no GPU: $PYTHON has no torch that sees a CUDA device here, so nothing was run"
    exit 0
fi

if [ -n "${OUT:-}" ]; then
    logs=$OUT records=$OUT/records
else
    logs=runs/gpu records=bench/records
fi
mkdir -p "$logs" "$records"
log=$logs/log.txt
: >"$log"
failed=0
summary=""

# stage BIT NAME SECONDS COMMAND...: run within its limit and what is left of the budget.
stage() {
    local bit=$1 name=$2 limit=$3 left rc started
    shift 3
    left=$((BUDGET_SECONDS - SECONDS))
    if [ "$left" -lt 10 ]; then
        echo "=== $name: not begun, the time is over" | tee -a "$log"
        failed=$((failed | bit))
        summary+="$name: not begun"$'\n'
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "=== $name (at most $limit s)" | tee -a "$log"
    started=$SECONDS
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$log"
    rc=${PIPESTATUS[0]}
    if [ "$rc" -ne 0 ]; then
        failed=$((failed | bit))
    fi
    case $rc in
    0) rc=passed ;;
    124 | 137) rc="stopped at its time limit" ;;
    *) rc="failed, exit code $rc" ;;
    esac
    summary+="$name: $rc after $((SECONDS - started)) s"$'\n'
}

missing=$("$PYTHON" - <<'END'
from importlib.util import find_spec

wanted = "triton numba numpy safetensors typer rich matplotlib pytest pytest_benchmark pynvml"
print(" ".join(name for name in wanted.split() if find_spec(name) is None))
END
)
[ -n "$missing" ] && echo "missing packages: $missing" | tee -a "$log"

if ! "$PYTHON" -c 'import mt2st_fast.kernels' 2>/dev/null; then
    stage 1 installation 15 "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
fi

# Compiling the kernels is most of the tests' time, and the processes share what is compiled.
workers=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    workers=(-n 6)
fi
stage 2 "tests on the GPU" 140 "$PYTHON" -m pytest -q -W default --tb=short --durations=5 "${workers[@]}" tests/on_gpu
stage 4 "ceilings" 15 "$PYTHON" -m bench.measure floors --device cuda --records "$records"
stage 4 heads 115 "$PYTHON" -m bench.measure heads --device cuda --rounds 30 --limit-seconds 5 \
    --total-seconds 90 --records "$records"
stage 8 "training step" 50 "$PYTHON" -m bench.measure step --device cuda --rounds 40 --limit-seconds 4 \
    --total-seconds 35 --records "$records"
# Half of this is Numba's compiling of the CPU's own figure.
stage 128 "bags of words" 80 "$PYTHON" -m bench.bags gpu --device cuda --rounds 3 --records "$records"
stage 32 profile 45 "$PYTHON" -m bench.profile_gpu --out "$logs"
stage 16 scaling 40 "$PYTHON" -m bench.measure scaling --device cuda --rounds 15 --limit-seconds 2 \
    --total-seconds 28 --records "$records"
stage 64 power 30 "$PYTHON" -m bench.power --seconds 2 --records "$records" --samples "$logs/power.json"

{
    echo
    echo "--- $SECONDS s"
    printf '%s' "$summary"
    echo "exit code $failed"
} | tee -a "$log"
exit "$failed"
