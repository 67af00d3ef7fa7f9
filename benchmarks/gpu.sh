#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in parts that are meant to fit ten minutes each on an
# H200. It has not run on one yet; STEPS makes it shorter.
#
# The machine has Python 3.12, PyTorch, torchvision, transformers, lightning and pytest; what it lacks comes as wheels,
# which benchmarks/wheels.sh collects where there is a network.
#
# Usage: benchmarks/gpu.sh [WHEELS] [OUTPUT] [PART ...]
#   WHEELS  folder of wheels, .whl by default; an empty or missing folder installs nothing
#   OUTPUT  folder for the log and the JSON files, benchmarks/results/gpu by default: commit it as it is
#   PART    tests, full-size, kernels, versus, switches, scaling; all of them when none is named
# Environment: STEPS (50), PYTHON (python3), COMMIT (git's), SCRIPT (path of the reference's ddim_inversion.py; without
# it the part versus is left out, and said to be).
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
output=${2:-benchmarks/results/gpu}
parts=("${@:3}")
((${#parts[@]})) || parts=(tests full-size kernels versus switches scaling)
python=${PYTHON:-python3}
steps=${STEPS:-50}
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

run_full_size() {
    "$python" -m benchmarks.full_size --tiny --dtype bfloat16 --commit "$commit" --output "$output/tiny-bfloat16.json" &&
        "$python" -m benchmarks.full_size --steps "$steps" --commit "$commit" --output "$output/full-size.json" &&
        "$python" -m benchmarks.full_size --steps "$steps" --compile --commit "$commit" \
            --output "$output/full-size-compiled.json"
}

run_kernels() {
    "$python" -m benchmarks.kernels --commit "$commit" --output "$output/kernels"
}

run_versus() {
    if [[ -z ${SCRIPT:-} ]]; then
        echo "SCRIPT names no reference script: not measured"
        return 0
    fi
    "$python" -m benchmarks.versus_reference --script "$SCRIPT" --full-size --steps 4 --rounds 3 --commit "$commit" \
        --output "$output/versus-reference"
}

run_switches() {
    "$python" -m benchmarks.ablation --commit "$commit" --output "$output/ablation"
}

run_scaling() {
    "$python" -m benchmarks.scaling --full-size --commit "$commit" --output "$output/scaling"
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
            full-size) run_full_size ;;
            kernels) run_kernels ;;
            versus) run_versus ;;
            switches) run_switches ;;
            scaling) run_scaling ;;
            *) echo "no such part: $part" >&2; false ;;
        esac || failed=1
        echo "took $((SECONDS - start)) s"
    done
    return $failed
}

run 2>&1 | tee "$output/gpu-$(IFS=-; echo "${parts[*]}").log"
