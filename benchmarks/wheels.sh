#!/usr/bin/env bash
# Downloads the wheels that a GPU machine with PyTorch, torchvision, transformers and lightning, but no network, lacks.
# Usage: benchmarks/wheels.sh [FOLDER]     FOLDER is .whl by default; about 45 MiB for Python 3.12 on x86_64 Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl}

# Several names for the same thing: pip matches a platform tag exactly.
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done

mkdir -p "$folder"
rm -f "$folder"/*.whl
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$folder" \
    'diffusers>=0.42' 'av>=17,<19' 'jsonargparse>=4.40' docstring-parser typeshed-client importlib-resources \
    importlib_metadata lazy-importer 'xformers>=0.0.35'

limit_mib=60
size_mib=$(du -sm "$folder" | cut -f1)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $size_mib MiB"
if ((size_mib > limit_mib)); then
    echo "more than $limit_mib MiB: leave something out" >&2
    exit 1
fi
