"""The body of ``export``: write the network of a model as files that PyTorch alone can run."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ddim_lightning.artifacts import MANIFEST, export_network, tell_layout
from ddim_lightning.models.forward import RowLayout
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.types import VideoLimits
from ddim_lightning.writer import make_output_dir

_DONE = 0


def export(args: argparse.Namespace) -> int:
    """Export the network of a model.

    Args:
        args: What `cli.make_parser` reads for ``export``.

    Returns:
        The exit status.

    Raises:
        ValueError: A size that the model cannot take, or an argument out of its range.
        OSError: The output folder cannot be written to.
    """
    module = DDIMInversionModule(
        args.model,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        inverter=args.inverter,
        editor=args.editor,
        attention=args.attention,
        dtype=args.dtype,
    )
    video = find_video_size(module.video_limits, args.num_frames, args.height, args.width)
    folder = Path(make_output_dir(args.output))
    module.load(_find_device(args.accelerator))
    config, limits = module.components.transformer.config, module.video_limits
    height, width = (value // (limits.multiple // config.patch_size) for value in video[1:])
    size = (1 + video[0] // limits.temporal, config.in_channels, height, width)

    def tell(layout: RowLayout, k: int, total: int) -> None:
        if not (args.quiet or args.json):
            print(f"{args.format}: {tell_layout(layout)}, {k + 1} of {total}", file=sys.stderr, flush=True)

    manifest = export_network(
        module.engine, folder, args.format, size=size, guidance_scale=args.guidance_scale, on_layout=tell
    )
    if args.json:
        print(json.dumps(asdict(manifest)))
    elif not args.quiet:
        print(f"{folder / MANIFEST}: {len(manifest.layouts)} graphs, latents of {size} a row")
    return _DONE


def find_video_size(
    limits: VideoLimits, num_frames: int | None, height: int | None, width: int | None
) -> tuple[int, int, int]:
    """Return (f, h, w) of the clips that are exported for, in frames and pixels.

    Args:
        limits: Of the model.
        num_frames: ``None`` for the most that the model takes.
        height: ``None`` for the model's own.
        width: Likewise.

    Raises:
        ValueError: A size that the model cannot take.
    """
    frames = limits.num_frames if num_frames is None else num_frames
    if not 1 <= frames <= limits.num_frames or frames % limits.temporal != 1:
        rule = f"{limits.temporal}k + 1 and at most {limits.num_frames}"
        raise ValueError(f"num_frames: must be {rule}, got {frames}")
    for name, value in (("height", height), ("width", width)):
        if value is not None and (value < 1 or value % limits.multiple):
            raise ValueError(f"{name}: must be a multiple of {limits.multiple}, got {value}")
    return frames, limits.height if height is None else height, limits.width if width is None else width


def _find_device(accelerator: str) -> torch.device:
    wants_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if wants_gpu else "cpu")
