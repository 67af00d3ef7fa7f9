"""What every inverter does: climb from level i + 1 to level i, and come down again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.steps import forward_step
from ddim_lightning.types import Latents, Step, VelocityFn

State = tuple[Tensor, ...]
"""What an inverter carries from step to step; the first entry is always the current latents."""


@dataclass(frozen=True)
class Inverter(ABC):
    """A way up (clean to noise) together with the way down that it is meant to undo.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name.

    Args:
        keep_residual: Keep what the last step down misses, ``z - forward(level N - 1)``, one latent, so that
            `reconstruct` can add it back. The step next to clean is by far the largest of the trailing schedule and
            leaves most of the error. Costs one call.
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
    def up(self, velocity_fn: VelocityFn, state: State, table: StepTable, i: int) -> State:
        """Climb from level ``i + 1`` to level ``i``.

        Args:
            velocity_fn: The model under the inversion's prompt, without guidance.
            state: The state at level ``i + 1``.
            table: The step table.
            i: Position of the step, N - 1 first and 0 last.

        Returns:
            The state at level ``i``.
        """

    def down(self, velocity_fn: VelocityFn, state: State, table: StepTable, i: int) -> State:
        """Come down from level ``i`` to level ``i + 1``: `land` with the model's velocity at level ``i``."""
        latents, *rest = state
        return (self.land(latents, velocity_fn(latents, table[i]), state, table[i]), *rest)

    def land(self, latents: Latents, velocity: Latents, state: State, step: Step) -> Latents:
        """Step latents from level ``i`` to ``i + 1`` with a velocity; editors step their branches with it.

        Args:
            latents: At level ``i``; an edit's, or the inverter's own.
            velocity: There, guidance applied.
            state: The inverter's state: a method that keeps more than latents finds it here.
            step: The row of the step table.
        """
        return forward_step(latents, velocity, step)

    @abstractmethod
    def count_calls(self, num_steps: int) -> int:
        """Return how many times an inversion of ``num_steps`` steps calls the model, the residual's call included.

        For a method that may stop early it is the most that it calls.
        """
