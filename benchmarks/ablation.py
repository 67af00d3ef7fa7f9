"""One switch at a time, and one on top of the other: what each is worth, and what it costs.

Every variant is a `DDIMInversionModule` with other settings. They take turns at the same clip on the same weights; the
time of a step is that of a whole inversion or edit over its steps, so that windows and strides count. On the tiny model
edits with a known truth say what each switch loses.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.data.shapes import render
from ddim_lightning.diffusion.editors import Editor, InversionFree
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.engine import InversionEngine
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import EditRequest

from .edit_quality import measure_video
from .edit_report import make_table
from .edit_set import ShapesEdit, make_edit_set
from .environment import read_block
from .output import write_files
from .versus_reference import read_clock, relative_l2

SCHEMA = "ddim-lightning/ablation/1"
EXACT = "exact"
"""The default editor, eager; what every other variant is compared with."""


@dataclass(frozen=True)
class Variant:
    """A way to run the same inversion and edit.

    Args:
        name: What differs from the variant before, or from `EXACT`.
        editor: The editor.
        settings: Arguments of `DDIMInversionModule`.
        exact: Whether it is the same mathematics, up to rounding.
    """

    name: str
    editor: Editor = field(default_factory=InversionFree)
    settings: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


def make_switches() -> list[Variant]:
    """List one switch at a time."""
    plain = InversionFree()
    return [
        Variant(EXACT),
        Variant("compile", settings={"compile": True}),
        Variant("one noise", replace(plain, draws=1), exact=False),
        Variant("nothing read", replace(plain, strength=0.0), exact=False),
        Variant("int8 products", settings={"precision": "int8"}, exact=False),
        Variant("no guidance", replace(plain, guidance_steps=(0, 0)), exact=False),
        Variant("guidance to the end", replace(plain, guidance_steps=(0.42, None)), exact=False),
        Variant("every step", replace(plain, stride=1), exact=False),
        Variant("stride 4", replace(plain, stride=4), exact=False),
    ]


def make_ladder() -> list[Variant]:
    """List the switches one on top of the other."""
    compiled = {"compile": True}
    return [
        Variant(EXACT),
        Variant("+ compile", settings=compiled),
        Variant("+ preset fast", settings=compiled | {"preset": "fast"}, exact=False),
        Variant("+ no guidance", InversionFree(guidance_steps=(0, 0)), compiled | {"preset": "fast"}, exact=False),
    ]


def make_engine(variant: Variant, args: argparse.Namespace) -> InversionEngine:
    """Load the model as a variant runs it."""
    module = DDIMInversionModule(
        "tiny",
        num_inference_steps=args.steps,
        editor=variant.editor,
        dtype=args.dtype,
        **variant.settings,
    )
    module.load(torch.device(args.device))
    return module.engine


class Runner:
    """A variant on one edit.

    Args:
        variant: The variant.
        engine: Its engine.
        guidance_scale: Of the edits.
    """

    def __init__(self, variant: Variant, engine: InversionEngine, guidance_scale: float) -> None:
        self.variant, self.engine, self.guidance_scale = variant, engine, guidance_scale

    def invert(self, latents: Tensor) -> Inversion:
        """Invert clean latents."""
        return self.engine.invert(latents)

    def edit(self, inversion: Inversion, edit: ShapesEdit) -> Tensor:
        """Edit as the benchmark of edits does."""
        request = EditRequest(
            edit.target.caption, source_prompt=edit.source.caption, guidance_scale=self.guidance_scale
        )
        return self.engine.edit(inversion, request)


def time_variants(
    runners: Sequence[Runner], latents: Tensor, edit: ShapesEdit, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time all variants in turns, after a round that warms up; seconds of every round, and rows."""
    rows: list[dict[str, Any]] = [{"invert_s": [], "edit_s": []} for _ in runners]
    for turn in range(rounds + 1):
        order = list(zip(runners, rows, strict=True))
        for runner, row in order if turn % 2 else order[::-1]:
            counted = runner.engine.denoiser.rows
            start = read_clock(device)
            inversion = runner.invert(latents)
            middle, between = read_clock(device), runner.engine.denoiser.rows
            runner.edit(inversion, edit)
            end = read_clock(device)
            row["invert_rows"] = between - counted
            row["edit_rows"] = runner.engine.denoiser.rows - between
            if turn:
                row["invert_s"].append(middle - start)
                row["edit_s"].append(end - middle)
    return rows


def measure_losses(runners: Sequence[Runner], edits: Sequence[ShapesEdit]) -> list[dict[str, float]]:
    """Edit clips with a known truth: PSNR of the whole frame from one pooled error, and the distance to `EXACT`."""
    squares = [[0.0, 0] for _ in runners]
    apart: list[list[float]] = [[] for _ in runners]
    for edit in edits:
        first: Tensor | None = None
        for k, runner in enumerate(runners):
            latents = runner.engine.encode(render(edit.source))
            edited = runner.edit(runner.invert(latents), edit)
            first = edited if first is None else first
            apart[k].append(relative_l2(edited, first))
            measured = measure_video(runner.engine.decode(edited), edit)
            squares[k][0] += sum(measured["squared_error"].values())
            squares[k][1] += sum(measured["values"].values())
    return [
        {"psnr_db": -10 * math.log10(error / count), "relative_l2": statistics.fmean(distances)}
        for (error, count), distances in zip(squares, apart, strict=True)
    ]


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both lists and return the result, JSON-ready."""
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    edits = make_edit_set("dev", args.edits)
    result: dict[str, Any] = {}
    for name, listed in (("switches", make_switches()), ("ladder", make_ladder())):
        variants = [variant for variant in listed if not (args.no_compile and variant.settings.get("compile"))]
        runners = [Runner(variant, make_engine(variant, args), args.guidance_scale) for variant in variants]
        latents = runners[0].engine.encode(render(edits[0].source))
        times = time_variants(runners, latents, edits[0], args.rounds, device)
        losses = measure_losses(runners, edits)
        result[name] = [
            {"name": variant.name, "exact": variant.exact, **time, **loss}
            for variant, time, loss in zip(variants, times, losses, strict=True)
        ]
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": "tiny",
            "clock": "wall" if device.type == "cuda" else "CPU time of the process, one thread",
            **{name: getattr(args, name) for name in ("steps", "rounds", "edits", "guidance_scale", "dtype", "device")},
        },
        **result,
    }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, steps = result["settings"], result["settings"]["steps"]
    measured = (
        f"{settings['model']}, {steps} steps, {settings['dtype']}, guidance {settings['guidance_scale']:g}; clock: "
        f"{settings['clock']}; median of {settings['rounds']} rounds in turns; PSNR against the truth of "
        f"{settings['edits']} edits of the dev set."
    )
    explained = (
        "*Times as fast* is inversion and edit together, against the first row. *Distance* is the relative L2 distance "
        "of the edited latents to those of the first row, *dB* the change of the PSNR against the truth."
    )
    command = f"`{result['environment']['command']}` at commit {result['environment']['commit']}"
    lines = ["# What each switch is worth, and what it costs", "", command, "", measured]
    for name, title in (("switches", "One switch at a time"), ("ladder", "One on top of the other")):
        base = result[name][0]
        rows = [
            (
                row["name"],
                "yes" if row["exact"] else "no",
                *(f"{statistics.median(row[part]) / steps * 1e3:.1f}" for part in ("invert_s", "edit_s")),
                f"{compare(base, row):.2f}",
                str(row["invert_rows"] + row["edit_rows"]),
                f"{row['relative_l2']:.1e}",
                f"{row['psnr_db'] - base['psnr_db']:+.2f}",
            )
            for row in result[name]
        ]
        head = ("variant", "exact", "inversion ms a step", "edit ms a step", "times as fast", "rows", "distance", "dB")
        lines += ["", f"## {title}", "", *make_table(head, rows)]
    lines += ["", explained, ""]
    return "\n".join(lines)


def compare(base: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Return the median, over the rounds, of how many times as fast a variant is."""
    ends = [[a + b for a, b in zip(r["invert_s"], r["edit_s"], strict=True)] for r in (base, row)]
    return float(statistics.median(theirs / ours for theirs, ours in zip(*ends, strict=True)))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="steps of each direction (50)")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds, after one that warms up (8)")
    parser.add_argument("--edits", type=int, default=20, help="edits that say what is lost, a multiple of 5 (20)")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32", choices=("bfloat16", "float32"))
    parser.add_argument("--commit", help="the commit measured, where the code is no checkout")
    parser.add_argument("--output", type=Path, help="folder for result.json and README.md")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it."""
    args = make_parser().parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    print(report)
    write_files(args.output, result, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
