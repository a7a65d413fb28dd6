#!/usr/bin/env bash
# Everything that a GPU machine should run, most informative first, in at most 350 seconds and without network.
#
#   bench/gpu.sh            records go to bench/records, ready to commit; logs to runs/gpu
#   BUDGET_SECONDS=560      more time, of which every stage gets its share; with less than 350 the last stages are left out
#   OUT=DIR bench/gpu.sh    all of it goes to DIR (records to DIR/records: append them to bench/records)
#   PYTHON=python3.12       the interpreter that has torch and triton
#   WHEELS=DIR              wheels of packages that are missing there (peers, numba, pytest-xdist): installed from DIR
#   MT2ST_CORPUS=PATH       a CoNLL-U file or folder for `mt2st-fast train`; the built-in corpus by default
#   MT2ST_COMMIT=HASH       the commit to name in the records if this is a copy without git
#
# Every stage has a time limit, and the next one runs even if it fails. log.txt has all output; the terminal has one line
# per stage and the summary at the end, which is also in summary.txt. Whenever this is stopped, records are those of all
# cases measured until then; on TERM, INT and HUP the summary is made of them, and after KILL summary.txt has the lines
# of the stages. The exit code is the sum of the stages that failed, 143 if it was stopped:
# 1 installation, 2 tests on the GPU, 4 heads, 8 training step, 16 whole jobs, 32 profile, 64 memory safety, 128 bags
# of words. Without a GPU: one line, exit code 0.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
BUDGET_SECONDS=${BUDGET_SECONDS:-350}
export PYTHONUNBUFFERED=1 COLUMNS=170

# A driver that does not answer must not hold up what follows for ever.
timeout 60 "$PYTHON" -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else 3)' 2>/dev/null
case $? in
0) ;;
3)
    echo "no GPU: torch in $PYTHON finds no CUDA device, so nothing was run"
    exit 0
    ;;
*)
    echo "PYTHON=$PYTHON cannot import torch, or not within a minute; name an interpreter that has torch and triton"
    exit 1
    ;;
esac

if [ -n "${OUT:-}" ]; then
    logs=$OUT records=$OUT/records
else
    logs=runs/gpu records=bench/records
fi
mkdir -p "$logs" "$records"
log=$logs/log.txt
rm -f "$logs"/{tests,safety,summary}.txt "$logs/profile.md"
: >"$log"
began=$(date -u +%Y-%m-%dT%H:%M:%S)
failed=0
summary=""

# scaled SECONDS: of a budget of 350 seconds, in this one.
scaled() {
    echo $((BUDGET_SECONDS > 350 ? $1 * BUDGET_SECONDS / 350 : $1))
}

# stage BIT NAME SECONDS FILE COMMAND...: run within its limit plus what earlier stages have left of theirs, and within
# the budget; its output goes to the log and, unless FILE is -, to that file. It is asked to stop (as by Ctrl-C) before
# it is killed. What it leaves running, as pytest's workers, is killed too: it would hold the device and the next stage.
# It runs in the background, as bash would hear of a signal to itself only after it, and in a job of its own (set -m):
# other background commands ignore Ctrl-C.
deadline=0
running="" watcher=""
stage() {
    local bit=$1 name=$2 limit file=$4 left rc started
    limit=$(scaled "$3")
    shift 4
    [ "$file" = - ] && file=/dev/null || file=$logs/$file
    deadline=$((deadline + limit))
    left=$(((deadline < BUDGET_SECONDS ? deadline : BUDGET_SECONDS) - SECONDS))
    if [ "$left" -lt 6 ]; then
        echo "=== $name: not started, no time left" | tee -a "$log"
        failed=$((failed | bit))
        tell "$name: not started"
        return
    fi
    echo "=== $name (at most $left s)" >>"$log"
    started=$SECONDS
    # A pipe would last as long as anyone in it has it open. tee is not of the job, and hears no Ctrl-C: it writes all.
    exec 3> >(exec tee -i -a "$log" >>"$file")
    set -m
    timeout --signal=INT --kill-after=5 "$left" "$@" >&3 2>&1 3>&- </dev/null &
    running=$!
    set +m
    exec 3>&-
    # A process that waits for a device that hangs cannot be killed: then timeout itself is, or all would wait for it.
    (trap - TERM INT HUP; exec >/dev/null 2>&1 </dev/null; sleep $((left + 8)); kill -KILL -- "-$running") &
    watcher=$!
    wait "$running"
    rc=$?
    kill "$watcher" 2>/dev/null
    kill -KILL -- "-$running" 2>/dev/null
    running="" watcher=""
    if [ "$rc" -ne 0 ]; then
        failed=$((failed | bit))
    fi
    case $rc in
    0) rc=passed ;;
    124 | 137) rc="stopped at its time limit" ;;
    *) rc="failed, exit code $rc" ;;
    esac
    tell "$name: $rc after $((SECONDS - started)) s"
    echo "$name: $rc after $((SECONDS - started)) s"
}

# tell LINE: keep a line about a stage, for the summary, and at once in its file.
tell() {
    summary+="$1"$'\n'
    echo "$1" >>"$logs/summary.txt"
}

conclude() {
    {
        timeout 30 "$PYTHON" -m bench.summary "$logs" --records "$records" --since "$began" 2>&1
        echo "--- stages, $SECONDS s"
        printf '%s' "$summary"
        echo "exit code $1"
    } | tee "$logs/summary.new"
    mv "$logs/summary.new" "$logs/summary.txt"
    cat "$logs/summary.txt" >>"$log"
}

warming=""
stopped() {
    trap '' TERM INT HUP
    if [ -n "$running" ]; then
        kill -INT -- "-$running" 2>/dev/null
        sleep 1 # it may be appending a record
        kill -KILL -- "-$running" 2>/dev/null
    fi
    kill $warming $watcher 2>/dev/null
    tell "stopped from outside after $SECONDS s"
    conclude 143
    exit 143
}
trap stopped TERM INT HUP

missing() {
    "$PYTHON" - <<'END'
from importlib.util import find_spec

wanted = "triton numba numpy safetensors typer rich matplotlib jinja2 pytest pytest_benchmark xdist pynvml liger_kernel cut_cross_entropy"
print(" ".join(name for name in wanted.split() if find_spec(name) is None))
END
}
if [ -n "${WHEELS:-}" ] && [ -n "$(missing)" ]; then
    stage 1 wheels 10 - "$PYTHON" -m pip install -q --no-index --no-deps "$WHEELS"/*.whl
fi
if ! "$PYTHON" -c 'import mt2st_fast.kernels' 2>>"$log"; then
    stage 1 installation 8 - "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
fi
deadline=$(scaled 18) # of both, used or not
lacking=$(missing)
[ -n "$lacking" ] && echo "missing packages (peers among them are skipped): $lacking" | tee -a "$log"

# Compile what Numba needs for the CPU's figures before they are measured: the tests leave cores free.
timeout --kill-after=5 80 "$PYTHON" -m bench.jobs --device cpu --warm-up >>"$log" 2>&1 &
warming=$!

# Compiling the kernels is most of the tests' time, and the processes share what is compiled. First what takes longest:
# Word2Vec is compared with a CPU's, whose kernels are compiled, too.
workers=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    workers=(-n 12)
fi
stage 2 "tests on the GPU" 85 tests.txt "$PYTHON" -m pytest -v -W default --tb=short -rfE "${workers[@]}" \
    tests/on_gpu/test_{memory_safety,vocabulary,word2vec,kernels}.py tests/on_gpu
wait "$warming"

stage 4 ceilings 8 - "$PYTHON" -m bench.measure floors --device cuda --records "$records"
stage 8 "training step" 34 - "$PYTHON" -m bench.measure step --device cuda --rounds 20 --limit-seconds 2 \
    --total-seconds "$(scaled 27)" --records "$records"
stage 4 heads 68 - "$PYTHON" -m bench.measure heads --device cuda --rounds 20 --limit-seconds 4 \
    --total-seconds "$(scaled 58)" --records "$records"
corpus=()
[ -n "${MT2ST_CORPUS:-}" ] && corpus=(--corpus "$MT2ST_CORPUS")
# The command line apart from the other jobs: on a slow host it has taken 52 s, most of them before the first step.
stage 16 "other jobs" 24 - "$PYTHON" -m bench.jobs --device cuda --only supervised --only words --records "$records"
stage 16 "training run" 45 - "$PYTHON" -m bench.jobs --device cuda --only train --train-seconds 90 "${corpus[@]}" \
    --records "$records"
stage 128 "bags of words" 20 - "$PYTHON" -m bench.bags gpu --device cuda --rounds 3 --records "$records"
stage 32 profile 18 - "$PYTHON" -m bench.profile_gpu --out "$logs"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ]; then
    # Kernels and graphs of the compiled module come from the cache that the tests have filled.
    stage 64 "memory safety" 30 safety.txt env TORCHINDUCTOR_COMPILE_THREADS=1 "$sanitizer" --tool memcheck \
        --error-exitcode 9 --print-limit 5 --target-processes application-only "$PYTHON" -m bench.memory_safety
else
    echo "no compute-sanitizer found: running without it" >>"$logs/safety.txt"
    stage 64 "memory safety" 30 safety.txt "$PYTHON" -m bench.memory_safety
fi

conclude "$failed"
exit "$failed"
