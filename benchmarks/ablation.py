"""An ablation says what each switch is worth and costs, alone and on top of the others; those of the VAE apart.

The variants take turns at the same clip on the same weights; one that is in both lists runs once. The time of a step
is that of a whole inversion or edit over its steps, so that windows and strides count. On the tiny model edits with a
known truth say what each switch loses; at full size weights are random, and only the distance to the exact edit can be
told.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.engine.config import Precision
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.fast import make_fast
from ddim_lightning.models.loading import Components
from ddim_lightning.tiny.shapes import render
from ddim_lightning.types import EditRequest

from .arguments import add_attention, make_parser, read_count
from .deadline import Deadline
from .edit_quality import measure_video
from .edit_report import make_table
from .edit_set import ShapesEdit, make_edit_set
from .environment import read_block
from .loading import EDITOR, PROMPTS, load_parts, make_engine, make_prompts, make_video, name_model
from .measuring import name_clock, read_clock, relative_l2
from .output import tell_left_out, tell_origin, tell_place, write_growing
from .plots import Bars, plot_bars
from .vae_switches import measure_vae, tell_vae

SCHEMA = "ddim-lightning/ablation/2"
EXACT = "exact"
"""The recommended editor, eager; what every other variant is compared with."""


@dataclass(frozen=True)
class Variant:
    """A `Variant` is a way to run the same inversion and edit; two of the same way are equal, whatever their names.

    Args:
        name: What differs from the variant before, or from `EXACT`.
        editor: The editor.
        compiled: Whether blocks are compiled.
        precision: Of the large products while edits are made.
        step_cache: Threshold of a step cache; ``None`` for none.
        exact: Whether it is the same mathematics, up to rounding.
    """

    name: str = field(compare=False)
    editor: Editor = EDITOR
    compiled: bool = False
    precision: Precision = "none"
    step_cache: float | None = None
    exact: bool = True


def has_fp8(device: torch.device) -> bool:
    """Whether a device multiplies in fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def make_switches(device: torch.device) -> list[Variant]:
    """List one switch at a time, those that a device has."""
    plain: Any = EDITOR
    return [
        Variant(EXACT),
        Variant("compile", compiled=True),
        Variant("one noise", replace(plain, num_noise_samples=1), exact=False),
        Variant("kv_scale 0", replace(plain, kv_scale=0.0), exact=False),
        *([Variant("fp8 products", precision="fp8", exact=False)] if has_fp8(device) else []),
        Variant("no guidance", replace(plain, guidance_steps=(0, 0)), exact=False),
        Variant("guidance to the end", replace(plain, guidance_steps=(0.42, None)), exact=False),
        Variant("every step", replace(plain, eval_every=1), exact=False),
        Variant("every fourth step", replace(plain, eval_every=4), exact=False),
    ]


def make_ladder() -> list[Variant]:
    """List the switches one on top of the other."""
    editor, step_cache = make_fast(EDITOR, None)
    fast = Variant("+ fast", editor, compiled=True, step_cache=step_cache, exact=False)
    return [
        Variant(EXACT),
        Variant("+ compile", compiled=True),
        fast,
        replace(fast, name="+ no guidance", editor=replace(editor, guidance_steps=(0, 0))),
    ]


class Runner:
    """A `Runner` is a variant at work.

    Args:
        variant: The variant.
        engine: Its engine.
    """

    def __init__(self, variant: Variant, engine: InversionEngine) -> None:
        self.variant, self.engine = variant, engine
        self.edited: Tensor
        """What the last edit came to."""
        self.times: dict[str, Any] = {"invert_s": [], "edit_s": []}
        """Seconds of every timed round, and the NFE of the last."""
        self.loss: dict[str, float | None] = {}
        """From `measure_losses`, where there is a truth."""

    def invert(self, latents: Tensor) -> Inversion:
        """Invert clean latents."""
        return self.engine.invert(latents)

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """Edit as the benchmark of edits does."""
        self.edited = self.engine.edit(inversion, request)
        return self.edited

    def run(self, latents: Tensor, request: EditRequest, *, timed: bool) -> None:
        """Invert and edit once, and keep the times if they count."""
        device, counted = self.engine.device, self.engine.nfe
        start = read_clock(device)
        inversion = self.invert(latents)
        middle, between = read_clock(device), self.engine.nfe
        self.edit(inversion, request)
        end = read_clock(device)
        self.times |= {"invert_nfe": between - counted, "edit_nfe": self.engine.nfe - between}
        if timed:
            self.times["invert_s"].append(middle - start)
            self.times["edit_s"].append(end - middle)

    def describe(self, exact: Tensor) -> dict[str, Any]:
        """Return what is known after a timed round, JSON-ready; without a truth the distance to the exact edit."""
        return {**self.times, **(self.loss or {"psnr_db": None, "relative_l2": relative_l2(self.edited, exact)})}


def make_request(edit: ShapesEdit, guidance_scale: float) -> EditRequest:
    """Ask for what an edit of the set shows."""
    return EditRequest(edit.target.caption, source_prompt=edit.source.caption, guidance_scale=guidance_scale)


def measure_losses(runners: Sequence[Runner], edits: Sequence[ShapesEdit], guidance_scale: float) -> None:
    """Edit clips with a known truth: PSNR of the whole frame from one pooled error, and the distance to `EXACT`."""
    squares = [[0.0, 0] for _ in runners]
    apart: list[list[float]] = [[] for _ in runners]
    for edit in edits:
        for k, runner in enumerate(runners):
            latents = runner.engine.encode(render(edit.source))
            edited = runner.edit(runner.invert(latents), make_request(edit, guidance_scale))
            apart[k].append(relative_l2(edited, runners[0].edited))
            measured = measure_video(runner.engine.decode(edited), edit)
            squares[k][0] += sum(measured["squared_error"].values())
            squares[k][1] += sum(measured["values"].values())
    for runner, (error, count), distances in zip(runners, squares, apart, strict=True):
        runner.loss = {"psnr_db": -10 * math.log10(error / count), "relative_l2": statistics.fmean(distances)}


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run all variants in turns, then the VAE; yield the result each time it has grown, JSON-ready."""
    deadline, device, parts = Deadline(args.budget), torch.device(args.device), load_parts(args)
    edits = [] if args.full_size else make_edit_set("dev", args.edits)
    video = render(edits[0].source) if edits else make_video(parts.limits, args.seed)
    request = (
        make_request(edits[0], args.guidance_scale)
        if edits
        else EditRequest(PROMPTS[0], guidance_scale=args.guidance_scale)
    )
    lists = {"switches": make_switches(device), "ladder": make_ladder()}
    runners = make_runners([variant for variants in lists.values() for variant in variants], parts, args)
    if edits:
        measure_losses(runners, edits, args.guidance_scale)
    latents = runners[0].engine.encode(video)
    turns: list[tuple[int, Runner | None]] = [
        (turn, runner) for turn in range(args.rounds + 1) for runner in runners[:: 1 if turn % 2 else -1]
    ]
    vae = list[dict[str, Any]]()
    for turn, runner in deadline.take([*turns, (1, None)], tell_turn):
        print(tell_turn((turn, runner)), flush=True)
        if runner is None:
            clip = video if video.ndim == 5 else video[None]
            vae = measure_vae(parts.vae, clip, args.rounds, device, compiled=not args.no_compile)
        else:
            runner.run(latents, request, timed=turn > 0)
        if turn:
            timed = {one.variant: one.describe(runners[0].edited) for one in runners if one.times["edit_s"]}
            yield {
                "schema": SCHEMA,
                "environment": read_block(args.commit),
                "settings": {
                    "model": name_model(args),
                    "clock": name_clock(device),
                    "edits": len(edits),
                    **{name: getattr(args, name) for name in ("steps", "rounds", "guidance_scale", "dtype", "device")},
                    **{name: getattr(args, name) for name in ("attention", "seed")},
                },
                **{
                    name: [
                        {"name": variant.name, "exact": variant.exact, **timed[variant]}
                        for variant in variants
                        if variant in timed
                    ]
                    for name, variants in lists.items()
                },
                "vae": vae,
                **tell_left_out(deadline),
            }


def make_runners(variants: Sequence[Variant], parts: Components, args: argparse.Namespace) -> list[Runner]:
    """Make an engine for each of the variants that differ, on the same weights."""
    prompts = make_prompts(parts, torch.device(args.device), args.seed)
    return [
        Runner(
            variant,
            make_engine(
                parts,
                args.steps,
                prompts=prompts,
                editor=variant.editor,
                attention=args.attention,
                precision=variant.precision,
                step_cache=variant.step_cache,
                compiled=variant.compiled,
            ),
        )
        for variant in dict.fromkeys(variants)
        if not (args.no_compile and variant.compiled)
    ]


def tell_turn(turn: tuple[int, Runner | None]) -> str:
    """Return the name of a round of a variant, or of the VAE."""
    number, runner = turn
    return "the switches of the VAE" if runner is None else f"round {number} of {runner.variant.name}"


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, steps = result["settings"], result["settings"]["steps"]
    edits = settings["edits"]
    truth = f"; PSNR against the truth of {edits} edits of the dev set" if edits else ""
    measured = (
        f"{settings['model']} on {tell_place(result)}, {steps} steps, guidance {settings['guidance_scale']:g}; clock: "
        f"{settings['clock']}; median of {settings['rounds']} rounds in turns{truth}."
    )
    explained = (
        "*Times as fast* is inversion and edit together, against the first row. *Distance* is the relative L2 distance "
        "of the edited latents to those of the first row, *dB* the change of the PSNR against the truth."
    )
    lines = ["# What each switch is worth, and what it costs", "", tell_origin(result), "", measured]
    for name, title in (("switches", "One switch at a time"), ("ladder", "One on top of the other")):
        if not result[name]:
            continue
        base = result[name][0]
        rows = [
            (
                row["name"],
                "yes" if row["exact"] else "no",
                *(f"{statistics.median(row[part]) / steps * 1e3:.1f}" for part in ("invert_s", "edit_s")),
                f"{compare(base, row):.2f}",
                str(row["invert_nfe"] + row["edit_nfe"]),
                f"{row['relative_l2']:.1e}",
                "not measured" if row["psnr_db"] is None else f"{row['psnr_db'] - base['psnr_db']:+.2f}",
            )
            for row in result[name]
        ]
        head = ("variant", "exact", "inversion ms a step", "edit ms a step", "times as fast", "NFE", "distance", "dB")
        lines += ["", f"## {title}", "", *make_table(head, rows)]
    lines += ["", explained]
    if result["ladder"]:
        lines += ["", "![The ladder](ladder.png)"]
    if result["vae"]:
        lines += ["", "## The VAE", "", *tell_vae(result["vae"])]
    lines.append("")
    return "\n".join(lines)


def compare(base: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Return the median, over the rounds, of how many times as fast a variant is."""
    ends = [[a + b for a, b in zip(r["invert_s"], r["edit_s"], strict=True)] for r in (base, row)]
    return float(statistics.median(theirs / ours for theirs, ours in zip(*ends, strict=False)))


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the ladder: how many times as fast, and how far from the exact edit."""
    rows = result["ladder"]
    if not rows:
        return
    ratios = [compare(rows[0], row) for row in rows]
    notes = [f"{ratio:.2f} x\ndistance {row['relative_l2']:.1e}" for ratio, row in zip(ratios, rows, strict=True)]
    names = [row["name"] for row in rows]
    title = "One switch on top of the other"
    plot_bars(folder / "ladder.png", names, [Bars(EXACT, ratios, notes)], title=title, y_label="times as fast")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it."""
    parser = make_parser("ablation", __doc__)
    parser.add_argument("--steps", type=read_count, default=50, help="steps of each direction (50)")
    parser.add_argument("--rounds", type=read_count, default=8, help="timed rounds, after one that warms up (8)")
    parser.add_argument("--edits", type=int, default=20, help="edits that say what is lost, a multiple of 5 (20)")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    add_attention(parser)
    args = parser.parse_args(argv)
    write_growing(args.output, measure(args), make_markdown, write_plots)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
