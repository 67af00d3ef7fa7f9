"""The files, folders and numbers of a command are checked before torch is imported."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ddim_lightning.cli.options import Frames, Method, Run, Video
from ddim_lightning.data.frames import check_num_frames, choose_frames, make_size
from ddim_lightning.data.manifest import ClipRequest, check_file, find_clips
from ddim_lightning.data.timeline import read_timeline
from ddim_lightning.engine.config import Outputs, Runtime, Source, make_loras
from ddim_lightning.models.adapter_card import find_edit_adapter
from ddim_lightning.models.checkpoint import read_limits
from ddim_lightning.models.source import find_lora
from ddim_lightning.output.natural import warn_of_natural
from ddim_lightning.output.place import check_output_dir, get_place
from ddim_lightning.output.suite import Suite


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
    get_place(Path(run.output), request.id)
    for name in ("mask", "first_frame"):
        if (path := getattr(frames, name)) is not None:
            check_file(path, name)
    if kept is not None and not (former := Path(kept, request.id, "trajectory.safetensors")).is_file():
        raise FileNotFoundError(f"trajectory_dir: must be of a run of this clip with save_trajectory; no {former}")
    if runtime.exported is not None and not Path(runtime.exported).expanduser().is_dir():
        raise NotADirectoryError(f"exported: must be a folder that export wrote, got {runtime.exported!r}")


def check_model(*, method: Method, source: Source, runtime: Runtime, video: Video | None = None, **groups: Any) -> None:
    """Raise an OSError or a ValueError for a model that will not do, or frames that it does not take."""
    frames: Frames | Suite = groups["frames" if "frames" in groups else "suite"]
    find_edit_adapter([str(find_lora(one.file)) for one in make_loras(method.lora)])
    limits = read_limits(method.model, source, **runtime.requires)
    make_size(limits, frames.height, frames.width)
    if frames.num_frames is not None:
        check_num_frames(frames.num_frames, limits)
    if video is not None and not (path := Path(video.video).expanduser()).is_dir():
        choice: dict[str, Any] = {name: getattr(frames, name) for name in ("start", "num_frames", "stride")}
        choose_frames(read_timeline(path).num_frames, limits, **choice)


def begin(*, run: Run, method: Method = Method(), video: Video | None = None, **groups: Any) -> None:  # noqa: B008
    """Raise an OSError for an output folder that will not do; else say what is loaded, before torch takes its time."""
    check_output_dir(run.output, "output")
    videos = [one.video for one in groups["benchmark"].requests] if "benchmark" in groups else []
    warn_of_natural(method.model, videos if video is None else [video.video])
    if not run.quiet:
        print(f"loading {method.model} ...", file=sys.stderr, flush=True)
