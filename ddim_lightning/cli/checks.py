"""The files, folders and numbers of a command are checked before torch is imported."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ddim_lightning.cli.options import Frames, Method, Run, Video
from ddim_lightning.data.frames import check_num_frames, make_size
from ddim_lightning.data.manifest import ClipRequest, check_file, find_clips
from ddim_lightning.engine.config import Outputs, Runtime
from ddim_lightning.models.checkpoint import read_limits


def check_edit(
    *, video: Video, run: Run, frames: Frames, method: Method, runtime: Runtime, outputs: Outputs, **_: object
) -> None:
    """Raise an OSError or a ValueError for a file of `edit` that will not do, and an ArgumentError for options."""
    if method.inversion_prompt is None and not frames.source_prompt:
        raise argparse.ArgumentError(None, "inversion_prompt: null takes the source_prompt, which is not given")
    kept = outputs.trajectory_dir
    if kept is not None and not outputs.save_trajectory and os.path.realpath(kept) == os.path.realpath(run.output):
        raise argparse.ArgumentError(None, f"trajectory_dir: must not be output without save_trajectory, got {kept!r}")
    (request,) = find_clips([video.video], ClipRequest())
    if request.video.is_file() and request.video.stat().st_size == 0:
        raise ValueError(f"{request.video} is empty (0 bytes)")
    if frames.mask is not None:
        check_file(frames.mask, "mask")
    if kept is not None and not (former := Path(kept, request.id, "trajectory.safetensors")).is_file():
        raise FileNotFoundError(f"trajectory_dir: must be of a run of this clip with save_trajectory; no {former}")
    if runtime.exported is not None and not Path(runtime.exported).expanduser().is_dir():
        raise NotADirectoryError(f"exported: must be a folder that export wrote, got {runtime.exported!r}")


def check_model(*, frames: Frames, method: Method, runtime: Runtime, **_: object) -> None:
    """Raise an OSError or a ValueError for a model that will not do, or frames that it does not take."""
    limits = read_limits(method.model, require_rotary=runtime.require_rotary)
    make_size(limits, frames.height, frames.width)
    if frames.num_frames is not None:
        check_num_frames(frames.num_frames, limits)


def check_output(*, run: Run, **_: object) -> None:
    """Raise an OSError for an output folder that cannot be written to."""
    folder = Path(run.output).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise NotADirectoryError(f"output: must be a folder that can be written to, got {run.output!r}")


def announce(*, run: Run, method: Method = Method(), **_: object) -> None:  # noqa: B008, frozen
    """Say what is loaded, before the import of torch takes its seconds."""
    if not run.quiet:
        print(f"loading {method.model} ...", file=sys.stderr, flush=True)
