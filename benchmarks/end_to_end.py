"""The benchmark takes the wall seconds of the whole job by stage, cold and for every video after the first.

Each variant has a process of its own, so that its first video finds no kernel chosen and nothing compiled. What Python
takes to import the package is not counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from ddim_lightning.engine.fast import make_fast
from ddim_lightning.runtime.timing import StageTimer

from .arguments import add_attention, add_steps, make_parser, read_count
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .loading import EDITOR, GUIDANCE_SCALE, name_model
from .output import tell_left_out, tell_origin, tell_place, write_growing
from .stages import STAGES, WORKING, Job, run_fresh

SCHEMA = "ddim-lightning/end-to-end/2"
PRESETS = {"exact": (EDITOR, None), "fast": make_fast(EDITOR, None)}
"""The recommended editor and no step cache, and what `Schedule.fast` makes of them."""


def measure_variant(args: argparse.Namespace, preset: str, compiled: bool) -> dict[str, Any]:
    """Load, then do the whole job several times."""
    device = torch.device(args.device)
    first = StageTimer(device)
    with fresh_cache():  # or what another run compiled would hide what it costs
        editor, step_cache = PRESETS[preset]
        job = Job(args, first.stage, editor, step_cache=step_cache, compiled=compiled)
        outputs, timers = job.run(first.stage), [StageTimer(device) for _ in range(args.rounds)]
        nfe = job.engine.nfe
        for timer in timers:
            outputs = job.run(timer.stage)
    return {
        "preset": preset,
        "variant": "compiled" if compiled else "eager",
        "cold_s": dict(first.seconds),
        "warm_s": [dict(timer.seconds) for timer in timers],
        "nfe": nfe,
        "finite": all(bool(tensor.isfinite().all()) for tensor in outputs.values()),
    }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every variant; yield the result after each, JSON-ready."""
    deadline, variants = Deadline(args.budget), list[dict[str, Any]]()
    ways = (False, True) if args.compile else (False,)
    cases = [(preset, compiled) for compiled in ways for preset in PRESETS]
    for preset, compiled in deadline.take(cases, lambda case: f"{case[0]}, {'compiled' if case[1] else 'eager'}"):
        variants.append(run_fresh(measure_variant, args, preset, compiled))
        names = ("steps", "rounds", "compile", "dtype", "device", "attention", "seed")
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "guidance_scale": GUIDANCE_SCALE,
                **{name: getattr(args, name) for name in names},
            },
            "variants": variants,
            **tell_left_out(deadline),
        }


def take_medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of every stage of a video."""
    return {stage: statistics.median(run[stage] for run in runs) for stage in WORKING}


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, rows = result["settings"], []
    for row in result["variants"]:
        name = (row["variant"], row["preset"])
        totals = [sum(run.values()) for run in row["warm_s"]]
        for word, seconds, total in (
            ("cold", row["cold_s"], sum(row["cold_s"].values())),
            ("warm", take_medians(row["warm_s"]), statistics.median(totals)),
        ):
            spent = (f"{seconds[stage]:.2f}" if stage in seconds else "" for stage in STAGES)
            rows.append((*name, word, *spent, f"{total:.2f}", str(row["nfe"])))
    measured = (
        f"{settings['model']} on {tell_place(result)}, {settings['steps']} steps, guidance "
        f"{settings['guidance_scale']:g}, recommended inverter and editor; *warm* is the median of "
        f"{settings['rounds']} videos after the first. The reconstruction and the edit are decoded and written. "
        "Seconds:"
    )
    head = ("variant", "preset", "", *STAGES, "total", "NFE")
    return "\n".join(
        ["# End to end", "", tell_origin(result), "", measured, "", *make_table(head, rows), ""],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when an output is not finite."""
    parser = make_parser("end_to_end", __doc__)
    add_steps(parser)
    parser.add_argument("--rounds", type=read_count, default=3, help="videos after the first (3)")
    parser.add_argument("--compile", action="store_true", help="also compile the transformer's blocks")
    add_attention(parser)
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown)
    return 0 if all(row["finite"] for row in result["variants"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
