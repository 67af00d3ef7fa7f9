#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine without a network, in parts that are meant to fit ten minutes each on an
# H200. It has not run on one yet; it is rehearsed on a CPU.
#
# The machine has Python 3.12, PyTorch, torchvision, transformers, lightning and pytest; what it lacks comes as wheels,
# which benchmarks/wheels.sh collects where there is a network.
#
# Usage: benchmarks/gpu.sh [WHEELS] [OUTPUT] [PART ...]
#   WHEELS  folder of wheels, .whl by default; an empty or missing folder installs nothing
#   OUTPUT  folder for the log and the results, benchmarks/results/gpu by default: commit it as it is
#   PART    claims, tests, kernels, latency, memory, end-to-end, versus, switches, forward, scaling; all if none is named
# Environment:
#   PYTHON    python3 by default
#   COMMIT    git's by default; a copy that is no checkout needs it, with -dirty behind it where files were changed:
#             git describe --always --abbrev=40 --dirty --exclude='*'
#   SCRIPT    path of the reference's ddim_inversion.py; without it the part versus is left out, and said to be
#   BUDGET    seconds of a part, 540 by default: a benchmark starts no case that would end later and names what it left
#             out; 20 seconds later it is interrupted, and what it has written by then stays
#   PACK=1    makes one file of each result, NAME.tar.gz, where only few files come back
#   REHEARSE=1  runs the same on a CPU with the tiny model, in few steps, into out/rehearsal by default: it shows that
#             everything runs, and tells nothing about a GPU
#
# Plots are drawn where there is matplotlib; elsewhere `python -m benchmarks.check --write OUTPUT/*/` draws them.
set -euo pipefail
cd "$(dirname "$0")/.."
rehearse=${REHEARSE:-}
wheels=${1:-.whl}
output=${2:-$([[ $rehearse ]] && echo out/rehearsal || echo benchmarks/results/gpu)}
parts=("${@:3}")
((${#parts[@]})) || parts=(claims tests kernels latency memory end-to-end versus switches forward scaling)
python=${PYTHON:-python3}
budget=${BUDGET:-540}
commit=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}

refuse() { echo "$1" >&2; exit 2; }
[[ $commit ]] || refuse "COMMIT: must name the commit of a copy that is no checkout, got none"
[[ $budget =~ ^[1-9][0-9]*$ ]] || refuse "BUDGET: must be a whole number of seconds above 0, got $budget"
if [[ $rehearse ]]; then
    [[ $(realpath -m "$output") != "$PWD"/benchmarks/results/* ]] || refuse "OUTPUT: a rehearsal is no result, got $output"
    export CUDA_VISIBLE_DEVICES=
    model=(--device cpu --dtype bfloat16)
else
    model=(--full-size)
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$output"

limit() { timeout --signal=INT --kill-after=10 "$@"; }

run_tests() {
    # Only the files that hold GPU tests: the others may import what this machine lacks.
    local files
    mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu|marks?=.*gpu' tests)
    limit "$budget" "$python" -m pytest -m gpu -p no:cacheprovider "${files[@]}"
}

measure() {
    local name=$1 folder=${1//_/-} status=0
    limit $((budget + 20)) "$python" -m "benchmarks.$name" "${model[@]}" --budget "$budget" --commit "$commit" \
        --output "$output/$folder" "${@:2}" || status=$?
    if [[ ${PACK:-} && -d $output/$folder ]]; then
        tar -C "$output" -czf "$output/$folder.tar.gz" "$folder"
        mv "$output/$folder" "$scratch"
    fi
    return $status
}

run_latency() {
    # The roof is that of the same machine, where the part kernels came before.
    local roof=() folder
    for folder in "$output" "$scratch"; do
        [[ -f $folder/kernels/result.json ]] && roof=(--roof "$folder/kernels")
    done
    measure step_latency --compile --steps 6 --rounds 1 "${roof[@]}"
}

run_versus() {
    if [[ -z ${SCRIPT:-} ]]; then
        echo "SCRIPT names no reference script: not measured"
        return 0
    fi
    measure versus_reference --script "$SCRIPT" --steps 2 --rounds 2
}

run_switches() {
    local edits=()
    [[ $rehearse ]] && edits=(--edits 1)
    measure ablation --steps 3 --rounds 1 "${edits[@]}"
}

run() {
    local failed=0 part start
    if compgen -G "$wheels/*.whl" >/dev/null; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" \
            "$wheels"/*.whl
    fi
    export PYTHONPATH="$scratch/site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
    if [[ $rehearse ]]; then
        echo "A rehearsal on a CPU with the tiny model: nothing of this tells about a GPU."
    else
        nvidia-smi
    fi
    for part in "${parts[@]}"; do
        echo "== $part"
        start=$SECONDS
        case $part in
            claims) measure claims ;;
            tests) run_tests ;;
            kernels) measure kernels ;;
            latency) run_latency ;;
            memory) measure memory --steps 4 ;;
            end-to-end) measure end_to_end --compile --steps 4 --rounds 1 ;;
            versus) run_versus ;;
            switches) run_switches ;;
            forward) measure forward_passes --compile --rounds 2 ;;
            scaling) measure scaling ;;
            *) echo "no such part: $part" >&2; false ;;
        esac || failed=1
        echo "took $((SECONDS - start)) s"
    done
    return $failed
}

run 2>&1 | tee "$output/gpu-$(IFS=-; echo "${parts[*]}").log"
