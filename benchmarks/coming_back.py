"""A clip is inverted by a method and comes back; both are measured, and what comes back is compared with the clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.sampling import reconstruct
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.metrics.diagnosis import describe_color, describe_noise, level_errors
from ddim_lightning.metrics.latents import relative_l2
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.types import Branch, Context, Denoiser, Frames, KVScale, Latents, Step, Video

from .inversion_variants import Variant
from .measuring import watch

WITHOUT, RESIDUAL = "without_residual", "with_residual"
"""What a way back leads to, before and after the kept residual is added."""

Show = Callable[[str, Video], None]
"""(`WITHOUT` or `RESIDUAL`, what came back, (1, f, c, h, w) in 0 .. 1)."""


class Clip:
    """A `Clip` is frames, their latents and their VAE round trip.

    Args:
        engine: The loaded model.
        frames: (f, c, h, w) uint8, as the model takes them.
        caption: Describes them; empty where nothing does.
    """

    def __init__(self, engine: InversionEngine, frames: Frames, caption: str = "") -> None:
        self.engine, self.frames, self.caption = engine, frames, caption
        self.latents = engine.encode(frames)
        needs_image = engine.components.limits.needs_image
        self.image_latents = engine.encode_image(frames[0], self.latents.shape[1]) if needs_image else None
        self.round_trip = engine.decode(self.latents, len(frames))

    @property
    def source(self) -> Tensor:
        """The frames as doubles in 0 .. 1, where the model works."""
        return self.frames.to(self.round_trip.device).double() / 255

    def describe(self) -> dict[str, Any]:
        """Return what the VAE alone does to it."""
        source, round_trip = self.source, self.round_trip[0].double()
        return {
            "caption": self.caption,
            "squared_error": float((round_trip - source).square().mean()),
            "source": describe_color(source),
            "round_trip": describe_color(round_trip),
        }

    def compare(self, latents: Latents, video: Video) -> dict[str, float]:
        """Compare reconstructed latents with the clip's own, and their video with the VAE round trip and the source."""
        returned = video[0].double()
        return {
            "squared_error": float((returned - self.round_trip[0].double()).square().mean()),
            "squared_error_to_source": float((returned - self.source).square().mean()),
            "relative_l2": relative_l2(latents, self.latents),
            **describe_color(returned),
        }


class GuidedDenoiser:
    """A `GuidedDenoiser` evaluates another prompt, with guidance: not what the inversion was made under.

    Args:
        denoiser: The model.
        prompt: Its prompt.
        guidance_scale: Classifier-free guidance, away from the empty prompt.
    """

    def __init__(self, denoiser: Denoiser, prompt: str, guidance_scale: float) -> None:
        self.denoiser, self.prompt, self.guidance_scale = denoiser, prompt, guidance_scale

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.denoiser.num_layers

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Evaluate all branches under the prompt; see `Denoiser`."""
        guided = [replace(branch, prompt=self.prompt, guidance_scale=self.guidance_scale) for branch in branches]
        return self.denoiser(guided, step, kv_scale)

    def hold(self, branch: Branch) -> Context:
        """Hold a branch as it is; an inversion has none."""
        return self.denoiser.hold(branch)


def measure_variant(
    engine: InversionEngine, clip: Clip, variant: Variant, seed: int, show: Show | None = None
) -> dict[str, Any]:
    """Invert a clip and come back, every way that the variant asks for.

    Args:
        engine: The loaded model; its own schedule and inverter are not used.
        clip: The clip.
        variant: The method.
        seed: Of a method that draws random numbers.
        show: Called with each video that comes back.
    """
    scheduler = engine.components.scheduler
    schedule = make_noise_schedule(scheduler, variant.steps, spacing=variant.spacing)
    engine, before = replace(engine, schedule=schedule, inverter=variant.inverter), engine.nfe
    prompt = clip.caption if variant.source_prompt else ""
    with watch(engine.device) as cost:
        inversion = engine.invert(clip.latents, prompt=prompt, image_latents=clip.image_latents, seed=seed)
    return {
        **cost,
        "nfe": engine.nfe - before,
        "angles": list(schedule.angles),
        "noise": describe_noise(inversion.levels[0]),
        "back": [come_back(engine, clip, inversion, scale, show) for scale in variant.guidance_scales],
    }


def come_back(
    engine: InversionEngine, clip: Clip, inversion: Inversion, guidance_scale: float, show: Show | None = None
) -> dict[str, Any]:
    """Reconstruct from the inverter's state and the residual alone, and measure what came of it with and without it."""
    bare = replace(inversion, levels=inversion.levels[:0])
    guided = guidance_scale != 1.0
    denoiser = GuidedDenoiser(engine.denoiser, clip.caption, guidance_scale) if guided else engine.denoiser
    passed = [bare.state[0]]
    before = engine.nfe
    with watch(engine.device) as cost:
        latents = reconstruct(denoiser, bare, callback=lambda step, latents: passed.append(latents))
    nfe = engine.nfe - before
    # The last step leads to what there is without the residual, which `reconstruct` adds after it.
    ends = {WITHOUT: passed[-1]} if bare.residual is None else {WITHOUT: passed[-1], RESIDUAL: latents}
    compared = {}
    for name, end in ends.items():
        video = engine.decode(end, len(clip.frames))
        compared[name] = clip.compare(end, video)
        if show is not None:
            show(name, video)
    return {
        "guidance_scale": guidance_scale,
        **cost,
        "nfe": nfe,
        "level_errors": level_errors(inversion.levels, passed),
        **compared,
    }
