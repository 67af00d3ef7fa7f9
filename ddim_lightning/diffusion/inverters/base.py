"""An inverter has a step towards noise, and the denoising step that it inverts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import denoise_step
from ddim_lightning.types import Latents, Step, VelocityFn

State = tuple[Tensor, ...]
"""What an inverter carries from step to step; the first entry is always the current latents."""


@dataclass(frozen=True)
class Inverter(ABC):
    """An `Inverter` is one inversion step, towards noise, and the denoising step that it inverts.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name.

    Args:
        keep_residual: Keep what the last denoising step misses, ``z - denoise_step(level N - 1)``, one latent, so that
            `reconstruct` can add it back. The step next to clean is by far the largest of the trailing schedule and
            leaves most of the error. Costs 1 NFE.
    """

    keep_residual: bool = True

    def init(self, latents: Latents, generator: torch.Generator | None) -> State:
        """Return the state at level N.

        Args:
            latents: Clean latents, (b, f, c, h, w) float32.
            generator: Source of every random number of a method that draws any.
        """
        return (latents,)

    @abstractmethod
    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:
        """Invert one denoising step: return the state at level ``i`` from that at level ``i + 1``.

        Args:
            velocity_fn: The model under the inversion's prompt, without guidance.
            state: The state at level ``i + 1``.
            schedule: The noise schedule.
            i: Position of the step, N - 1 first and 0 last.

        Returns:
            The state at level ``i``.
        """

    def denoise_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:
        """Denoise from level ``i`` to ``i + 1``: `step_with_velocity` with the model's velocity at level ``i``."""
        latents, *rest = state
        return (self.step_with_velocity(latents, velocity_fn(latents, schedule[i]), state, schedule[i]), *rest)

    def step_with_velocity(self, latents: Latents, velocity: Latents, state: State, step: Step) -> Latents:
        """Denoise latents from level ``i`` to ``i + 1`` with a given velocity; editors step their branches with it.

        Args:
            latents: At level ``i``; an edit's, or the inverter's own.
            velocity: There, guidance applied.
            state: The inverter's state: a method that keeps more than latents finds it here.
            step: The step.
        """
        return denoise_step(latents, velocity, step)

    @property
    def steps_by_state(self) -> bool:
        """Whether `step_with_velocity` reads the state, as it may where a method has its own: edits then need one."""
        return type(self).step_with_velocity is not Inverter.step_with_velocity

    @abstractmethod
    def count_nfe(self, num_steps: int) -> int:
        """Return the NFE of an inversion of ``num_steps`` steps, that of the residual included.

        For a method that may stop early it is the most that it takes.
        """
