"""The variants that `inversion_error` measures are listed: every inverter, then one factor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, Inverter, State, UniInv
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Latents, Step, VelocityFn

from .loading import INVERTER

DEFAULT = "default"
"""The factor of what is measured at the default setting."""
PLAIN, OURS, DEEP = "DDIM", "UniInv", "UniInv, 5 more NFE next to clean"
"""Names of the baseline and of the recommended inverter, `UniInv` with extrapolation and extra evaluations."""
GUIDED = 6.0
"""Guidance scale of the guided ways back, under the clip's caption."""


@dataclass(frozen=True)
class Variant:
    """A `Variant` is one inversion a clip and seed, and its ways back.

    Args:
        name: The inverter, as tables and plots tell it.
        inverter: The method.
        factor: What differs from the default setting.
        steps: Steps of the schedule.
        spacing: As in `make_noise_schedule`.
        source_prompt: Invert and come back under the clip's caption instead of the empty prompt.
        guidance_scales: One way back each; any scale but 1 comes back under the clip's caption.
        seeds: Of a method that draws noise; one inversion each.
    """

    name: str
    inverter: Inverter
    factor: str = DEFAULT
    steps: int = 50
    spacing: Literal["trailing", "angle"] = "trailing"
    source_prompt: bool = False
    guidance_scales: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)

    def make_key(self, clip: int, seed: int) -> str:
        """Name the record of a clip by all that it depends on."""
        return f"{clip:03d}/{self.factor}/{self.steps} steps/{self.inverter!r}/{self.guidance_scales}/seed {seed}"


@dataclass(frozen=True)
class BFloat16(Inverter):
    """`BFloat16` rounds the state of an inverter after every step, as the reference script keeps its latents.

    Args:
        keep_residual: As the inner inverter's.
        inner: The method.
    """

    inner: Inverter = INVERTER

    def init(self, latents: Latents, generator: torch.Generator | None) -> State:  # noqa: D102
        return self.inner.init(latents, generator)

    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        return _round(self.inner.invert_step(velocity_fn, state, schedule, i))

    def denoise_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        return _round(self.inner.denoise_step(velocity_fn, state, schedule, i))

    def step_with_velocity(self, latents: Latents, velocity: Latents, state: State, step: Step) -> Latents:  # noqa: D102
        (denoised,) = _round((self.inner.step_with_velocity(latents, velocity, state, step),))
        return denoised

    def count_nfe(self, num_steps: int) -> int:  # noqa: D102
        return self.inner.count_nfe(num_steps)


def make_variants(steps: int, fewer: Sequence[int]) -> list[Variant]:
    """List what is measured.

    Args:
        steps: Of the default setting.
        fewer: Step counts to compare with it.
    """
    ddim = Variant(PLAIN, DDIM(), steps=steps)
    ours = Variant(OURS, INVERTER, steps=steps)
    fixed_point = Variant("FixedPoint", FixedPoint(), steps=steps)
    bdia = Variant("BDIA", BDIA(), steps=steps)
    published = Variant("UniInv as published", UniInv(), steps=steps)
    deep = Variant(DEEP, UniInv(first_step_iterations=5, extrapolate=True), steps=steps)
    edit_friendly = Variant("EditFriendly", EditFriendly(), steps=steps, seeds=(0, 1, 2))
    guided = [replace(variant, guidance_scales=(1.0, GUIDED)) for variant in (ddim, ours, bdia)]
    variants = [guided[0], published, guided[1], deep, fixed_point, guided[2], edit_friendly]
    for count in fewer:
        variants += [replace(variant, factor=f"{count} steps", steps=count) for variant in (ddim, ours)]
    variants += [replace(variant, factor="uniform angles", spacing="angle") for variant in (ddim, ours)]
    variants += [
        replace(
            variant,
            factor="bfloat16 latents",
            inverter=BFloat16(keep_residual=variant.inverter.keep_residual, inner=variant.inverter),
        )
        for variant in (ddim, ours, bdia)
    ]
    compared = (ddim, ours, fixed_point, bdia)
    variants += [replace(variant, factor="source prompt", source_prompt=True) for variant in compared]
    return variants


def _round(state: State) -> State:
    return tuple(entry.bfloat16().to(entry.dtype) if entry.is_floating_point() else entry for entry in state)
