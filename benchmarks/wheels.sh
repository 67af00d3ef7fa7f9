#!/usr/bin/env bash
# Downloads the wheels that a GPU machine with PyTorch, torchvision, transformers, lightning and pytest, but no network,
# lacks: all that the benchmarks and the tests marked gpu import. xformers is not among them: its wheel cannot load beside
# a CUDA 13 PyTorch.
# Usage: benchmarks/wheels.sh [FOLDER]     FOLDER is .whl by default; 43 MiB for Python 3.12 on x86_64 Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl}

# Several names for the same thing: pip matches a platform tag exactly.
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux2010 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done

mkdir -p "$folder"
rm -f "$folder"/*.whl
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$folder" \
    'diffusers>=0.42' importlib_metadata requests urllib3 charset-normalizer \
    'av>=17,<19' \
    peft accelerate psutil \
    'jsonargparse>=4.40' docstring-parser typeshed-client importlib-resources lazy-importer \
    jaxtyping wadler-lindig

# What travels is the tree, as git would add it, and the wheels.
limit_mib=64
add_mib() { xargs -0r stat -c %s | awk '{sum += $1} END {printf "%.1f", sum / 2^20}'; }
wheels_mib=$(find "$folder" -name '*.whl' -print0 | add_mib)
tree_mib=$(git ls-files --cached --others --exclude-standard -z --deduplicate | add_mib)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $wheels_mib MiB; the tree: $tree_mib MiB"
if awk "BEGIN {exit !($wheels_mib + $tree_mib > $limit_mib)}"; then
    echo "together more than $limit_mib MiB: leave something out" >&2
    exit 1
fi
