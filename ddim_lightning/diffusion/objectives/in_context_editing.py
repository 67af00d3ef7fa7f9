"""The in-context loss trains the very path of an edit that reads its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddim_lightning.diffusion.objectives.base import (
    Objective,
    Predict,
    Samples,
    check_steps,
    drop_captions,
    make_noise,
)
from ddim_lightning.diffusion.objectives.levels import TrainingLevels
from ddim_lightning.diffusion.objectives.velocity import velocity_loss
from ddim_lightning.diffusion.steps import add_noise
from ddim_lightning.types import Latents


def in_context_loss(
    predict: Predict,
    samples: Samples,
    timesteps: Tensor,
    angle: Tensor,
    noise: Latents,
    source_timestep: int = 0,
) -> Tensor:
    """Return the velocity loss of edits that read the keys and values of their clean sources.

    The sources are rows of the same pass, not noised, told ``source_timestep``. A source that several edits have in
    common is one row.

    Args:
        predict: The model.
        samples: Pairs: ``latents`` are the edits, ``source_latents`` what they are edits of.
        timesteps: (b,) int64, the levels of the edits.
        angle: (b, 1, 1, 1, 1) radians, the same.
        noise: What is mixed into the edits, their shape; independent of the sources.
        source_timestep: What the model is told of the sources' level.

    Returns:
        A scalar.

    Raises:
        ValueError: Samples without sources.

    Source: a clean source whose keys and values do not depend on the step is the context of FullDiT2, He et al. 2025,
    arXiv:2506.04213; editing as attention to the source's tokens is UNIC, Ye et al. 2025, arXiv:2506.04216.
    """
    sources, edits = samples.source_latents, samples.latents
    if sources is None:
        raise ValueError("source_latents: must be given, in-context editing trains on pairs, got None")
    count = len(edits)
    rows = torch.cat([add_noise(edits, noise, angle), sources])
    prompts: Sequence[str] = [*samples.prompts, *(samples.source_prompts or [""] * len(sources))]
    told = torch.cat([timesteps, timesteps.new_full((len(sources),), source_timestep)])
    reads = tuple(count + source for source in samples.sources or range(count))
    velocity = predict(rows, prompts, told, reads=reads)[:count]
    return velocity_loss(velocity, edits, noise, angle)


@dataclass(frozen=True)
class InContextEditing(Objective):
    """`InContextEditing` has the model draw an edit while it reads the source: edits that keep what is not named.

    It takes 1 NFE an edit and 1 a source. Before training, reading a source hurts.

    Args:
        weight: See `Objective`.
        num_inference_steps: Trains at the levels that edits in so many steps visit; empty at all.
        source_timestep: What the model is told of the level of the sources, >= 0; 0 is the cleanest. Edits have to
            tell it the same.
        source_caption_dropout: Chance, 0 .. 1, that a source's caption is replaced by the empty one, for edits of clips
            without one. It holds in validations, too.

    Source: see `in_context_loss`.
    """

    reads_sources: ClassVar[bool] = True

    num_inference_steps: tuple[int, ...] = ()
    source_timestep: int = 0
    source_caption_dropout: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.num_inference_steps)
        if self.source_timestep < 0:
            raise ValueError(f"source_timestep: must be >= 0, got {self.source_timestep}")
        if not 0.0 <= self.source_caption_dropout <= 1.0:
            raise ValueError(f"source_caption_dropout: must lie in 0 .. 1, got {self.source_caption_dropout}")

    def __call__(  # noqa: D102
        self,
        predict: Predict,
        samples: Samples,
        levels: TrainingLevels,
        generator: torch.Generator,
        caption_dropout: float = 0.0,
    ) -> Tensor:
        edits = samples.latents
        timesteps = levels.draw(len(edits), generator, self.num_inference_steps)
        noise = make_noise(edits, generator)
        prompts = drop_captions(samples.prompts, caption_dropout, generator)
        source_prompts = drop_captions(samples.source_prompts, self.source_caption_dropout, generator)
        pairs = Samples(edits, prompts, samples.source_latents, source_prompts, samples.sources)
        return in_context_loss(
            predict, pairs, timesteps, levels.get_angles(timesteps, edits), noise, self.source_timestep
        )
