"""A clip goes through the whole job: every stage is timed, counted and reported, and the result is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.masks import pool_mask
from ddim_lightning.diffusion.padding import pad_front
from ddim_lightning.diffusion.sampling import edit_together, invert, make_contexts, reconstruct
from ddim_lightning.engine.clip_plan import make_plan
from ddim_lightning.engine.clip_rules import (
    check_first_frame,
    check_frames,
    check_latents,
    check_mask,
    check_prompts,
    find_untrained,
    get_source_prompts,
)
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.decoding import DecodedVideo, measure_decoded
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.measuring import SourceMeter
from ddim_lightning.engine.trajectory import check_fingerprint, keep_levels, make_fingerprint, read_trajectory
from ddim_lightning.limits import count_latent_frames
from ddim_lightning.metrics.diagnosis import describe_noise, diagnose, level_errors
from ddim_lightning.metrics.functional import use_full_precision
from ddim_lightning.metrics.measurer import Measurer
from ddim_lightning.runtime.timing import StageTimer
from ddim_lightning.types import (
    Clip,
    ClipResult,
    Context,
    Edit,
    EditRequest,
    Latents,
    Progress,
    Stage,
)

Tick = Callable[..., None]


def make_clip_seed(seed: int, clip_id: str) -> int:
    """Return the seed of a clip: the same whatever its rank, its place in the run and its neighbors.

    Args:
        seed: The run's seed.
        clip_id: The clip's id.

    Returns:
        0 .. 2**63 - 1.
    """
    digest = hashlib.sha256(f"{seed}/{clip_id}".encode(errors="backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class ClipJob:
    """A `ClipJob` takes one clip through encode, invert, reconstruct, edit and decode, as far as they are asked for.

    Args:
        engine: The loaded model.
        clip: The clip.
        seed: Where every random number of this clip comes from.
        guidance_scale: Guidance scale of the edits.
        outputs: What is made of the clip beside its edits.
        batch_prompts: Make all edits in one network pass a step, with what they have in common evaluated once.
        on_progress: Called when a stage starts and after each of its steps.
        measurer: Measures what the outputs ask for beside PSNR and SSIM.

    Raises:
        ValueError: Frames that the model cannot take, or a request without something that the editor needs.
    """

    engine: InversionEngine
    clip: Clip
    seed: int
    guidance_scale: float
    outputs: Outputs = field(default_factory=Outputs)
    batch_prompts: bool = False
    on_progress: Callable[[Progress], None] = lambda progress: None
    measurer: Measurer | None = None
    nfe: dict[str, int] = field(default_factory=dict, init=False)
    stage: Stage = field(default="encode", init=False)
    """Which one is at work."""

    def __post_init__(self) -> None:
        clip = self.clip = _move_to_host(self.clip)
        limits = self.engine.components.limits
        check_frames(clip.frames, limits)
        check_first_frame(clip, limits)
        if clip.mask is not None:
            check_mask(clip.mask, clip.frames)
        if clip.latents is not None:
            check_latents(clip.latents, self.engine.components, clip.frames)
        self.num_windows = self.engine.count_windows(count_latent_frames(len(clip.frames), limits))
        check_prompts(clip)
        self.timer = StageTimer(self.engine.device)
        self.requests = [
            EditRequest(prompt, clip.negative_prompt, source, self.guidance_scale)
            for prompt, source in zip(clip.prompts, get_source_prompts(clip), strict=True)
        ]
        self._plan = make_plan(
            self.engine,
            clip,
            self.requests,
            self.outputs,
            batch_prompts=self.batch_prompts,
            num_windows=self.num_windows,
        )
        self._warnings = [*clip.warnings, *find_untrained(clip.frames, limits), *self._plan.warnings]
        self.nfe_left = self._plan.nfe

    @torch.no_grad()
    def run(self) -> ClipResult:
        """Do the job.

        Returns:
            A result with status ``done``, everything in it on the CPU.

        Raises:
            ValueError: No source prompt where the inversion wants one, a stored trajectory of something else, a mask of
                the wrong size, or latents that do not stay finite.
        """
        engine, source = self.engine, self.clip.frames
        prompt = self.clip.source_prompt if engine.inversion_prompt is None else engine.inversion_prompt
        if prompt is None:
            raise ValueError("source_prompt: must be given where inversion_prompt is null, got None")
        image = None
        with self._stage("encode", "encode", 1) as tick:
            given = self.clip.latents
            latents = engine.encode(source) if given is None else given.to(engine.device, torch.float32)
            latents = engine.group.take_first(latents)
            if engine.components.limits.needs_image:
                image = engine.group.take_first(engine.encode_image(source[0], latents.shape[1]))
                self._place_first_frame(latents)
            # Those of a long clip, and with them its trajectory, stay on the host; windows come to the device.
            latents = latents.cpu() if self.num_windows > 1 else latents
            tick()
        self._place_mask(latents)
        if self._plan.inverts:
            with self._stage("invert", "invert", len(engine.schedule), self._plan.invert_nfe) as tick:
                if self._plan.stored is None:
                    inversion = invert(
                        engine.denoiser,
                        latents,
                        engine.schedule,
                        engine.inverter,
                        prompt=prompt,
                        image_latents=image,
                        generator=self._make_generator(),
                        callback=tick,
                    )
                else:
                    inversion = self._load_trajectory(self._plan.stored, prompt, latents.device)
            self._check_finite("invert", inversion.levels)
        else:  # nothing asks for one
            inversion = Inversion.of_clean(latents, engine.schedule, engine.inverter, prompt, image)
        returned = None
        if self.outputs.reconstruct:
            returned = [inversion.state[0]]
            with self._stage("reconstruct", "reconstruct", len(engine.schedule), self._plan.reconstruct_nfe) as tick:
                returned[-1] = reconstruct(engine.denoiser, inversion, callback=keep_levels(returned, tick))
            self._check_finite("reconstruct", returned[-1])
        edited, measured = self._edit(inversion), self._measure_levels(inversion, returned)
        trajectory = inversion.to_dict() if self.outputs.save_trajectory else None
        reconstructed = None if returned is None else returned[-1]
        del inversion, returned  # decoding needs their room
        return self._finish(latents, reconstructed, edited, measured, trajectory)

    def _load_trajectory(self, path: Path, prompt: str, device: torch.device) -> Inversion:
        """Take the trajectory of a former run instead of an inversion."""
        tensors, metadata = read_trajectory(path)
        fingerprint = make_fingerprint(self.engine, self.clip, prompt)
        check_fingerprint(metadata.get("fingerprint", {}), fingerprint, str(path))
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        return Inversion.from_dict(on_device, self.engine.inverter, prompt)

    def _edit(self, inversion: Inversion) -> list[Latents]:
        """Make the edits, one after the other or all in one pass."""
        engine, count = self.engine, len(self.requests)
        num_steps = len(engine.schedule) - engine.editor.get_first_step(len(engine.schedule))
        together = self.batch_prompts and count > 1
        passes = [self.requests] if together else [[request] for request in self.requests]
        edited: list[Latents] = []
        contexts: list[Context | None] = []
        shared = self.num_windows * engine.editor.context_nfe
        for k, requests in enumerate(passes, 1):
            label = f"edits 1-{count}" if together else f"edit {k}/{count}"
            generators = [self._make_generator() for _ in requests]
            nfe = (self._plan.edit_nfe - shared) // len(passes) + (shared if k == 1 else 0)
            with self._stage("edit", label, num_steps, nfe) as tick:
                contexts = contexts or make_contexts(engine.edit_denoiser, inversion, engine.editor, self.requests)
                edited += edit_together(
                    engine.edit_denoiser,
                    inversion,
                    engine.editor,
                    requests,
                    generators=generators,
                    contexts=contexts[k - 1 :][: len(requests)],
                    cache=engine.make_step_cache(),
                    callback=tick,
                )
        for latents in edited:
            self._check_finite("edit", latents)
        return edited

    def _measure_levels(self, inversion: Inversion, returned: list[Latents] | None) -> dict[str, Any]:
        """Return what `diagnose` is told of the levels; nothing of an inversion that was not made."""
        if not inversion.was_made:
            return {}
        with self.timer.stage("measure"), use_full_precision(inversion.levels.device):
            errors = None if returned is None else level_errors(inversion.levels, returned)
            return {"noise": describe_noise(inversion.levels[0]), "errors": errors}

    def _make_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _place_mask(self, latents: Latents) -> None:
        """Bring the clip's mask to the size of its latents, and into the requests."""
        if self.clip.mask is None:
            return
        spatial = self.clip.frames.shape[-1] // latents.shape[-1]
        limits = self.engine.components.limits
        mask = pad_front(pool_mask(self.clip.mask, limits.temporal, spatial), limits.patch_frames).to(latents)
        self.requests = [replace(request, mask=mask) for request in self.requests]

    def _place_first_frame(self, latents: Latents) -> None:
        """Bring the clip's first frame to the size of its latents, and into the requests."""
        if self.clip.first_frame is None or not self.requests:
            return
        image = self.engine.group.take_first(self.engine.encode_image(self.clip.first_frame, latents.shape[1]))
        self.requests = [replace(request, image_latents=image) for request in self.requests]

    def _finish(
        self,
        latents: Latents,
        reconstructed: Latents | None,
        edited: list[Latents],
        measured: dict[str, Any],
        trajectory: dict[str, Tensor] | None,
    ) -> ClipResult:
        """Decode what was made, measure it and gather the result."""
        result = ClipResult(self.clip, "done", seed=self.seed, trajectory=trajectory)
        source = self.clip.frames

        def decode(
            clean: Latents, references: dict[str, Tensor], keep: bool = False, prompt: str | None = None
        ) -> DecodedVideo:
            pieces, check = self.engine.stream(clean, len(source)), partial(self._check_finite, "decode")
            meter = self._make_meter(prompt, next(iter(references)))
            decoded = measure_decoded(pieces, references, self.timer, check, keep=keep, meter=meter)
            self._warnings += [] if meter is None else meter.warnings
            tick()
            return decoded

        reconstruction = None
        with self._stage("decode", "decode", 1 + (reconstructed is not None) + len(edited)) as tick:
            shown = self.clip.source_prompt
            ceiling = decode(latents, {"": source}, keep=reconstructed is not None, prompt=shown)
            result.vae_round_trip, result.metrics["vae"] = ceiling.frames, ceiling.metrics
            if reconstructed is not None:
                assert ceiling.video is not None
                reconstruction = decode(reconstructed, {"": source, "_vs_vae": ceiling.video}, prompt=shown)
                ceiling.video = None
                result.reconstruction = reconstruction.frames
                result.metrics["reconstruction"] = reconstruction.metrics
            for request, clean in zip(self.requests, edited, strict=True):
                video = decode(clean, {"_vs_source": source}, prompt=request.prompt)
                result.edits.append(Edit(request.prompt, video.frames, clean.cpu(), video.metrics))
        if measured:
            after = None if reconstruction is None else reconstruction.color
            result.diagnosis = diagnose(**measured, source=ceiling.color, reconstruction=after)
        windows = self.engine.denoiser.windows
        if windows is not None and self.num_windows > 1:
            result.windows = {"count": self.num_windows, "frames": windows.length, "overlap": windows.overlap}
        result.seconds, result.peak_gib, result.nfe = dict(self.timer.seconds), self.timer.peak_gib, self.nfe
        result.warnings = [*dict.fromkeys(self._warnings), *self.engine.prompts.get_warnings(self._list_prompts())]
        return result

    def _make_meter(self, prompt: str | None, suffix: str) -> SourceMeter | None:
        if self.measurer is None:
            return None
        with use_full_precision(self.engine.device):
            return SourceMeter(self.measurer.start(prompt), self.clip, suffix)

    def _check_finite(self, stage: Stage, values: Tensor) -> None:
        # Clean latents and pixels are of order one. Where they leave the range of float16 their squares overflow next,
        # inside a norm layer, which makes zeros of them: finite, and nothing that was asked for. An inversion of one
        # step may end further out, and comes back.
        most = torch.finfo(torch.float32 if stage == "invert" else torch.float16).max
        largest = float(values.abs().max())  # NaN where one value is
        if not largest <= most:
            dtype = str(self.engine.components.transformer.dtype).removeprefix("torch.")
            got = f"{largest:.3g} with dtype {dtype} and guidance_scale {self.guidance_scale:g}"
            raise ValueError(f"{stage}: values must stay finite, got {got}, which is an overflow")

    def _list_prompts(self) -> list[str]:
        prompts = [self.engine.inversion_prompt or "", *self.clip.prompts, self.clip.negative_prompt]
        return [*prompts, *filter(None, [self.clip.source_prompt, *self.clip.source_prompts])]

    @contextmanager
    def _stage(self, stage: Stage, label: str, total: int, nfe: int = 0) -> Iterator[Tick]:
        """Time a stage, count its NFE, and hand out the function to call after each of its steps."""
        done, before, self.stage = 0, self.engine.nfe, stage
        self.nfe_left -= nfe
        uses_network = stage in ("invert", "reconstruct", "edit")
        windows = self.num_windows if uses_network else 1

        def report() -> None:
            per_step = nfe / max(total, 1)
            self.on_progress(Progress(self.clip.id, stage, label, done, total, per_step, self.nfe_left, windows))

        def tick(*_: object) -> None:
            nonlocal done
            done += 1
            report()

        report()
        # Of decoding each piece is timed, for pieces are decoded and measured in turns.
        with nullcontext() if stage == "decode" else self.timer.stage(stage), self.engine.stage(stage):
            yield tick
        if uses_network:
            self.nfe[stage] = self.nfe.get(stage, 0) + self.engine.nfe - before


def _move_to_host(clip: Clip) -> Clip:
    """Return a clip whose tensors are on the CPU, from where they come to the device a few frames at a time.

    Latents are made float32 again: a Trainer in half precision rounds those that a data module yields.
    """
    tensors = {name: getattr(clip, name) for name in ("frames", "mask", "first_frame")}
    moved = {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}
    return replace(clip, **moved, latents=None if clip.latents is None else clip.latents.cpu().float())
