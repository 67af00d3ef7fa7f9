"""An in-context edit draws from noise while it reads the clean source, as its adapter was trained to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ddim_lightning.diffusion.editors.base import Editor, EditState, get_source_prompt
from ddim_lightning.diffusion.editors.starts import make_start
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import add_noise, denoise_step
from ddim_lightning.types import Branch, EditRequest, KVScale, Latents, Needs, Step


@dataclass(frozen=True)
class InContextEdit(Editor):
    """`InContextEdit` draws the edit from noise, which attends to the keys and values of the clean source all along.

    The source does not depend on the step: it is evaluated once a clip, and serves all steps, prompts and rows of
    guidance. So N steps cost 1 + N NFE, or 1 + 2 N with guidance; four steps are enough. Nothing of an inversion but
    the clean latents is read with a ``first_step`` of 0.

    It is meant for a model that was trained for it (`InContextEditing`); another one takes the source for noise.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``. A later
            start is the inverted latent, which shows the source already; the model has to be trained for that.
        source_timestep: Training timestep the model is told of the source, 0 (the cleanest) .. 999; that of its
            training.
        identity_residual: a, 0 .. 1: how much is given back of what copying loses, ``z + a (source - copy)``. The copy
            is an edit to the source prompt from the same noise, at as many NFE again. With 1 an edit to the source
            prompt returns the source exactly. It keeps more, and costs words.

    Raises:
        ValueError: An option out of its range.

    Source: He et al. 2025, "FullDiT2", arXiv:2506.04213 (a context whose keys and values are computed once); Ye et al.
    2025, "UNIC", arXiv:2506.04216 (editing as attention to the source's tokens); under a mask Avrahami et al. 2022,
    "Blended latent diffusion", arXiv:2206.02779, algorithm 1.
    """

    source_timestep: int = 0
    identity_residual: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.source_timestep <= 999:
            raise ValueError(f"source_timestep: must lie in 0 .. 999, got {self.source_timestep}")
        if not 0.0 <= self.identity_residual <= 1.0:
            raise ValueError(f"identity_residual: must lie in 0 .. 1, got {self.identity_residual}")

    def make_context(self, inversion: Inversion, request: EditRequest) -> Branch:
        """Return the clean source under its own prompt, at its own timestep."""
        prompt = get_source_prompt(request, inversion)
        return Branch(inversion.clean, prompt, timestep=self.source_timestep)

    @property
    def context_nfe(self) -> int:  # noqa: D102
        return 1

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        first, clean = self.get_first_step(len(inversion.schedule)), inversion.clean
        latents = make_start("inverted" if first else "random", inversion, first, generator, order=1)
        angle = inversion.schedule.angles[first]
        noise = (latents - math.cos(angle) * clean) / math.sin(angle)
        # A tensor of its own: where edits have the same one, they share its branch.
        copy = latents.clone() if self.identity_residual > 0.0 else None
        return EditState(latents, request, num_layers, noise=noise, copy=copy)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:  # noqa: D102
        target = self.make_target(state.latents, state.request, step, inversion.schedule)
        target = replace(target, context=state.context)
        if state.copy is None:
            return [target], None
        prompt, image = get_source_prompt(state.request, inversion), inversion.image_latents
        return [target, replace(target, latents=state.copy, prompt=prompt, image_latents=image)], None

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        clean, last = inversion.clean, step.i == len(inversion.schedule) - 1
        assert state.noise is not None
        outside = clean if last else add_noise(clean, state.noise, step.angle_next)

        def move(latents: Latents, velocity: Latents | None) -> Latents:
            assert velocity is not None
            moved, mask = denoise_step(latents, velocity, step), state.request.mask
            return moved if mask is None else outside + mask * (moved - outside)

        latents = move(state.latents, velocities[0])
        if state.copy is None:
            return replace(state, latents=latents)
        copy = move(state.copy, velocities[1])
        if last:
            # In this order nothing is left of equal edits with a residual of 1, not even rounding.
            latents = torch.lerp(latents, clean + (latents - copy), self.identity_residual)
        return replace(state, latents=latents, copy=copy)

    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:  # noqa: D102
        branches = 1 if self.identity_residual == 0.0 else 2
        return self.context_nfe + together * branches * sum(self.count_target_nfe(request, schedule))

    def needs(self, request: EditRequest, schedule: NoiseSchedule, inverter: Inverter) -> Needs:
        """Return ``clean``, unless the edit starts on the trajectory or a mask is made from velocities."""
        return "levels" if self.get_first_step(len(schedule)) or self.finds_mask(request) else "clean"
