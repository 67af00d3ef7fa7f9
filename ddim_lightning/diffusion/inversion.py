"""An inversion on record holds the latents of every noise level, and what it takes to come back from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Latents


class CleanLevel:
    """A `CleanLevel` stands for the levels of an inversion that was not made: the clean one is there, others raise.

    Args:
        clean: (b, f, c, h, w).
        num_steps: N; the clean level is level N, or -1.
    """

    def __init__(self, clean: Latents, num_steps: int) -> None:
        self._clean, self._num_steps = clean, num_steps

    def __getitem__(self, i: int) -> Latents:
        """Return the clean level.

        Raises:
            ValueError: Any other.
        """
        if i in (-1, self._num_steps):
            return self._clean
        rule = f"no inversion was made, so only the clean level, {self._num_steps}, is there"
        raise ValueError(f"levels: {rule}, got {i}; an editor that reads others must say so in `needs`")


@dataclass(frozen=True)
class Inversion:
    """An `Inversion` is what `invert` returns, what is saved, and what every editor reads.

    One that no editor reads need not be made: `of_clean` holds the clean latents alone.

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

    @classmethod
    def of_clean(
        cls,
        latents: Latents,
        schedule: NoiseSchedule,
        inverter: Inverter,
        prompt: str = "",
        image_latents: Latents | None = None,
    ) -> Inversion:
        """Hold clean latents for an editor that reads no other level; see `Editor.needs`. It costs nothing.

        Args:
            latents: (b, f, c, h, w) clean latents.
            schedule: The steps of the edit.
            inverter: Whose steps the edit takes.
            prompt: What the source shows, for a request that does not say it.
            image_latents: (b, f, c, h, w), what an image-to-video model is shown; ``None`` for a text-to-video model.

        Returns:
            An inversion of 0 NFE, of which every level but the clean one raises a ValueError.
        """
        levels = cast(Tensor, CleanLevel(latents, len(schedule)))
        return cls(inverter, schedule, prompt, levels, (), None, 0, image_latents)

    @property
    def was_made(self) -> bool:
        """Whether there are levels beside the clean one, and a state."""
        return not isinstance(self.levels, CleanLevel)

    @property
    def clean(self) -> Latents:
        """The clean latents, (b, f, c, h, w): level N."""
        return self.levels[-1]

    def check_made(self, reader: str) -> None:
        """Raise a ValueError, in the name of who wants to read more than the clean latents, unless there is more."""
        if not self.was_made:
            raise ValueError(f"inversion: must be made by invert for {reader}, got the clean latents alone")

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

        Raises:
            ValueError: One of the clean latents alone.
        """
        self.check_made("saving")
        tensors = {
            "levels": self.levels,
            "angles": torch.tensor(self.schedule.angles, dtype=torch.float64, device="cpu"),
            "timesteps": torch.tensor(self.schedule.timesteps, dtype=torch.int64, device="cpu"),
            "nfe": torch.tensor(self.nfe, dtype=torch.int64, device="cpu"),
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
