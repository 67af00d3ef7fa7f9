"""A check says whether results can be submitted: schema, finite numbers, a report that is made of them.

With ``--write`` reports and plots are made anew from results, for those of a machine without matplotlib.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .output import write_report

SCHEMA_FILE = Path(__file__).with_name("result.schema.json")
_NAMES = (
    *("ablation", "claims", "cold_start", "consistency", "edit_report", "end_to_end", "forward_passes", "in_context"),
    *("inversion_report", "kernels", "layer_scan", "memory", "new_word", "scaling", "step_cache", "step_latency"),
    *("predicted_memory", "round_trip", "tiny_model", "versus_reference"),
)
_IMPORTED = [importlib.import_module(f"{__package__}.{name}") for name in _NAMES]
MODULES: dict[str, Any] = {module.SCHEMA: module for module in _IMPORTED}
"""The benchmarks whose results are checked, by the name that these bear."""
UNTIMED = frozenset(
    f"ddim-lightning/{name}/2"
    for name in (
        *("cold-start", "consistency", "edit-quality", "in-context", "inversion-error", "layer-scan", "new-word"),
        *("predicted-memory", "round-trip", "step-cache"),
    )
)
"""Results that other programs do not disturb: of what comes out, with the processor time of one thread beside it."""
_BUSY = 0.5
"""Share of the CPUs that other programs may keep busy where time is measured."""


def read_result(folder: Path) -> Any:
    """Read a result.

    Raises:
        ValueError: No JSON, or a number in it that is not finite.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{folder / 'result.json'}: every number must be finite, got {word}")

    return json.loads((folder / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)


def list_faults(folder: Path, write: bool = False) -> list[str]:
    """Return what is wrong with the result in a folder, one sentence each.

    Args:
        folder: Holds ``result.json`` and ``README.md``.
        write: Whether report and plots are made anew first, where the result is right.
    """
    from jsonschema import Draft202012Validator

    result = read_result(folder)
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    faults = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(result)]
    if faults:
        return faults
    module = MODULES[result["schema"]]
    report = module.make_markdown(result)
    if write:
        write_report(folder, result, report, getattr(module, "write_plots", None))
    faults = find_environment_faults(result["environment"], timed=result["schema"] not in UNTIMED)
    same = (folder / "README.md").read_text(encoding="utf-8") == report
    return faults if same else [*faults, "README.md: is not what this result makes; --write makes it"]


def find_environment_faults(environment: Mapping[str, Any], *, timed: bool) -> list[str]:
    """Return why numbers measured in an environment cannot be trusted, one sentence each.

    Args:
        environment: The block of a result; the schema has seen that only results older than the fields lack them.
        timed: Whether there are times among the numbers.
    """
    doubts, load, cpus = [], environment["load_1min"], environment["cpus"]
    if timed and load is not None and load > cpus * _BUSY:
        rule = f"must be at most {cpus * _BUSY:g} on {cpus} CPUs before a benchmark begins"
        doubts.append(f"$.environment.load_1min: {rule}, got {load:.2f}")
    if environment["dirty"]:
        doubts.append("$.environment.dirty: must be false, a result is of a commit, got true")
    return doubts


def main(argv: Sequence[str] | None = None) -> int:
    """Check results; the exit status is 1 when something is wrong with any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="holds result.json and README.md")
    parser.add_argument("--write", action="store_true", help="make reports and plots anew first")
    args = parser.parse_args(argv)
    wrong = 0
    for folder in args.folders:
        try:
            faults = list_faults(folder, args.write)
        except (OSError, ValueError) as error:
            faults = [str(error)]
        wrong += bool(faults)
        print("\n".join([f"{folder}: {'wrong' if faults else 'fine'}", *(f"  {fault}" for fault in faults)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
