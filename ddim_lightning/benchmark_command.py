"""The body of ``benchmark``: find a benchmark, in a wheel and in a checkout alike, and hand over to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = {
    "ablation": "one switch at a time, and one on top of the other",
    "edit_quality": "every way to edit against the rendered truth",
    "end_to_end": "seconds of the whole job by stage, cold and warm",
    "inversion_error": "every inverter, there and back",
    "kernels": "attention and matrix products alone: the roof",
    "memory": "memory by stage, preset by preset",
    "scaling": "frames, resolution and steps against time and memory",
    "step_latency": "milliseconds of every step, eager and compiled",
    "tiny_model": "what the bundled model can do",
    "versus_reference": "the reference script beside this package",
}
"""Names to what they measure; the modules of the folder ``benchmarks/``."""

_DONE = 0


def benchmark(words: Sequence[str]) -> int:
    """Run a benchmark.

    Args:
        words: Its name and its own arguments; without a name, or for help, the names are listed.

    Returns:
        Its exit status.

    Raises:
        ValueError: No such benchmark.
        ModuleNotFoundError: The installation carries no benchmarks.
    """
    if not words or words[0] in ("-h", "--help"):
        print("usage: ddim-lightning benchmark NAME ...\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:18} {what}")
        print("\n`ddim-lightning benchmark NAME --help` says what each one takes.")
        return _DONE
    name = words[0].replace("-", "_")
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark: must be one of {', '.join(BENCHMARKS)}, got {words[0]!r}")
    status: int = importlib.import_module(f"{_find_package()}.{name}").main(list(words[1:]))
    return status


def _find_package() -> str:
    """Return the package of the benchmarks: inside ours in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    if (package / "benchmarks").is_dir():
        return "ddim_lightning.benchmarks"
    if not (package.parent / "benchmarks").is_dir():
        raise ModuleNotFoundError(f"the benchmarks are neither in {package} nor beside it: reinstall ddim-lightning")
    sys.path.insert(0, str(package.parent))
    return "benchmarks"
