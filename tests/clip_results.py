"""Results of clips for tests, made without a model."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from ddim_lightning.output.folder import RunFolder
from ddim_lightning.types import Clip, ClipResult, Edit, FrameSelection


def make_frames(seed, f=9, h=32, w=48):
    """Smooth moving colors, which x264 keeps well; every seed another."""
    rows, columns, times = torch.arange(h)[:, None], torch.arange(w), torch.arange(f)[:, None, None, None]
    phase = torch.tensor([0.3, 1.1, 2.3])[:, None, None] * (seed + 1)
    return (127 + 100 * torch.sin(rows / 9 + columns / 13 + times / 3 + phase)).round().to(torch.uint8)


def make_result(clip_id="a clip", **changes):
    """A result with a reconstruction and two edits."""
    clip = Clip(
        id=clip_id,
        frames=make_frames(0),
        fps=Fraction(30000, 1001),
        prompts=("a green square", "ein grüner Kreis"),
        source_prompt="a red circle",
        negative_prompt="blurry",
        selection=FrameSelection(start=3, stride=2, count=9, dropped=4, cropped=0.25),
    )
    result = ClipResult(
        clip,
        "done",
        seed=7,
        vae_round_trip=make_frames(0),
        reconstruction=make_frames(1),
        edits=[
            Edit(prompt, make_frames(2 + i), torch.zeros(1, 3, 8, 4, 6), {"psnr_vs_source": 20.0 + i})
            for i, prompt in enumerate(clip.prompts)
        ],
        metrics={"vae": {"psnr": math.inf, "ssim": 1.0}, "reconstruction": {"psnr": 31.25, "psnr_vs_vae": 40.5}},
        seconds={"invert": 1.5},
        nfe={"invert": 50, "edit": 300},
        settings={"model": "tiny", "inverter": {"class_path": "ddim_lightning.diffusion.DDIM", "init_args": {}}},
        fingerprint={"clip": "c0ffee"},
        warnings=["prompt truncated"],
    )
    for name, value in changes.items():
        setattr(result, name, value)
    return result


def make_small_result(clip_id, **changes):
    """A result of a source alone."""
    return make_result(clip_id, **{"reconstruction": None, "edits": [], **changes})


def write_run(folder, *results, sheets=False, overwrite=False):
    """The folder of a run, as a run leaves it."""
    run = RunFolder(folder, sheets=sheets, overwrite=overwrite)
    run.begin()
    for result in results:
        run.write(result)
    run.end(alone=True)
    return folder
