#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network. It is meant to fit ten minutes on an H200
# and has not run on one yet; STEPS makes it shorter.
#
# The machine has Python 3.12, PyTorch, torchvision, transformers, lightning and pytest; what it lacks comes as wheels,
# which benchmarks/wheels.sh collects where there is a network.
#
# Usage: benchmarks/gpu.sh [WHEELS] [OUTPUT]
#   WHEELS  folder of wheels, .whl by default; an empty or missing folder installs nothing
#   OUTPUT  folder for the log and the JSON files, benchmarks/results/gpu by default: commit it as it is
# Environment: STEPS (50), PYTHON (python3), COMMIT (git's).
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-.whl}
output=${2:-benchmarks/results/gpu}
python=${PYTHON:-python3}
steps=${STEPS:-50}
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$output"

run() {
    local failed=0 start
    if compgen -G "$wheels/*.whl" >/dev/null; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    fi
    export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
    nvidia-smi

    # Only the files that hold GPU tests: the others may import what this machine lacks.
    echo "== gpu tests"
    start=$SECONDS
    local files
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    "$python" -m pytest -m gpu -p no:cacheprovider "${files[@]}" || failed=1
    echo "took $((SECONDS - start)) s"

    echo "== tiny model, bfloat16"
    start=$SECONDS
    "$python" -m benchmarks.full_size --tiny --dtype bfloat16 --commit "$commit" --output "$output/tiny-bfloat16.json" ||
        failed=1
    echo "took $((SECONDS - start)) s"

    echo "== 5B architecture, 49 x 480 x 720, $steps steps"
    start=$SECONDS
    "$python" -m benchmarks.full_size --steps "$steps" --commit "$commit" --output "$output/full-size.json" || failed=1
    echo "took $((SECONDS - start)) s"
    return $failed
}

run 2>&1 | tee "$output/gpu.log"
