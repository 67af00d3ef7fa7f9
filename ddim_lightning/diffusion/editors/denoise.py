"""The plain editor denoises under the new prompt, from the inverted latent or from noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import Editor, EditState, apply_mask, check_choice
from ddim_lightning.diffusion.editors.starts import STARTS, find_start_needs, make_start
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Branch, EditRequest, KVScale, Latents, Needs, Step


@dataclass(frozen=True)
class Denoise(Editor):
    """`Denoise` denoises a start under the new prompt, and does nothing else; other editors build on it.

    From the inverted latent it is the plain inversion edit; from noise it is sampling that knows nothing of the source.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``.
        initial: ``inverted`` starts from the trajectory; ``random`` from fresh noise, which for ``first_step > 0`` is
            mixed with the clean latents (SDEdit); ``k_rnr`` from K-order recursive noise.
        order: K of ``k_rnr``, >= 1.

    Raises:
        ValueError: An option out of its range.

    Source: Song et al. 2021, "Denoising diffusion implicit models", section 4.3.
    """

    initial: Literal["inverted", "random", "k_rnr"] = "inverted"
    order: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("initial", self.initial, tuple(STARTS))
        if self.order < 1:
            raise ValueError(f"order: must be at least 1, got {self.order}")
        if self.initial == "k_rnr" and self.first_step == 0:
            raise ValueError("first_step: k_rnr starts below pure noise, so it must be at least 1, got 0")

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        first = self.get_first_step(len(inversion.schedule))
        return EditState(make_start(self.initial, inversion, first, generator, self.order), request, num_layers)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:  # noqa: D102
        return [self.make_target(state.latents, state.request, step, inversion.schedule)], None

    def update(
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        """Return the state at level ``i + 1``: the inverter's step with the velocity of the first branch."""
        velocity = velocities[0]
        assert velocity is not None
        latents = inversion.inverter.step_with_velocity(state.latents, velocity, inversion.state, step)
        state = replace(state, carried=((step.angle, velocity), *state.carried[:1]))
        return apply_mask(state, latents, inversion, step.i + 1)

    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:  # noqa: D102
        return together * sum(self.count_target_nfe(request, schedule))

    def needs(self, request: EditRequest, schedule: NoiseSchedule, inverter: Inverter) -> Needs:
        """Return what its start reads; outside a mask, and for an inverter that steps by its state, it is all."""
        if request.mask is not None or self.finds_mask(request) or inverter.steps_by_state:
            return "levels"
        return find_start_needs(self.initial, schedule, self.get_first_step(len(schedule)))
