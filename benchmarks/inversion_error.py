"""The benchmark says how well each inverter comes back: at the default setting, then one factor at a time.

Clips come from the world of shapes under seeds that no training has seen; the tiny model inverts and reconstructs them
on one CPU thread. Errors are against the VAE round trip, which is the ceiling of every reconstruction.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.metrics.diagnosis import describe_color, describe_noise
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import quantize
from ddim_lightning.report.sheet import Row, write_sheet
from ddim_lightning.tiny.shapes import render, sample_scene

from .coming_back import Clip, measure_variant
from .inversion_report import find_typical_clip, make_source_key, write_report
from .inversion_variants import Variant, make_variants
from .loading import INVERTER, load_engine
from .records import merge_records, open_records, parse_shard

SPLIT = "inversion-error"
"""Its clips are those of no training and of no other benchmark."""
QUICK: dict[str, Any] = {"clips": 2, "steps": 5, "fewer": (2, 3)}
"""What ``--quick`` stands for."""


def draw_clip(engine: InversionEngine, seed: int, index: int) -> Clip:
    """Render a held-out clip.

    Args:
        engine: The loaded model.
        seed: The benchmark's.
        index: Which clip.
    """
    scene = sample_scene(make_generator(seed, SPLIT, index))
    return Clip(engine, render(scene), scene.caption)


@torch.inference_mode()
def measure(
    engine: InversionEngine, variants: Sequence[Variant], settings: Mapping[str, Any], args: argparse.Namespace
) -> None:
    """Measure what no record of the folder holds yet, clip by clip."""
    shard, shards = args.shard
    records, known = open_records(args.output, settings, shard), merge_records(args.output, settings)
    for index in range(args.clips)[shard::shards]:
        wanted = {variant.make_key(index, seed): (variant, seed) for variant in variants for seed in variant.seeds}
        missing = {key: work for key, work in wanted.items() if key not in known}
        if not missing and make_source_key(index) in known:
            continue
        start, clip = time.process_time(), draw_clip(engine, args.seed, index)
        if make_source_key(index) not in known:
            records.add(make_source_key(index), clip.describe())
        for key, (variant, seed) in missing.items():
            records.add(key, measure_variant(engine, clip, variant, seed))
        seconds = time.process_time() - start
        print(f"clip {index} of {args.clips}: {len(missing)} inversions, {seconds:.0f} s", flush=True)


@torch.inference_mode()
def write_washout(path: Path, engine: InversionEngine, clip: Clip, fewer: int) -> None:
    """Write the sheet of one clip: the source, the VAE's ceiling, plain DDIM and the default in two schedules."""
    videos = {"source": clip.frames, "VAE round trip": quantize(clip.round_trip[0])}
    texts = {"source": clip.caption}
    for steps, name in itertools.product((len(engine.schedule), fewer), ("plain DDIM", "the default")):
        inverter = DDIM() if name == "plain DDIM" else INVERTER
        schedule = make_noise_schedule(engine.components.scheduler, steps)
        method = replace(engine, inverter=inverter, schedule=schedule)
        inversion = method.invert(clip.latents)
        video = method.decode(method.reconstruct(inversion))
        label = f"{name}, {steps} steps"
        videos[label] = quantize(video[0])
        std, decibels = describe_noise(inversion.levels[0])["std"], psnr(video[0], clip.round_trip[0])
        texts[label] = f"{type(inverter).__name__}: {decibels:.1f} dB, deviation of x_T {std:.2f}"
    notes = {label: describe_color(frames / 255) for label, frames in videos.items()}
    write_sheet(
        path,
        [
            Row(label, frames, texts.get(label, ""), ", ".join(f"{name} {x:.2f}" for name, x in notes[label].items()))
            for label, frames in videos.items()
        ],
        title="Plain DDIM inversion washes out, the more the larger its steps; the default comes back",
        subtitle="Empty prompt both ways, guidance 1; dB against the VAE round trip",
        fps=Fraction(8),
    )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inversion_error", description=(__doc__ or "").splitlines()[0]
    )
    parser.set_defaults(fewer=(10, 25))
    parser.add_argument("--model", default="tiny", help="'tiny' (bundled) or a folder (tiny)")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips (64)")
    parser.add_argument("--steps", type=int, default=50, help="of the default setting (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips (0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--shard", type=parse_shard, default=(0, 1), metavar="K/N", help="process K of N (0/1)")
    parser.add_argument("--quick", action="store_true", help="two clips and few steps, to see that it runs")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write the report of the records")
    parser.add_argument("--commit", help="of a copy that is no checkout; with -dirty where files were changed")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for records and report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the report; a shard leaves the report to ``--report-only``."""
    parser = make_parser()
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    engine, variants = load_engine(args.model, args.steps), make_variants(args.steps, args.fewer)
    settings = {
        "model": args.model,
        "weights": digest_model(engine.components, engine.device),
        "split": SPLIT,
        "seed": args.seed,
    }
    if not args.report_only:
        measure(engine, variants, settings, args)
    if args.report_only or args.shard == (0, 1):
        summary = write_report(args.output, settings, variants, args.clips, args.commit)
        typical = find_typical_clip(merge_records(args.output, settings), variants, args.clips)
        write_washout(args.output / "washout.png", engine, draw_clip(engine, args.seed, typical), min(args.fewer))
        print(summary, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
