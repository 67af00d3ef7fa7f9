"""The whole job on one video is taken stage by stage, for benchmarks that look at each stage by itself."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddim_lightning.data.video import write_video
from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.engine.config import Offload
from ddim_lightning.types import EditRequest

from .loading import GUIDANCE_SCALE, PROMPTS, load_parts, make_engine, make_prompts, make_video

LOADING = ("load", "text")
"""What is done once, before the first video; the text encoder is released at its end."""
WORKING = ("encode", "invert", "reconstruct", "edit", "decode", "write")
"""What is done with each video; *decode* makes the frames of the reconstruction and of the edit."""
STAGES = (*LOADING, *WORKING)

T = TypeVar("T")
EnterStage = Callable[[str], AbstractContextManager[None]]
"""Watches what runs inside a stage, by the stage's name."""


class Job:
    """A `Job` is a loaded model, its prompts encoded, and what it does with a video of noise.

    Args:
        args: Of the command line: the model, the steps and the kernel.
        enter: Watches the stages of loading.
        editor: How the video is edited.
        step_cache: Threshold of the step cache of its edits.
        offload: What waits in host memory.
        compiled: Whether blocks are compiled.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        enter: EnterStage,
        editor: Editor,
        *,
        step_cache: float | None = None,
        offload: Offload = "none",
        compiled: bool = False,
    ) -> None:
        with enter("load"):
            device = torch.device(args.device)
            parts = load_parts(args, () if offload == "none" else ("transformer", "vae"))
            self.engine = make_engine(
                parts,
                args.steps,
                prompts=make_prompts(parts, device, args.seed),
                editor=editor,
                device=device,
                attention=args.attention,
                step_cache=step_cache,
                compiled=compiled,
                offload=offload,
            )
        with enter("text"):
            for prompt in ("", PROMPTS[0]):
                self.engine.prompts(prompt)
            self.engine.prompts.release()
        self.video = make_video(parts.limits, args.seed)

    @torch.inference_mode()
    def run(self, enter: EnterStage) -> dict[str, Tensor]:
        """Do everything once.

        Args:
            enter: Watches the stages.

        Returns:
            The latents and the video of the reconstruction and of the edit, float32.
        """
        engine, request = self.engine, EditRequest(PROMPTS[0], guidance_scale=GUIDANCE_SCALE)
        with enter("encode"):
            latents = engine.encode(self.video)
        with enter("invert"):
            inversion = engine.invert(latents)
        with enter("reconstruct"):
            outputs = {"reconstructed latents": engine.reconstruct(inversion)}
        with enter("edit"):
            outputs["edited latents"] = engine.edit(inversion, request)
        with enter("decode"):
            outputs["reconstruction"], outputs["edit"] = (engine.decode(latents) for latents in outputs.values())
        with enter("write"), tempfile.TemporaryDirectory() as folder:
            for name in ("reconstruction", "edit"):
                frames = (outputs[name][0] * 255.0).round().to(torch.uint8)
                write_video(Path(folder) / f"{name}.mp4", frames, Fraction(8))
        return outputs


def run_fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a process of its own, which finds nothing loaded, compiled or allocated."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
