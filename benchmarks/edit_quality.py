"""The benchmark says how well each way to edit does on edits whose truth is known to the pixel.

Every method of `edit_variants` at every guidance scale, on clips of the world of shapes that no training has seen, with
the tiny model on one CPU thread. Each video is compared with the rendered truth of its edit, and a classifier reads its
words back.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.masks import pool_mask
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.rehearsal import count_edit_nfe
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import quantize
from ddim_lightning.tiny.shapes import render
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.types import Branch, EditRequest, Frames, Video

from .edit_report import SHEET_EDITS, SHEET_JOBS, write_report
from .edit_set import SPLITS, ShapesEdit, make_edit_set
from .edit_variants import ADAPTER_FILE, CEILING, DEFAULT, REFERENCE, VARIANTS, Job, Variant, make_jobs
from .loading import load_engine
from .records import merge_records, open_records, parse_shard

QUICK: dict[str, Any] = {"edits": 5, "steps": 4, "variants": [REFERENCE, DEFAULT, "plain inversion"], "guidance": [6.0]}
"""What ``--quick`` stands for."""

REPEATS = 5
"""Rows and decodings timed for the plan."""


class Engines:
    """The `Engines` are a model as it is, and the same model with the bundled adapter, which is loaded when asked for.

    Args:
        model: ``tiny`` or a folder.
        num_inference_steps: Of variants that have no steps of their own.
    """

    def __init__(self, model: str, num_inference_steps: int) -> None:
        self.model, self.num_inference_steps = model, num_inference_steps
        self.plain = load_engine(model, num_inference_steps)

    @cached_property
    def adapted(self) -> InversionEngine:
        """The model with the adapter."""
        return load_engine(self.model, self.num_inference_steps, str(ADAPTER_FILE))

    def prepare(self, variant: Variant) -> InversionEngine:
        """Return the engine of a variant, with its editor, its steps and its step cache."""
        engine = self.adapted if variant.adapter else self.plain
        scheduler = engine.components.scheduler
        schedule = engine.schedule if variant.own_steps is None else make_noise_schedule(scheduler, variant.own_steps)
        return replace(engine, editor=variant.editor, schedule=schedule, step_cache=variant.step_cache)


class Clip:
    """A `Clip` is one clip and what the variants share of it: its latents and its inversions.

    Args:
        engines: The loaded model.
        edit: What is to be done to the clip.
    """

    def __init__(self, engines: Engines, edit: ShapesEdit) -> None:
        self.engines, self.engine, self.edit = engines, engines.plain, edit
        self.latents, self.truth = self.engine.encode(render(edit.source)), self.engine.encode(edit.truth)
        self._inversions: dict[tuple[Any, ...], tuple[Inversion, float]] = {}

    def make_video(self, job: Job) -> tuple[Video, dict[str, float]]:
        """Make the video of a job, and count its NFE and its seconds of processor time, decoding left out."""
        if job.guidance is None:
            latents = self.truth if job.method == CEILING else self.latents
            return self.engine.decode(latents), {"nfe": 0, "inversion_nfe": 0, "seconds": 0, "inversion_seconds": 0}
        variant, seed = VARIANTS[job.method], make_generator(job.seed, self.edit.id, 0).initial_seed()
        inversion, inversion_seconds = self.find_inversion(variant, seed)
        engine = self.engines.prepare(variant)
        before, start = engine.nfe, time.process_time()
        latents = engine.edit(inversion, self.make_request(variant, job.guidance), seed=seed)
        seconds = time.process_time() - start
        return self.engine.decode(latents), {
            "nfe": engine.nfe - before + inversion.nfe,
            "inversion_nfe": inversion.nfe,
            "seconds": seconds + inversion_seconds,
            "inversion_seconds": inversion_seconds,
        }

    def make_request(self, variant: Variant, guidance: float) -> EditRequest:
        """Ask for the edit as a variant does."""
        limits, mask = self.engine.components.limits, None
        if variant.tell_mask:
            spatial = self.edit.inside.shape[-1] // self.latents.shape[-1]
            mask = pool_mask(self.edit.inside, limits.temporal, spatial)
        source_prompt = self.edit.source.caption if variant.source_prompt else None
        return EditRequest(self.edit.target.caption, source_prompt=source_prompt, guidance_scale=guidance, mask=mask)

    def find_inversion(self, variant: Variant, seed: int) -> tuple[Inversion, float]:
        """Return the inversion of a variant and its seconds, made once for all variants that share it."""
        prompt = self.edit.source.caption if variant.invert_under_source else ""
        if variant.inverter is None:  # its editor reads the clean latents and nothing else
            clean = self.truth if variant.from_truth else self.latents
            schedule = self.engines.prepare(variant).schedule
            levels = clean.expand(len(schedule) + 1, *clean.shape)
            return Inversion(DDIM(), schedule, prompt, levels, (clean,), None, 0), 0.0
        key = variant.make_inversion_key(seed)
        if key not in self._inversions:
            engine, start = replace(self.engine, inverter=variant.inverter), time.process_time()
            inversion = engine.invert(self.latents, prompt=prompt, seed=seed)
            self._inversions[key] = inversion, time.process_time() - start
        return self._inversions[key]


def measure_video(video: Video, edit: ShapesEdit) -> dict[str, Any]:
    """Compare a video with the truth of its edit, and read its words.

    Args:
        video: (1, f, c, h, w) in 0 .. 1, not quantized.
        edit: Whose truth.

    Returns:
        Sums of squared errors, how many values they were summed over, and the words seen.
    """
    error = (video[0].double() - edit.truth.double() / 255).square().sum(dim=1)  # (f, h, w)
    where = {"inside": edit.inside, "outside": ~edit.inside}
    return {
        "squared_error": {name: float(error[mask].sum()) for name, mask in where.items()},
        "values": {name: video.shape[2] * int(mask.sum()) for name, mask in where.items()},
        "seen": vars(classify(quantize(video[0]))),
    }


def sum_psnr(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the PSNR in dB of several videos that `measure_video` compared, by region."""

    def decibels(*regions: str) -> float:
        error = sum(record["squared_error"][region] for record in records for region in regions)
        return -10 * math.log10(error / sum(record["values"][region] for record in records for region in regions))

    return {"whole": decibels("inside", "outside"), "inside": decibels("inside"), "outside": decibels("outside")}


@torch.inference_mode()
def measure(
    engines: Engines,
    edits: Sequence[ShapesEdit],
    jobs: Sequence[Job],
    settings: Mapping[str, Any],
    args: argparse.Namespace,
) -> None:
    """Measure what no record of the folder holds yet, edit by edit."""
    shard, shards = args.shard
    records, known = open_records(args.output, settings, shard), merge_records(args.output, settings)
    for edit in edits[shard::shards]:
        missing = [job for job in jobs if job.make_key(edit.id) not in known]
        if not missing:
            continue
        start, clip = time.process_time(), Clip(engines, edit)
        for job in missing:
            video, cost = clip.make_video(job)
            if edit.id.endswith(SHEET_EDITS) and job in SHEET_JOBS:
                write_strip(args.output / "clips" / f"{edit.id}-{job.method}.png", quantize(video[0]))
            records.add(job.make_key(edit.id), {**measure_video(video, edit), **cost})
        print(f"{edit.id}: {len(missing)} videos, {time.process_time() - start:.0f} s", flush=True)


def write_strip(path: Path, frames: Frames) -> None:
    """Write the frames of a clip side by side, losslessly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = frames.permute(2, 0, 3, 1).flatten(1, 2)  # (h, f w, c)
    Image.fromarray(pixels.contiguous().numpy()).save(path, optimize=True)


def make_plan(engines: Engines, jobs: Sequence[Job], count: int) -> str:
    """Count the NFE of an edit, and estimate the processor time of all edits."""
    schedule, edit = engines.plain.schedule, make_edit_set("dev", 1)[0]
    source, target = edit.source.caption, edit.target.caption
    inversions: dict[tuple[Any, ...], int] = {}
    nfe: dict[str, int] = {}
    for job in jobs:
        if job.guidance is None:
            continue
        variant = VARIANTS[job.method]
        request = EditRequest(target, source_prompt=source, guidance_scale=job.guidance)
        if variant.inverter is not None:
            inversions[variant.make_inversion_key(job.seed)] = variant.inverter.count_nfe(len(schedule))
        engine = replace(engines.prepare(variant), inverter=variant.inverter or engines.plain.inverter)
        nfe[job.method] = nfe.get(job.method, 0) + count_edit_nfe(engine, [request], together=False)
    row_seconds, video_seconds = time_parts(engines.plain)
    total = sum(nfe.values()) + sum(inversions.values())
    seconds = total * row_seconds + len(jobs) * video_seconds
    parts = f"{row_seconds * 1e3:.1f} ms an evaluation and {video_seconds * 1e3:.0f} ms a video"
    lines = [
        *(f"{count:6} NFE  {name}" for name, count in nfe.items()),
        f"{sum(inversions.values()):6} NFE  {len(inversions)} inversions, shared",
        f"{total:6} NFE and {len(jobs)} videos an edit: {seconds:.0f} s at {parts}",
        f"{count} edits: {count * seconds / 60:.0f} minutes of processor time",
    ]
    return "\n".join(lines)


@torch.inference_mode()
def time_parts(engine: InversionEngine) -> tuple[float, float]:
    """Return the seconds of one row through the network and of one video decoded and classified."""
    edit = make_edit_set("dev", 1)[0]
    latents = engine.encode(render(edit.source))
    measure_video(engine.decode(latents), edit)
    start = time.process_time()
    for _ in range(REPEATS):
        engine.denoiser([Branch(latents, "")], engine.schedule[0])
    middle = time.process_time()
    for _ in range(REPEATS):
        measure_video(engine.decode(latents), edit)
    return (middle - start) / REPEATS, (time.process_time() - middle) / REPEATS


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edit_quality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="tiny", help="'tiny' (bundled) or a folder (tiny)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="choose on dev, report on test (test)")
    parser.add_argument("--edits", type=int, default=80, help="how many, the kinds in turn (80)")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        default=["methods"],
        metavar="NAME,NAME",
        help="of edit_variants.py, or methods, options, all (methods)",
    )
    parser.add_argument(
        "--guidance",
        type=lambda text: [float(scale) for scale in text.split(",")],
        default=[1.0, 3.0, 6.0],
        metavar="SCALE,SCALE",
        help="of the variants that name none (1,3,6)",
    )
    parser.add_argument("--steps", type=int, default=50, help="of inversion and edit (50)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--shard", type=parse_shard, default=(0, 1), metavar="K/N", help="process K of N (0/1)")
    parser.add_argument("--quick", action="store_true", help="a few edits, steps and variants, to see that it runs")
    parser.add_argument("--plan", action="store_true", help="print what it would cost, and stop")
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
    jobs, edits = make_jobs(args.variants, args.guidance), make_edit_set(args.split, args.edits)
    engines = Engines(args.model, args.steps)
    if args.plan:
        print(make_plan(engines, jobs, args.edits))
        return 0
    settings = {
        "model": args.model,
        "weights": digest_model(engines.plain.components, engines.plain.device),
        "split": args.split,
        "steps": args.steps,
    }
    if not args.report_only:
        measure(engines, edits, jobs, settings, args)
    if args.report_only or args.shard == (0, 1):
        print(write_report(args.output, settings, edits, jobs, args.commit), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
