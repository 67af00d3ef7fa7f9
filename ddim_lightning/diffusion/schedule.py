"""The noise schedule is one vector of angles, indexed by position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ddim_lightning.types import Step


def make_angle(alpha_cumprod: float) -> float:
    """Return the angle of a noise level.

    With ``a = sqrt(alpha_cumprod)`` and ``s = sqrt(1 - alpha_cumprod)`` a noisy latent is ``a x0 + s e``; the angle is
    ``atan2(s, a)``, so zero terminal SNR (``alpha_cumprod = 0``) is just pi/2 and nothing is ever divided by zero.

    Args:
        alpha_cumprod: 0 (noise) .. 1 (clean).

    Returns:
        Radians, pi/2 (noise) .. 0 (clean), in double precision.

    Source: Salimans and Ho 2022, "Progressive distillation", appendix D, DDIM in angular coordinates.
    """
    return math.atan2(math.sqrt(1.0 - alpha_cumprod), math.sqrt(alpha_cumprod))


@dataclass(frozen=True)
class NoiseSchedule:
    """A `NoiseSchedule` is N steps that join N + 1 noise levels: level 0 is noise, level N is clean.

    Steps are looked up by position. Subtracting ``1000 // N`` from a timestep, as the diffusers schedulers do, misses
    the next timestep whenever N does not divide 1000; a vector of angles cannot.

    Args:
        timesteps: N training timesteps, strictly descending.
        angles: N + 1 angles in radians, strictly descending; ``angles[i]`` belongs to ``timesteps[i]``.
    """

    timesteps: tuple[int, ...]
    angles: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.angles) != len(self.timesteps) + 1:
            raise ValueError(f"angles: must have one entry more than timesteps, got {len(self.angles)} and {len(self)}")
        for name, values in (("timesteps", self.timesteps), ("angles", self.angles)):
            if any(later >= earlier for earlier, later in pairwise(values)):
                raise ValueError(f"{name}: must descend strictly from noise to clean, got {values}")

    @classmethod
    def make(cls, alphas_cumprod: Tensor, timesteps: Sequence[int], final_alpha_cumprod: float = 1.0) -> NoiseSchedule:
        """Make the schedule of a sampler from its noise levels.

        Args:
            alphas_cumprod: (num_train_timesteps,), after SNR shift and zero-SNR rescaling.
            timesteps: The sampler's timesteps, descending.
            final_alpha_cumprod: The level the last step leads to, 1 for a clean sample.

        Raises:
            ValueError: No timestep, or timesteps or levels that do not descend.
        """
        if not timesteps:
            raise ValueError("timesteps: at least one step is needed, got none")
        levels = [float(alphas_cumprod[t]) for t in timesteps]
        angles = tuple(make_angle(alpha) for alpha in [*levels, final_alpha_cumprod])
        return cls(tuple(int(t) for t in timesteps), angles)

    def __len__(self) -> int:
        """Return the number of steps, N."""
        return len(self.timesteps)

    def __getitem__(self, i: int) -> Step:
        """Return step ``i``, 0 .. N - 1, which joins level ``i`` and level ``i + 1``."""
        return Step(range(len(self))[i], self.timesteps[i], self.angles[:-1][i], self.angles[1:][i])

    def __iter__(self) -> Iterator[Step]:
        """Iterate over the steps along the sampler, from noise to clean."""
        return (self[i] for i in range(len(self)))
