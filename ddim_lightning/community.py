"""The pipeline of diffusers' community folder is called as it is there, and runs on the engine."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction

import torch
from diffusers import CogVideoXPipeline, DDIMInverseScheduler
from torch import Tensor

from ddim_lightning.data.video import read_clip, read_info, write_video
from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.editors.base import EditState
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.engine.config import Schedule
from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.schedulers import adopt_scheduler
from ddim_lightning.models.vae import decode_latents, encode_video, quantize
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.runtime.autocast import without_autocast
from ddim_lightning.types import EditRequest, Latents


@dataclass(frozen=True)
class CogVideoXDDIMInversionOutput:
    """A `CogVideoXDDIMInversionOutput` holds the latents after every step of both directions.

    Args:
        inverse_latents: (steps, 1, f, c, h, w) float32; the last is the inverted noise.
        recon_latents: (steps, 1, f, c, h, w) float32; the last is the edited video's clean latents.
    """

    inverse_latents: Tensor
    recon_latents: Tensor


class CogVideoXPipelineForDDIMInversion(CogVideoXPipeline):  # type: ignore[misc]  # diffusers has no types
    """A `CogVideoXPipelineForDDIMInversion` takes the call of diffusers' community pipeline of this name.

    It is loaded, moved and given LoRA as any `CogVideoXPipeline`. In float32 its numbers are those of the community
    pipeline where that one draws from the generator of ``seed``: after ``torch.manual_seed(seed)``. It is there to
    compare with and to change over; `DDIMInversionModule` has the better methods.

    Source: diffusers, ``examples/community/cogvideox_ddim_inversion.py``.
    """

    @property
    def inverse_scheduler(self) -> DDIMInverseScheduler:
        """The scheduler of inversions, on the noise levels of `scheduler`, which is the one to replace."""
        return adopt_scheduler(self.scheduler)[1]

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        video_path: str,
        guidance_scale: float,
        num_inference_steps: int,
        skip_frames_start: int,
        skip_frames_end: int,
        frame_sample_step: int | None,
        max_num_frames: int,
        width: int,
        height: int,
        seed: int,
    ) -> CogVideoXDDIMInversionOutput:
        """Invert a video under the empty prompt, and rebuild it from noise under a new one by K/V injection.

        Args:
            prompt: What the edited video shows.
            video_path: A video file, or a folder of numbered images.
            guidance_scale: Classifier-free guidance scale of the edit, >= 1; 1 turns guidance off.
            num_inference_steps: Steps of either direction, 1 .. 1000.
            skip_frames_start: Frames left out at the start, >= 0.
            skip_frames_end: Frames left out at the end, >= 0.
            frame_sample_step: Distance between frames where more than ``max_num_frames`` are left; ``None`` spreads
                them.
            max_num_frames: Most frames taken, >= 5; their number is rounded down to 4k + 1.
            width: Of the frames in pixels; they are stretched to it.
            height: Of the frames in pixels, likewise.
            seed: Seed of the posterior's sample and of the noise that the edit starts from.

        Raises:
            ValueError: An argument that cannot be honored, or a model that is not supported.
            OSError: The video cannot be read.
        """
        if not 1.0 <= guidance_scale < math.inf:
            raise ValueError(f"guidance_scale: must be 1 (off) or more, got {guidance_scale}")
        schedule = Schedule(num_inference_steps=num_inference_steps)
        module = DDIMInversionModule.from_pipeline(self, inverter=DDIM(), schedule=schedule)
        limits = module.video_limits
        if limits.patch_frames > 1 or limits.needs_image:
            kind = "CogVideoX1.5" if limits.patch_frames > 1 else "an image-to-video model"
            raise ValueError(f"transformer: must be of CogVideoX-5B's kind here, got {kind}; use DDIMInversionModule")
        chosen = choose_frames(
            read_info(video_path).num_frames,
            limits,
            skip_frames_start=skip_frames_start,
            skip_frames_end=skip_frames_end,
            frame_sample_step=frame_sample_step,
            max_num_frames=max_num_frames,
        )
        where = {"start": chosen.start, "num_frames": len(chosen), "stride": chosen.step}
        frames, _, choice = read_clip(video_path, limits=limits, height=height, width=width, fit="stretch", **where)
        for note in choice.notes:
            warnings.warn(f"video_path: {note}", stacklevel=3)
        module.load(self._execution_device)
        engine = module.engine
        generator = torch.Generator(engine.device).manual_seed(seed)
        with without_autocast(engine.device):
            latents = encode_video(self.vae, frames[None], generator)
        noise = torch.empty_like(latents, dtype=self.vae.dtype).normal_(generator=generator).to(latents)
        engine.start_stage()
        denoiser = CogVideoXDenoiser(engine.network, engine.prompts)  # without windows, whatever the length
        with self.progress_bar(total=2 * num_inference_steps) as bar:
            inversion = invert(denoiser, latents, engine.schedule, engine.inverter, callback=lambda *_: bar.update())
            recon: list[Latents] = []

            def keep(_: object, latents: Latents) -> None:
                recon.append(latents)
                bar.update()

            request = EditRequest(prompt, guidance_scale=float(guidance_scale))
            edit(denoiser, inversion, _FromNoise(source_rows="paired", noise=noise), request, callback=keep)
        return CogVideoXDDIMInversionOutput(inversion.levels[:-1].flip(0), torch.stack(recon))

    @torch.no_grad()
    def export_latents_to_video(self, latents: Latents, video_path: str, fps: int) -> None:
        """Decode latents and write them as mp4.

        Args:
            latents: (1, f, c, h, w), scaled.
            video_path: The file; its folder is made.
            fps: Frames per second, > 0.
        """
        with without_autocast(self.vae.device):
            video = quantize(decode_latents(self.vae, latents)[0])
        write_video(video_path, video, Fraction(fps))


def choose_frames(
    total: int,
    limits: VideoLimits,
    *,
    skip_frames_start: int,
    skip_frames_end: int,
    frame_sample_step: int | None,
    max_num_frames: int,
) -> range:
    """Choose frames of a clip as the community pipeline does; see `CogVideoXPipelineForDDIMInversion`.

    Args:
        total: Frames the clip has.
        limits: What the model takes: 4k + 1 frames, 4 being ``limits.temporal``.
        skip_frames_start: Frames left out at the start, >= 0.
        skip_frames_end: Frames left out at the end, >= 0.
        frame_sample_step: Distance between frames, >= 1, where more than ``max_num_frames`` are left.
        max_num_frames: Most frames taken.

    Returns:
        The indices of 4k + 1 frames, at least 5.

    Raises:
        ValueError: An argument out of its range, or too few frames left.
    """
    for name, value in (("skip_frames_start", skip_frames_start), ("skip_frames_end", skip_frames_end)):
        if value < 0:
            raise ValueError(f"{name}: must not be negative, got {value}")
    if frame_sample_step is not None and frame_sample_step < 1:
        raise ValueError(f"frame_sample_step: must be at least 1, or None, got {frame_sample_step}")
    if max_num_frames <= limits.temporal:
        raise ValueError(f"max_num_frames: must be at least {limits.temporal + 1}, got {max_num_frames}")
    left = max(0, total - skip_frames_start - skip_frames_end)
    step = 1 if left <= max_num_frames else frame_sample_step or left // max_num_frames
    if frame_sample_step not in (None, step):
        rule = f"has no effect where at most max_num_frames={max_num_frames} frames are left, here {left}"
        warnings.warn(f"frame_sample_step: {rule}", stacklevel=4)
    chosen = range(skip_frames_start, skip_frames_start + left, step)[:max_num_frames]
    if len(chosen) <= limits.temporal:
        names = "skip_frames_start, skip_frames_end, frame_sample_step"
        raise ValueError(f"{names}: must leave at least {limits.temporal + 1} of {total} frames, got {len(chosen)}")
    lost = (len(chosen) - 1) % limits.temporal
    if lost:
        rule = f"the count must be {limits.temporal}k + 1, so {len(chosen) - lost} of {len(chosen)} frames are taken"
        warnings.warn(f"max_num_frames: {rule}", stacklevel=4)
    return chosen[: len(chosen) - lost]


@dataclass(frozen=True)
class _FromNoise(KVInjection):
    """A `_FromNoise` is the editor of the community pipeline, started from the very noise that it draws."""

    noise: Latents | None = None

    def start(
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        assert self.noise is not None
        return EditState(self.noise, request, num_layers)
