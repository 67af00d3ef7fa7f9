"""The noise levels that a model trains at are those of its schedule, all of them or those that an edit visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_lightning.diffusion.schedule import make_angle


class NoLevelError(ValueError):
    """A `NoLevelError` says that an objective trains at no level of the part that it may draw from."""


def draw_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """Draw training timesteps, one from each of ``count`` equal parts of the schedule, in random order.

    Args:
        count: How many, b.
        num_train_timesteps: Length of the schedule.
        generator: Source of the draw.

    Returns:
        (b,) int64, 0 .. ``num_train_timesteps - 1``.
    """
    parts = torch.randperm(count, generator=generator, device="cpu")
    drawn = (parts + torch.rand(count, generator=generator, device="cpu")) / count * num_train_timesteps
    return drawn.long().clamp_(max=num_train_timesteps - 1)


@dataclass(frozen=True, eq=False)
class TrainingLevels:
    """The `TrainingLevels` are the noise levels that a model was trained at, by timestep.

    Args:
        angles: (num_train_timesteps,) float64 radians on the CPU; entry 0 is the cleanest.
        clean: The angle that the last step of sampling leads to, in radians; 0 is a clean sample.
        part: The timesteps that may be drawn; ``None`` is all.
    """

    angles: Tensor
    clean: float = 0.0
    part: range | None = None

    @classmethod
    def make(cls, alphas_cumprod: Tensor, final_alpha_cumprod: float = 1.0) -> TrainingLevels:
        """Make the levels of a scheduler.

        Args:
            alphas_cumprod: (num_train_timesteps,), after SNR shift and zero-SNR rescaling.
            final_alpha_cumprod: The level that the last step of sampling leads to.
        """
        alphas = alphas_cumprod.double().cpu()
        return cls(torch.atan2((1.0 - alphas).sqrt(), alphas.sqrt()), make_angle(final_alpha_cumprod))

    def list_timesteps(self, num_inference_steps: int) -> list[int]:
        """Return the timesteps of a sampling in so many steps, spaced as ``trailing``, descending.

        Source: `CogVideoXDDIMScheduler.set_timesteps`.
        """
        most = len(self.angles)
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps: must be 1 .. {most}, got {num_inference_steps}")
        stride = (most - most / num_inference_steps) - most  # rounded as numpy.arange does, which decides ties
        return [round(most + k * stride) - 1 for k in range(num_inference_steps)]

    def divide(self, count: int) -> list[TrainingLevels]:
        """Return the levels of which only one of ``count`` equal parts may be drawn, for each part, cleanest first."""
        most = len(self.angles)
        return [replace(self, part=range(most * k // count, most * (k + 1) // count)) for k in range(count)]

    def draw(self, count: int, generator: torch.Generator, num_inference_steps: Sequence[int] = ()) -> Tensor:
        """Draw timesteps, one from each of ``count`` equal parts of what is drawn from, in random order.

        Args:
            count: How many, b.
            generator: Source of the draw.
            num_inference_steps: Draws from the timesteps that samplings in so many steps visit; one that several of
                them visit is as much more likely. Empty draws from all.

        Returns:
            (b,) int64.

        Raises:
            NoLevelError: None of them lies in `part`.
        """
        visited = sorted(t for n in num_inference_steps for t in self.list_timesteps(n))
        return self._pick(visited or range(len(self.angles)), count, generator)

    def draw_steps(self, count: int, generator: torch.Generator, num_inference_steps: int) -> Tensor:
        """Draw steps of a sampling in so many steps, each as likely as it turns latents far, likewise.

        What a step loses grows with its turn, and the steps of a sampling turn differently: of 50 trailing ones of
        CogVideoX the last, which ends in the clean clip, turns by 0.14 radians, and others by 0.01.

        Returns:
            (b,) int64, 0 (from noise) .. ``num_inference_steps - 1``.

        Raises:
            NoLevelError: None of them lies in `part`.
        """
        visited = self.list_timesteps(num_inference_steps)
        angles = torch.cat([self.angles[visited], self.angles.new_tensor([self.clean])])
        within = torch.tensor([self.part is None or timestep in self.part for timestep in visited], device="cpu")
        turned = ((angles[:-1] - angles[1:]) * within).cumsum(0)
        if not within.any():
            raise NoLevelError(f"levels: must hold one of {visited}, got the part {self.part}")
        places = (
            torch.randperm(count, generator=generator, device="cpu")
            + torch.rand(count, generator=generator, device="cpu")
        ) / count
        return torch.searchsorted(turned, places * turned[-1], right=True).clamp_(max=int(within.nonzero()[-1]))

    def get_angles(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Return the angles of timesteps (b,) as (b, 1, 1, 1, 1), in the dtype and on the device of latents."""
        return self.angles[timesteps].to(like).view(-1, 1, 1, 1, 1)

    def _pick(self, timesteps: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """Draw from timesteps those that lie in `part`."""
        within = torch.tensor([t for t in timesteps if self.part is None or t in self.part], device="cpu")
        if not len(within):
            raise NoLevelError(f"levels: must hold one of {list(timesteps)}, got the part {self.part}")
        return within[draw_timesteps(count, len(within), generator)]
