"""An inversion on record holds the latents of every noise level, and what it takes to come back from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Latents


@dataclass(frozen=True)
class Inversion:
    """An `Inversion` is what `invert` returns, what is saved, and what every editor reads.

    Args:
        inverter: The method that made it, and that comes back.
        schedule: Its noise schedule, N steps.
        prompt: The text it was made under.
        levels: (N + 1, b, f, c, h, w) float32; ``levels[0]`` is noise, ``levels[N]`` the clean latents.
        state: The inverter's own state at level 0.
        residual: ``levels[N] - denoise_step(levels[N - 1])``, or ``None`` when the inverter keeps none.
        nfe: Number of function evaluations it took, each of all b latents under one embedding, in all their windows.
        image_latents: (b, f, c, h, w), what an image-to-video model was shown; ``None`` for a text-to-video model.
    """

    inverter: Inverter
    schedule: NoiseSchedule
    prompt: str
    levels: Tensor
    state: State
    residual: Latents | None
    nfe: int
    image_latents: Latents | None = None

    @property
    def x_T(self) -> Latents:  # noqa: N802, its name in the literature
        """The inverted noise, (b, f, c, h, w) float32, of about unit variance.

        It is what `CogVideoXPipeline` takes as ``latents``: its ``scheduler.init_noise_sigma`` is 1.
        """
        return self.levels[0]

    def to_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save, on the CPU, by the names of what they are of.

        They are ``levels``, ``angles``, ``timesteps``, ``nfe``, ``state.k`` from 1 on, and ``residual`` and
        ``image_latents`` where there are any.
        """
        tensors = {
            "levels": self.levels,
            "angles": torch.tensor(self.schedule.angles, dtype=torch.float64),
            "timesteps": torch.tensor(self.schedule.timesteps, dtype=torch.int64),
            "nfe": torch.tensor(self.nfe, dtype=torch.int64),
        }
        # The first entry of the state is the latents themselves, level 0.
        tensors |= {f"state.{k}": value for k, value in enumerate(self.state) if k > 0}
        if self.residual is not None:
            tensors["residual"] = self.residual
        if self.image_latents is not None:
            tensors["image_latents"] = self.image_latents
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor], inverter: Inverter, prompt: str) -> Inversion:
        """Rebuild an inversion from `to_dict`'s tensors, its inverter and its prompt."""
        schedule = NoiseSchedule(tuple(tensors["timesteps"].tolist()), tuple(tensors["angles"].tolist()))
        extra = sorted((name for name in tensors if name.startswith("state.")), key=lambda name: int(name[6:]))
        state = (tensors["levels"][0], *(tensors[name] for name in extra))
        return cls(
            inverter,
            schedule,
            prompt,
            tensors["levels"],
            state,
            tensors.get("residual"),
            int(tensors["nfe"]),
            tensors.get("image_latents"),
        )
