"""What every editor does: start somewhere, say what the network should evaluate, step with what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ddim_lightning.diffusion.steps import forward_step
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Latents, Step, Strength


@dataclass(frozen=True)
class EditState:
    """An edit under way.

    Args:
        latents: (b, f, c, h, w) float32 at the current level.
        request: What was asked for.
        num_layers: Layers of the model whose keys and values can be read.
    """

    latents: Latents
    request: EditRequest
    num_layers: int


@dataclass(frozen=True)
class Editor(ABC):
    """A way for a new prompt to meet the trajectory.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name. Its methods are
    pure: everything that changes travels in the state.
    """

    def check(self, num_layers: int, num_steps: int) -> None:
        """Check the options against a model and a table, before any work; the default finds nothing wrong.

        Args:
            num_layers: Layers of the model whose keys and values can be read.
            num_steps: Steps of the edit.

        Raises:
            ValueError: An option that does not fit.
        """
        return

    @abstractmethod
    def start(
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        """Return the state at level 0.

        Args:
            inversion: The source video's inversion.
            request: What is asked for.
            generator: Source of every random number.
            num_layers: Layers of the model whose keys and values can be read.
        """

    @abstractmethod
    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:
        """Return the trajectories to evaluate at this step and, when one reads another, the strength per layer."""

    @abstractmethod
    def count_calls(self, request: EditRequest, num_steps: int) -> int:
        """Return how many rows an edit of ``num_steps`` steps evaluates: one latent under one embedding each."""

    def update(
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        """Return the state at level ``i + 1``; unless a method knows better, a DDIM step of the first branch."""
        velocity = velocities[0]
        assert velocity is not None
        return replace(state, latents=forward_step(state.latents, velocity, step))
