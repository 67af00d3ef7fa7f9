"""Benchmarks have names, by which they are listed and run."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.data.benchmark_config import list_benchmarks
from ddim_lightning.engine.shipped import find_shipped
from ddim_lightning.report.mistakes import get_nearest

# A list of strings would take a line each.
BENCHMARKS = """ablation claims cold_start consistency edit_quality end_to_end forward_passes in_context inversion_error
kernels layer_scan memory new_word predicted_memory round_trip scaling step_cache step_latency tiny_model
versus_reference""".split()  # noqa: SIM905


def benchmark(words: Sequence[str]) -> int:
    """Hand over to the benchmark that is named first, or list them; return the exit status."""
    folder = find_shipped("benchmarks")
    if not words or words[0] in ("-h", "--help"):
        print("usage: ddim-lightning benchmark NAME ...; NAME --help says what each one takes\n")
        for name in BENCHMARKS:
            what = ast.get_docstring(ast.parse(folder.joinpath(f"{name}.py").read_text("utf-8"))) or ""
            print(f"  {name:<18}{what.partition(':')[0].partition('.')[0]}")
        for name, title in list_benchmarks().items():
            print(f"  {name:<18}{title}, a public benchmark, in a folder: NAME DIR --output DIR")
        return 0
    name = words[0].replace("-", "_")
    if name not in BENCHMARKS:
        nearest = get_nearest(name, (*BENCHMARKS, *list_benchmarks()))
        rule = f"must be a YAML file or a name that `ddim-lightning benchmark` lists, got {words[0]!r}{nearest}"
        raise argparse.ArgumentError(None, f"benchmark: {rule}")
    in_wheel = folder.parent == Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(folder.parents[1 if in_wheel else 0]))
    return int(importlib.import_module(f"{'ddim_lightning.' if in_wheel else ''}benchmarks.{name}").main([*words[1:]]))
