"""The whole job on one clip: every stage timed, counted and reported, and its result measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.engine import InversionEngine
from ddim_lightning.metrics.functional import psnr, ssim
from ddim_lightning.runtime.timing import StageTimer
from ddim_lightning.types import Clip, ClipResult, Edit, EditRequest, Frames, Latents, Progress, Stage, VideoLimits

Tick = Callable[..., None]


def make_clip_seed(seed: int, clip_id: str) -> int:
    """Return the seed of a clip: the same whatever its rank, its place in the run and its neighbours.

    Args:
        seed: The run's seed.
        clip_id: The clip's id.

    Returns:
        0 .. 2**63 - 1.
    """
    digest = hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_frames(frames: Frames, limits: VideoLimits) -> None:
    """Raise a ValueError unless frames (f, c, h, w) have a count and a size that the model can take."""
    num_frames, channels, height, width = frames.shape
    if channels != 3:
        raise ValueError(f"frames: must have shape (f, 3, h, w), got {tuple(frames.shape)}")
    if num_frames % limits.temporal != 1:
        raise ValueError(f"frames: their count must be {limits.temporal}k + 1, got {num_frames}")
    if height % limits.multiple or width % limits.multiple:
        raise ValueError(f"frames: height and width must be multiples of {limits.multiple}, got {height} x {width}")


@dataclass
class ClipJob:
    """One clip through encode, invert, reconstruct, edit and decode.

    Args:
        engine: The loaded model.
        clip: The clip.
        seed: Where every random number of this clip comes from.
        guidance_scale: Of the edits.
        reconstruct: Also reconstruct, and measure how well.
        save_trajectory: Keep the trajectory in the result.
        on_progress: Called when a stage starts and after each of its steps.
    """

    engine: InversionEngine
    clip: Clip
    seed: int
    guidance_scale: float
    reconstruct: bool = True
    save_trajectory: bool = False
    on_progress: Callable[[Progress], None] = lambda progress: None
    calls: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        clip = self.clip
        check_frames(clip.frames, self.engine.components.limits)
        self.timer = StageTimer(self.engine.device)
        self.requests = [
            EditRequest(prompt, clip.negative_prompt, clip.source_prompt, self.guidance_scale)
            for prompt in clip.prompts
        ]
        self.rows_left = sum(self._plan_rows())

    @torch.no_grad()
    def run(self) -> ClipResult:
        """Do the job.

        Returns:
            A result with status ``done``, everything in it on the CPU.
        """
        engine, num_steps = self.engine, len(self.engine.table)
        invert_rows, rebuild_rows, *edit_rows = self._plan_rows()
        source = self.clip.frames.to(engine.device)
        with self._stage("encode", "encode", 1) as tick:
            latents = engine.encode(source)
            tick()
        with self._stage("invert", "invert", num_steps, invert_rows) as tick:
            inversion = engine.invert(latents, seed=self.seed, callback=tick)
        self._check_finite("invert", inversion.levels)
        rebuilt = None
        if self.reconstruct:
            with self._stage("reconstruct", "reconstruct", num_steps, rebuild_rows) as tick:
                rebuilt = engine.reconstruct(inversion, callback=tick)
            self._check_finite("reconstruct", rebuilt)
        edited = []
        for k, (request, rows) in enumerate(zip(self.requests, edit_rows, strict=True), 1):
            with self._stage("edit", f"edit {k}/{len(self.requests)}", num_steps, rows) as tick:
                edited.append(engine.edit(inversion, request, seed=self.seed, callback=tick))
            self._check_finite("edit", edited[-1])
        return self._finish(source, latents, inversion, rebuilt, edited)

    def _finish(
        self, source: Frames, latents: Latents, inversion: Inversion, rebuilt: Latents | None, edited: list[Latents]
    ) -> ClipResult:
        """Decode what was made, measure it and gather the result."""
        result = ClipResult(replace(self.clip, frames=self.clip.frames.cpu()), "done", seed=self.seed)
        videos: list[Tensor] = []
        to_decode = [latents, *([] if rebuilt is None else [rebuilt]), *edited]
        with self._stage("decode", "decode", len(to_decode)) as tick:
            for clean in to_decode:
                videos.append(self.engine.decode(clean)[0])
                self._check_finite("decode", videos[-1])
                tick()
        with self.timer.stage("measure"):
            pixels = source.float() / 255.0
            ceiling, *videos = videos
            result.vae_round_trip = _quantise(ceiling)
            result.metrics["vae"] = _compare(ceiling, pixels)
            if rebuilt is not None:
                reconstruction, *videos = videos
                result.reconstruction = _quantise(reconstruction)
                result.metrics["reconstruction"] = _compare(reconstruction, pixels) | _compare(
                    reconstruction, ceiling, "_vs_vae"
                )
            result.edits = [
                Edit(request.prompt, _quantise(video), clean.cpu(), _compare(video, pixels, "_vs_source"))
                for request, video, clean in zip(self.requests, videos, edited, strict=True)
            ]
        result.trajectory = inversion.to_dict() if self.save_trajectory else None
        result.seconds, result.peak_gib, result.calls = dict(self.timer.seconds), self.timer.peak_gib, self.calls
        result.warnings = [*self.clip.warnings, *self.engine.prompts.get_warnings(self._list_prompts())]
        return result

    def _check_finite(self, stage: Stage, values: Tensor) -> None:
        if not values.isfinite().all():
            dtype = str(self.engine.components.transformer.dtype).removeprefix("torch.")
            raise ValueError(f"{stage}: values must stay finite, got infinity or NaN with dtype {dtype}")

    def _plan_rows(self) -> list[int]:
        """Rows of the inversion, of the reconstruction and of each edit."""
        engine, num_steps = self.engine, len(self.engine.table)
        edits = [engine.editor.count_calls(request, num_steps) for request in self.requests]
        return [engine.inverter.count_calls(num_steps), num_steps if self.reconstruct else 0, *edits]

    def _list_prompts(self) -> list[str]:
        prompts = [self.engine.inversion_prompt, *self.clip.prompts, self.clip.negative_prompt]
        return prompts if self.clip.source_prompt is None else [*prompts, self.clip.source_prompt]

    @contextmanager
    def _stage(self, stage: Stage, label: str, total: int, rows: int = 0) -> Iterator[Tick]:
        """Time a stage, count its rows, and hand out the function to call after each of its steps."""
        done, before = 0, self.engine.denoiser.rows
        self.rows_left -= rows

        def report() -> None:
            self.on_progress(Progress(self.clip.id, stage, label, done, total, rows / max(total, 1), self.rows_left))

        def tick(*_: object) -> None:
            nonlocal done
            done += 1
            report()

        report()
        with self.timer.stage(stage):
            yield tick
        if rows:
            self.calls[stage] = self.calls.get(stage, 0) + self.engine.denoiser.rows - before


def _quantise(video: Tensor) -> Frames:
    return (video * 255.0).round().to(torch.uint8).cpu()


def _compare(video: Tensor, reference: Tensor, suffix: str = "") -> dict[str, float]:
    return {f"psnr{suffix}": psnr(video, reference), f"ssim{suffix}": ssim(video, reference)}
