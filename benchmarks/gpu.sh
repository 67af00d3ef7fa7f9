#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in parts that are meant to fit ten minutes each on an
# H200. It has not run on one yet.
#
# The machine has Python 3.12, PyTorch, torchvision, transformers, lightning and pytest; what it lacks comes as wheels,
# which benchmarks/wheels.sh collects where there is a network.
#
# Usage: benchmarks/gpu.sh [WHEELS] [OUTPUT] [PART ...]
#   WHEELS  folder of wheels, .whl by default; an empty or missing folder installs nothing
#   OUTPUT  folder for the log and the JSON files, benchmarks/results/gpu by default: commit it as it is
#   PART    tests, kernels, latency, memory, end-to-end, versus, switches, forward, scaling; all of them when none is named
# Environment:
#   PYTHON  python3 by default
#   COMMIT  git's by default; a copy that is no checkout needs it, with -dirty behind it where files were changed:
#           git describe --always --abbrev=40 --dirty --exclude='*'
#   SCRIPT  path of the reference's ddim_inversion.py; without it the part versus is left out, and said to be
#
# Plots need matplotlib, which is not among the wheels: `python -m benchmarks.check --write OUTPUT/*/` draws them where there
# is one.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
output=${2:-benchmarks/results/gpu}
parts=("${@:3}")
((${#parts[@]})) || parts=(tests kernels latency memory end-to-end versus switches forward scaling)
python=${PYTHON:-python3}
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$output"

run_tests() {
    # Only the files that hold GPU tests: the others may import what this machine lacks.
    local files
    mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu|marks?=.*gpu' tests)
    "$python" -m pytest -m gpu -p no:cacheprovider "${files[@]}"
}

measure() {
    local name=$1
    "$python" -m "benchmarks.$name" --commit "$commit" --output "$output/${name//_/-}" "${@:2}"
}

run_latency() {
    # The roof is that of the same machine, where the part kernels came before.
    local roof=()
    [[ -f $output/kernels/result.json ]] && roof=(--roof "$output/kernels")
    measure step_latency --full-size --compile --steps 6 --rounds 1 "${roof[@]}"
}

run_versus() {
    if [[ -z ${SCRIPT:-} ]]; then
        echo "SCRIPT names no reference script: not measured"
        return 0
    fi
    measure versus_reference --script "$SCRIPT" --full-size --steps 4 --rounds 3
}

run() {
    local failed=0 part start
    if compgen -G "$wheels/*.whl" >/dev/null; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    fi
    export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
    nvidia-smi
    for part in "${parts[@]}"; do
        echo "== $part"
        start=$SECONDS
        case $part in
            tests) run_tests ;;
            kernels) measure kernels --full-size ;;
            latency) run_latency ;;
            memory) measure memory --full-size --steps 4 ;;
            end-to-end) measure end_to_end --full-size --compile --steps 4 --rounds 1 ;;
            versus) run_versus ;;
            switches) measure ablation --full-size --steps 4 --rounds 1 ;;
            forward) measure forward_passes --full-size --compile --rounds 3 ;;
            scaling) measure scaling --full-size ;;
            *) echo "no such part: $part" >&2; false ;;
        esac || failed=1
        echo "took $((SECONDS - start)) s"
    done
    return $failed
}

run 2>&1 | tee "$output/gpu-$(IFS=-; echo "${parts[*]}").log"
