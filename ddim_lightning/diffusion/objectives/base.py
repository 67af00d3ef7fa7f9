"""An objective draws noise and levels for a batch, asks a model for velocities, and returns a loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ddim_lightning.diffusion.objectives.levels import TrainingLevels
from ddim_lightning.types import Latents


class Predict(Protocol):
    """A `Predict` is a model as objectives see it: rows in, a velocity per row out, with gradients."""

    def __call__(
        self, latents: Latents, prompts: Sequence[str], timesteps: Tensor, *, reads: tuple[int, ...] = ()
    ) -> Latents:
        """Predict velocities.

        Args:
            latents: (rows, f, c, h, w), each at its own level.
            prompts: A text per row.
            timesteps: (rows,) int64, what the model is told of each row's level.
            reads: Row ``k`` of the first also attends to the keys and values of row ``reads[k]``.

        Returns:
            (rows, f, c, h, w), in the dtype of the latents.
        """
        ...


@dataclass(frozen=True, eq=False)
class Samples:
    """The `Samples` are the clips of a training batch; with their sources, they are pairs.

    Args:
        latents: (b, f, c, h, w) clean and scaled.
        prompts: A caption per clip.
        source_latents: (s, f, c, h, w), the sources of which the clips are edits; ``None`` for clips alone.
        source_prompts: A caption per source; empty where they have none.
        sources: For each clip the position of its source; empty where each has its own, in order.

    Raises:
        ValueError: Numbers of clips, captions and sources that do not go with each other.
    """

    latents: Latents
    prompts: Sequence[str]
    source_latents: Latents | None = None
    source_prompts: Sequence[str] = ()
    sources: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        clips, count = len(self.latents), 0 if self.source_latents is None else len(self.source_latents)
        if len(self.prompts) != clips:
            raise ValueError(f"prompts: must be one per clip, {clips}, got {len(self.prompts)}")
        if self.source_prompts and len(self.source_prompts) != count:
            raise ValueError(f"source_prompts: must be one per source, {count}, got {len(self.source_prompts)}")
        if self.source_latents is not None and len(self.sources or range(count)) != clips:
            got = f"{len(self.sources)} for {clips} clips" if self.sources else f"{count} sources for {clips} clips"
            raise ValueError(f"sources: must be one per clip, got {got}")
        if not all(0 <= source < count for source in self.sources):
            raise ValueError(f"sources: must be positions among {count} sources, got {self.sources}")


@dataclass(frozen=True)
class Objective(ABC):
    """An `Objective` is what a training makes small.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name.

    Args:
        weight: Its share where several add up, > 0.

    Raises:
        ValueError: An option out of its range.
    """

    weight: float = 1.0
    reads_sources: ClassVar[bool] = False
    """Whether rows of it attend to the keys and values of sources."""

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"weight: must be > 0 and finite, got {self.weight}")

    @abstractmethod
    def __call__(
        self,
        predict: Predict,
        samples: Samples,
        levels: TrainingLevels,
        generator: torch.Generator,
        caption_dropout: float = 0.0,
    ) -> Tensor:
        """Return the loss of a batch, a scalar, not weighted.

        Args:
            predict: The model.
            samples: The batch.
            levels: The noise levels.
            generator: Source of levels, noise and dropped captions; lies on the CPU, so that a seed means the same
                everywhere.
            caption_dropout: Chance, 0 .. 1, that a caption is replaced by the empty one, which guidance needs.
        """


def compute_losses(
    objectives: Sequence[Objective],
    predict: Predict,
    samples: Samples,
    levels: TrainingLevels,
    generator: torch.Generator,
    caption_dropout: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of several objectives, and the loss of each by its class name.

    They draw one after the other from one generator: what the first draws does not depend on the others. Arguments as
    in `Objective.__call__`.

    Raises:
        ValueError: No objective, or two of one class.
    """
    names = [type(objective).__name__ for objective in objectives]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"objectives: must be at least one, and of a class only one, got {names}")
    losses = [objective(predict, samples, levels, generator, caption_dropout) for objective in objectives]
    total = sum(objective.weight * loss for objective, loss in zip(objectives, losses, strict=True))
    assert isinstance(total, Tensor)
    return total, {name: loss.detach() for name, loss in zip(names, losses, strict=True)}


def make_noise(latents: Latents, generator: torch.Generator) -> Latents:
    """Draw standard normal noise for latents, on the CPU."""
    return torch.randn(latents.shape, generator=generator, device="cpu").to(latents)


def drop_captions(prompts: Sequence[str], chance: float, generator: torch.Generator) -> list[str]:
    """Replace each caption by the empty one with a chance of 0 .. 1."""
    dropped = torch.rand(len(prompts), generator=generator, device="cpu") < chance
    return ["" if drop else prompt for prompt, drop in zip(prompts, dropped.tolist(), strict=True)]


def check_steps(num_inference_steps: Sequence[int]) -> None:
    """Raise a ValueError for a number of steps that is none; the model's schedule sets the upper limit."""
    if not all(steps >= 1 for steps in num_inference_steps):
        raise ValueError(f"num_inference_steps: must be at least 1 each, got {num_inference_steps}")
