"""A few numbers of result files are put into the README, between ``<!-- table:NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .edit_report import make_table
from .edit_variants import CEILING, DEFAULT, FAST, IN_CONTEXT, IN_CONTEXT_GUIDANCE, REFERENCE
from .inversion_report import tell_nfe
from .inversion_variants import OURS, PLAIN
from .versus_reference import SCRIPT

ROOT = Path(__file__).resolve().parents[1]
REGION = re.compile(r"<!-- table:(?P<name>[\w-]+) -->.*?<!-- end -->", flags=re.DOTALL)

Result = Mapping[str, Any]


def make_inversion_table(result: Result) -> list[str]:
    """Make the table of round trips: a few inverters at the default setting, each at its best."""
    shown = ((PLAIN, False), (OURS, True), ("FixedPoint", True), ("BDIA", False))
    found = {(row["name"], row["residual"]): row for row in result["rows"] if row["factor"] == "default"}
    rows = [found[key] for key in shown]
    return make_table(
        ("inverter", "NFE", "PSNR (dB)", "worst clip (dB)"),
        [
            (row["name"], tell_nfe(row), _tell_decibels(row["psnr"]["db"]), _tell_decibels(row["psnr"]["worst"]))
            for row in rows
        ],
    )


def make_edit_table(result: Result) -> list[str]:
    """Make the table of edits: what there is to compare with, and what is recommended."""
    scale = result["default_guidance"]
    shown = ((CEILING, None), (REFERENCE, 6.0), (DEFAULT, scale), (FAST, scale), (IN_CONTEXT, IN_CONTEXT_GUIDANCE))
    names = {
        REFERENCE: "the reference script's settings",
        DEFAULT: "**recommended**, no training",
        FAST: "the same, fast",
        IN_CONTEXT: "**`--lora tiny_edit`**, trained on pairs",
    }
    found = {(row["method"], row["guidance"]): row for row in result["rows"]}
    return make_table(
        ("method", "NFE", "whole (dB)", "outside (dB)", "color", "shape", "direction"),
        [
            (
                names.get(row["method"], row["method"]),
                f"{row['nfe']:.0f}",
                *(f"{row['all']['psnr_db'][region][0]:.1f}" for region in ("whole", "outside")),
                *(f"{row['all']['edited_right'][word]:.0%}" for word in ("color", "shape", "direction")),
            )
            for row in (found[key] for key in shown)
        ],
    )


def make_versus_table(result: Result) -> list[str]:
    """Make the table of the comparison with the reference script: what is compiled."""
    shown = [row for row in result["ratios"] if (row["variant"], row["against"]) == ("compiled", SCRIPT)]
    return make_table(
        ("what", "times as fast"),
        [(row["what"], f"{row['median']:.2f} ({row['lowest']:.2f} - {row['highest']:.2f})") for row in shown],
    )


MAKERS: Mapping[str, Callable[[Result], list[str]]] = {
    "inversion-error": make_inversion_table,
    "edit-quality": make_edit_table,
    "versus-reference": make_versus_table,
}
"""Name of a region, and of a folder of results, to what makes its table."""


def fill_tables(text: str, results: Path) -> str:
    """Return a Markdown text with the tables of its marked regions made anew.

    Args:
        text: Holds regions or none.
        results: Holds ``NAME/result.json`` for each region ``NAME``.

    Raises:
        ValueError: A region that nothing makes.
        FileNotFoundError: A region without its result file.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in MAKERS:
            raise ValueError(f"table: must be one of {', '.join(MAKERS)}, got {name!r}")
        path = results / name / "result.json"
        if not path.exists():
            raise FileNotFoundError(f"table:{name}: needs {path}, which is not there")
        table = "\n".join(MAKERS[name](json.loads(path.read_text(encoding="utf-8"))))
        return f"<!-- table:{name} -->\n{table}\n<!-- end -->"

    return REGION.sub(fill, text)


def _tell_decibels(value: float | None) -> str:
    """Return decibels for a table; infinity, null in JSON, is an error of nothing at all."""
    return "exact" if value is None else f"{value:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the tables; the exit status of ``--check`` is 1 when they are out of step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="the file (README.md)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--check", action="store_true", help="change nothing, tell whether anything would change")
    args = parser.parse_args(argv)
    text = args.readme.read_text(encoding="utf-8")
    filled = fill_tables(text, args.results)
    if args.check:
        print(f"{args.readme}: its tables are {'those' if filled == text else 'NOT those'} of {args.results}")
        return int(filled != text)
    args.readme.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
