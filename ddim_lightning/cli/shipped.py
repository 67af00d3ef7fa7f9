"""Configs and benchmarks lie beside the code, and are found in a wheel and in a checkout alike."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.report.mistakes import get_nearest

# A list of strings would take a line each.
BENCHMARKS = """ablation claims cold_start consistency edit_quality end_to_end forward_passes in_context inversion_error
kernels layer_scan memory new_word predicted_memory round_trip scaling step_cache step_latency tiny_model
versus_reference""".split()  # noqa: SIM905


def find_shipped(name: str) -> Path:
    """Return a folder that a wheel carries in the package, and an editable install leaves beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the {name} are neither in {package} nor beside it: reinstall ddim-lightning")


def get_config_path(name: str) -> Path:
    """Return the path of a shipped config by its name without ``.yaml``; raise a ValueError where there is none."""
    paths = {path.stem: path for path in find_shipped("configs").glob("*.yaml")}
    if name not in paths:
        got = f"{', '.join(sorted(paths))}, got {name!r}{get_nearest(name, paths)}"
        raise ValueError(f"config: must be a file or one of the shipped {got}")
    return paths[name]


def find_configs(words: Sequence[str]) -> list[str]:
    """Replace the name of a shipped config, ``--config edit``, by its path, where no file has that name."""
    found = list(words)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = value if equals else "".join(words[position + 1 : position + 2])
        # What has lines is the text of a config.
        if flag not in {"--config", "-c"} or not name or "\n" in name or Path(name).exists():
            continue
        if Path(name).name != name:
            raise FileNotFoundError(f"config: {name} does not exist")
        path = str(get_config_path(name.removesuffix(".yaml")))
        found[position if equals else position + 1] = f"{flag}={path}" if equals else path
    return found


def benchmark(words: Sequence[str]) -> int:
    """Hand over to the benchmark that is named first, or list them; return the exit status."""
    folder = find_shipped("benchmarks")
    if not words or words[0] in ("-h", "--help"):
        print("usage: ddim-lightning benchmark NAME ...; NAME --help says what each one takes\n")
        for name in BENCHMARKS:
            what = ast.get_docstring(ast.parse(folder.joinpath(f"{name}.py").read_text("utf-8"))) or ""
            print(f"  {name:<18}{what.partition(':')[0].partition('.')[0]}")
        return 0
    name = words[0].replace("-", "_")
    if name not in BENCHMARKS:
        rule = f"must be one of {', '.join(BENCHMARKS)}, got {words[0]!r}{get_nearest(name, BENCHMARKS)}"
        raise argparse.ArgumentError(None, f"benchmark: {rule}")
    in_wheel = folder.parent == Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(folder.parents[1 if in_wheel else 0]))
    return int(importlib.import_module(f"{'ddim_lightning.' if in_wheel else ''}benchmarks.{name}").main([*words[1:]]))
