"""The benchmark takes your own clips to noise and back, by each inverter: decibels, NFE, seconds, memory.

Plain DDIM in 50 steps is the inversion of the reference script; in 250 it is that of DynVFX (Yatim et al. 2025,
arXiv:2502.03621, ``configs/inversion_config.yaml`` of its released code): trailing steps, empty prompt. Then
come `UniInv` as it is recommended, `FixedPoint` and `BDIA`, in 50. All come back in as many steps as they went.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.data.frames import Fit
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.data.video import write_video
from ddim_lightning.diffusion.editors import Denoise
from ddim_lightning.diffusion.inverters import BDIA, DDIM, FixedPoint
from ddim_lightning.engine.build import build_engine
from ddim_lightning.engine.choices import Offload
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.models.vae import quantize
from ddim_lightning.report.environment import read_environment
from ddim_lightning.runtime.allocator import keep_freed_memory
from ddim_lightning.types import Clip as VideoClip
from ddim_lightning.types import UnreadableClip

from .arguments import add_attention, add_budget, add_output, add_place, read_count
from .coming_back import Clip, measure_variant
from .deadline import Deadline
from .environment import read_block
from .inversion_variants import Variant
from .loading import INVERTER
from .measuring import name_clock
from .output import tell_left_out, write_growing
from .records import Records, dump_json, open_records
from .round_trip_report import (
    SCHEMA,
    SOURCE,
    VAE,
    WASHOUT,
    Clips,
    make_markdown,
    name_video,
    summarize,
    write_clip_sheet,
    write_plots,
)

QUICK: dict[str, Any] = {"steps": 5, "many_steps": 12}
"""What ``--quick`` stands for."""


class Found(NamedTuple):
    """A `Found` clip can be read: its position among the videos, its id, and a digest of its frames."""

    position: int
    id: str
    digest: str

    def make_key(self, method: Variant | None) -> str:
        """Name the record of a method, or of the VAE alone, by all that it depends on."""
        said = SOURCE if method is None else f"{method.steps} steps/{method.inverter!r}"
        return f"{self.id}/{self.digest}/{said}"


def make_methods(steps: int, many_steps: int) -> list[Variant]:
    """List what is measured of every clip, in the order of the table.

    Args:
        steps: Of each direction, as the reference script has them.
        many_steps: Of plain DDIM in small steps.
    """
    return [
        Variant(f"DDIM, {steps} steps", DDIM(), steps=steps),
        Variant(f"DDIM, {many_steps} steps", DDIM(), steps=many_steps),
        Variant("UniInv", INVERTER, steps=steps),
        Variant("FixedPoint", FixedPoint(), steps=steps),
        Variant("BDIA", BDIA(), steps=steps),
    ]


def count_nfe(method: Variant) -> int:
    """Return the most NFE that a method takes, there and back."""
    return method.inverter.count_nfe(method.steps) + method.steps


def load_model(args: argparse.Namespace) -> InversionEngine:
    """Load the model; the text encoder is gone by then, since only the empty prompt is asked for."""
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    runtime = Runtime(dtype=args.dtype, offload=args.offload, attention=args.attention)
    schedule = Schedule(num_inference_steps=args.steps)
    return build_engine(
        args.model, INVERTER, Denoise(), device, schedule=schedule, runtime=runtime, first_prompts=("",)
    )


def find_readable(dataset: VideoDataset) -> tuple[list[Found], list[dict[str, str]]]:
    """Read every clip once: those that can be read, and id and reason of those that cannot."""
    found, skipped = list[Found](), list[dict[str, str]]()
    for index in range(len(dataset)):
        clip = dataset[index]
        if isinstance(clip, UnreadableClip):
            skipped.append({"id": clip.id, "reason": clip.reason})
            print(f"{clip.id}: {clip.reason}", file=sys.stderr, flush=True)
        else:
            values = clip.frames.contiguous().numpy().tobytes()
            found.append(Found(index, clip.id, hashlib.blake2s(values, digest_size=8).hexdigest()))
    return found, skipped


class Run:
    """A `Run` takes clips there and back, one method after the other, and keeps the numbers and the videos.

    Args:
        engine: The loaded model.
        dataset: The clips.
        methods: What is measured of each.
        records: Where what is measured goes.
        folder: Where videos and sheets go, under ``clips/``.
    """

    def __init__(
        self,
        engine: InversionEngine,
        dataset: VideoDataset,
        methods: Sequence[Variant],
        records: Records,
        folder: Path,
    ) -> None:
        self.engine, self.dataset, self.methods, self.records = engine, dataset, methods, records
        self.folder = folder
        self.found, self.skipped = find_readable(dataset)
        self._read: tuple[Found, VideoClip, Clip] | None = None

    def list_missing(self) -> list[tuple[Found, Variant]]:
        """List what no record holds, clip by clip, the dear methods last: a budget ends before them first."""
        methods = sorted(self.methods, key=count_nfe)
        return [
            (clip, method) for clip in self.found for method in methods if clip.make_key(method) not in self.records
        ]

    @torch.inference_mode()
    def measure(self, found: Found, method: Variant) -> None:
        """Take one clip there and back by one method, and record it; what goes wrong is listed with its reason."""
        print(f"{found.id}: {method.name}", flush=True)
        try:
            video, clip = self._open(found)
            path = self._place(found) / f"{name_video(method.name)}.mp4"
            # The last video stays: with the residual, where the method keeps one.
            row = measure_variant(
                self.engine, clip, method, 0, lambda end, back: write_video(path, quantize(back[0]), video.fps)
            )
            self.records.add(found.make_key(method), row)
        except (OSError, RuntimeError, ValueError) as error:  # too little memory for one clip, say, or NaN
            self.skipped.append({"id": found.id, "reason": " ".join(f"{method.name}: {error}".split())})
            print(f"{found.id}: {self.skipped[-1]['reason']}", file=sys.stderr, flush=True)

    def gather(self) -> Clips:
        """Return the records of all clips of which there are any."""
        rows = self.records.rows()
        return [
            (clip.id, rows[source], {method.name: rows.get(clip.make_key(method)) for method in self.methods})
            for clip in self.found
            if (source := clip.make_key(None)) in rows
        ]

    def write_sheet(self, found: Found, result: Mapping[str, Any]) -> None:
        """Draw the sheet of a clip beside its videos."""
        place = self._place(found)
        write_clip_sheet(place, place / WASHOUT, result)

    def _place(self, found: Found) -> Path:
        return self.folder / "clips" / found.id

    def _open(self, found: Found) -> tuple[VideoClip, Clip]:
        """Read a clip, unless it is the one that was read last, and record what the VAE does to it."""
        if self._read is None or self._read[0] != found:
            self._read = None  # makes room
            video = self.dataset[found.position]
            if isinstance(video, UnreadableClip):  # since it was found
                raise ValueError(video.reason)
            clip = Clip(self.engine, video.frames)
            for name, frames in ((SOURCE, video.frames), (VAE, quantize(clip.round_trip[0]))):
                write_video(self._place(found) / f"{name_video(name)}.mp4", frames, video.fps)
            if (key := found.make_key(None)) not in self.records:
                told = {"frames": len(video.frames), "fps": str(video.fps), "warnings": list(video.warnings)}
                self.records.add(key, told | clip.describe())
            self._read = found, video, clip
        return self._read[1:]


def open_run(args: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Find the clips, load the model and open the records; return the run and its settings."""
    videos = args.videos[0] if len(args.videos) == 1 else args.videos
    requests = find_clips(videos, ClipRequest(num_frames=args.frames))  # before the weights
    engine = load_model(args)
    dataset = VideoDataset(
        requests, limits=engine.components.limits, height=args.height, width=args.width, fit=args.fit
    )
    names = ("model", "fit", "steps", "many_steps", "dtype", "offload", "attention", "frames")
    settings = {
        **{name: getattr(args, name) for name in names},
        "height": dataset.height,
        "width": dataset.width,
        "device": str(engine.device),
        "clock": name_clock(engine.device),
        "memory": "what is allocated at most" if engine.device.type == "cuda" else "the resident set at the end",
        "weights": digest_model(engine.components, engine.device),
    }
    records = open_records(args.output, settings | {"gpus": read_environment()["gpus"]})
    run = Run(engine, dataset, make_methods(args.steps, args.many_steps), records, args.output)
    return run, {**settings, "clips": len(run.found)}


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure what no record holds yet, clip by clip; yield the result after each method, JSON-ready."""
    deadline = Deadline(args.budget)
    run, settings = open_run(args)
    environment, missing = read_block(args.commit), run.list_missing()

    def make_result() -> dict[str, Any]:
        result = {
            "schema": SCHEMA,
            "environment": environment,
            "settings": settings,
            **summarize(run.methods, run.gather()),
            "skipped": run.skipped,
            **tell_left_out(deadline),
        }
        return dict(json.loads(dump_json(result)))  # infinity becomes null

    if not missing:
        yield make_result()
    last = dict(missing)
    for clip, method in deadline.take(missing, lambda c: f"{c[0].id} by {c[1].name}", lambda c: count_nfe(c[1])):
        run.measure(clip, method)
        yield (result := make_result())
        if last[clip] is method:
            run.write_sheet(clip, result)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark round_trip", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="tiny", help="tiny (bundled), a pipeline folder, or a hub id (tiny)")
    told = "videos, folders of frames, a folder or glob of either, or a manifest"
    parser.add_argument("--videos", nargs="+", required=True, metavar="PATH", help=told)
    parser.add_argument("--fit", default="crop", choices=get_args(Fit), help="frames of another shape (crop)")
    parser.add_argument("--frames", type=read_count, help="4k + 1 (what a clip has and the model takes)")
    for name in ("height", "width"):
        parser.add_argument(f"--{name}", type=read_count, help="in pixels (the model's)")
    parser.add_argument("--steps", type=read_count, default=50, help="of each direction (50)")
    parser.add_argument("--many-steps", type=read_count, default=250, help="of DDIM in small steps (250)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['steps']} and {QUICK['many_steps']} steps")
    add_place(parser)
    parser.add_argument("--offload", default="none", choices=get_args(Offload), help="what waits in host memory (none)")
    add_attention(parser)
    add_budget(parser)
    add_output(parser, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the report; the exit status is 3 where a clip was skipped, as that of a run."""
    parser = make_parser()
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    if args.many_steps <= args.steps:
        raise ValueError(f"many_steps: must be more than steps, {args.steps}, got {args.many_steps}")
    result = write_growing(args.output, measure(args), make_markdown, write_plots)
    return 3 if result["skipped"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
