"""Puts the numbers of result files into the README, between ``<!-- table:NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .edit_report import make_table, tell_guidance, tell_met
from .edit_variants import DEFAULT, LIMITS, NO_INVERSION, REFERENCE
from .inversion_report import tell_calls
from .versus_reference import GOALS

ROOT = Path(__file__).resolve().parents[1]
REGION = re.compile(r"<!-- table:(?P<name>[\w-]+) -->.*?<!-- end -->", flags=re.DOTALL)

Result = Mapping[str, Any]


def make_inversion_table(result: Result) -> list[str]:
    """Make the table of round trips: every inverter at the default setting, with and without its residual."""
    rows = [row for row in result["rows"] if row["factor"] == "default"]
    head = ("inverter", "kept residual", "calls", "PSNR (dB)", "worst clip", "std of x_T")
    settings = result["settings"]
    lines = make_table(
        head,
        [
            (
                row["name"],
                "yes" if row["residual"] else "",
                tell_calls(row),
                _tell_decibels(row["psnr"]["db"]),
                _tell_decibels(row["psnr"]["worst"]),
                f"{row['noise']['std']:.2f}",
            )
            for row in rows
        ],
    )
    return [*lines, "", f"*{settings['clips']} held-out clips, {rows[0]['steps']} steps, {_link('inversion-error')}.*"]


def make_edit_table(result: Result) -> list[str]:
    """Make the table of edits: the default at every scale, the others where they do best, and the bars below."""
    scale, whole = result["default_guidance"], lambda row: row["all"]["psnr_db"]["whole"][0]
    shown = [row for row in result["rows"] if row["method"] not in LIMITS]
    best = {row["method"]: row for row in sorted(shown, key=whole)}
    rows = [row for row in shown if row["method"] in (REFERENCE, NO_INVERSION, DEFAULT) or row is best[row["method"]]]
    head = ("method", "guidance", "whole (dB)", "outside (dB)", "color", "shape", "direction", "calls")
    lines = make_table(
        head,
        [
            (
                f"**{row['method']}**" if (row["method"], row["guidance"]) == (DEFAULT, scale) else row["method"],
                tell_guidance(row),
                *(f"{row['all']['psnr_db'][region][0]:.1f}" for region in ("whole", "outside")),
                *(f"{row['all']['edited_right'][word]:.0%}" for word in ("color", "shape", "direction")),
                f"{row['calls']:.0f}",
            )
            for row in rows
        ],
    )
    settings = result["settings"]
    said = f"*{settings['edits']} edits, {settings['steps']} steps, {_link('edit-quality')}.*"
    bars = [f"- {tell_met(bar)}: {bar['bar']}: {bar['numbers']}" for bar in result["bars"]]
    return [*lines, "", said, *(["", *bars] if bars else [])]


def make_versus_table(result: Result) -> list[str]:
    """Make the table of the comparison with the reference script."""
    settings, goals = result["settings"], {goal[:4]: goal[4] for goal in GOALS}
    lines = make_table(
        ("what", "ours", "against", "times as fast", "goal"),
        [
            (
                row["what"],
                row["variant"],
                row["against"],
                f"{row['median']:.2f} ({row['lowest']:.2f} - {row['highest']:.2f})",
                f"{goals[row['what'], row['case'], row['variant'], row['against']]:g}",
            )
            for row in result["ratios"]
        ],
    )
    model = "the tiny model" if settings["model"] == "tiny" else settings["model"]
    said = f"{model}, {settings['device']}, {settings['steps']} steps, {settings['text_tokens']} text tokens"
    return [*lines, "", f"*{said}, {settings['rounds']} rounds in turns, {_link('versus-reference')}.*"]


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


def _link(name: str) -> str:
    return f"[all numbers](benchmarks/results/{name}/README.md)"


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
