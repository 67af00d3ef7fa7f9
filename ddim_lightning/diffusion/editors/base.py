"""What every editor does: start somewhere, say what the network should evaluate, step with what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.guidance import SCHEDULES
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Latents, Step, Strength

Place = int | float
"""A layer or a step by position; a float, 0.0 .. 1.0, is a share of all there are."""

Range = tuple[Place, Place | None]
"""Half-open range of layers or steps; ``None`` as the end is the last."""


_FEW = 4
"""Steps that ask the network, below which an edit by strides is a poor one."""


@dataclass(frozen=True)
class EditState:
    """An edit under way.

    Args:
        latents: (b, f, c, h, w) float32 at the current level.
        request: What was asked for.
        num_layers: Layers of the model whose keys and values can be read.
        source: The source branch's own latents, where a method lets it run free of the trajectory.
        seed: Of a method that draws noise at every step.
        carried: What the last two evaluated steps found, with their angles in radians, newest first.
    """

    latents: Latents
    request: EditRequest
    num_layers: int
    source: Latents | None = None
    seed: int = 0
    carried: tuple[tuple[float, Latents], ...] = ()


@dataclass(frozen=True)
class Editor(ABC):
    """A way for a new prompt to meet the trajectory.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name. Its methods are
    pure: everything that changes travels in the state.

    Args:
        first_step: Step the edit begins with, 0 (noise) .. N - 1, or a share of the steps, 0.0 .. 1.0; a later start
            keeps more of the source and costs less.
        guidance: How the scale changes over the steps: ``constant``, or ``script_dynamic`` for parity with the
            reference script's ``use_dynamic_cfg``.
        guidance_steps: Half-open range of steps that are guided, by position or as shares; at the others the scale is
            1, at half the rows.
        negative: What guidance moves away from: ``request``, the request's negative prompt, or ``source``, the source
            prompt.
        velocity_mask: Threshold, 0 .. 1, of a mask made from the velocities under the two prompts (see
            `diffusion.masks`), outside which the trajectory is kept; ``None`` makes none. A mask of the request goes
            first.
        stride: Evaluate the network at every ``stride``-th step alone, >= 1. What it finds is carried on to the steps
            between along a line through the last two findings: an approximation, the same for all rows.

    Raises:
        ValueError: An option out of its range.
    """

    first_step: Place = 0
    guidance: Literal["constant", "script_dynamic"] = "constant"
    guidance_steps: Range = (0, None)
    negative: Literal["request", "source"] = "request"
    velocity_mask: float | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        check_range("first_step", (self.first_step, None))
        check_choice("guidance", self.guidance, tuple(SCHEDULES))
        check_range("guidance_steps", self.guidance_steps)
        check_choice("negative", self.negative, ("request", "source"))
        if self.velocity_mask is not None and not 0.0 <= self.velocity_mask <= 1.0:
            raise ValueError(f"velocity_mask: must lie in 0 .. 1, got {self.velocity_mask}")
        if self.stride < 1:
            raise ValueError(f"stride: must be at least 1, got {self.stride}")

    def check(self, num_layers: int, num_steps: int) -> None:
        """Check the options against a model and a table, before any work.

        Args:
            num_layers: Layers of the model whose keys and values can be read.
            num_steps: Steps of the table.

        Raises:
            ValueError: An option that does not fit.
        """
        if self.get_first_step(num_steps) >= num_steps:
            raise ValueError(f"editor.first_step: must be one of the {num_steps} steps, got {self.first_step}")
        check_fits("guidance_steps", self.guidance_steps, num_steps)

    @abstractmethod
    def start(
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        """Return the state at level ``first_step``.

        Args:
            inversion: The source video's inversion.
            request: What is asked for.
            generator: Source of every random number.
            num_layers: Layers of the model whose keys and values can be read.

        Raises:
            ValueError: A request without something that this editor needs.
        """

    @abstractmethod
    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:
        """Return the trajectories to evaluate at this step and, when one reads another, the strength per layer."""

    @abstractmethod
    def count_calls(self, request: EditRequest, table: StepTable, together: int = 1) -> int:
        """Return how many rows an edit evaluates: one latent under one embedding each.

        Args:
            request: What is asked for.
            table: The step table.
            together: Requests that differ in their prompt alone and share a pass; the rows are those of all.
        """

    def update(
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        """Return the state at level ``i + 1``; unless a method knows better, the inverter's step of the first branch.

        Outside a mask the latents are the trajectory's.
        """
        velocity = velocities[0]
        assert velocity is not None
        state = replace(state, carried=((step.angle, velocity), *state.carried[:1]))
        return _land(state, velocity, step, inversion)

    def carry(self, state: EditState, step: Step, inversion: Inversion) -> EditState:
        """Return the state at level ``i + 1`` by what former steps found, where the network is not evaluated.

        Source: extrapolation as in the two-step Adams-Bashforth method.
        """
        return _land(state, extrapolate(state.carried, step.angle), step, inversion)

    def list_doubts(self, request: EditRequest, table: StepTable, inversion_prompt: str) -> list[str]:
        """Return a sentence for each thing that will do the edit no good.

        Args:
            request: What is asked for.
            table: The step table.
            inversion_prompt: What the inversion is told.
        """
        steps = range(self.get_first_step(len(table)), len(table))
        evaluated = sum(self.evaluates(table[i], table) for i in steps)
        if self.stride == 1 or evaluated >= _FEW:
            return []
        return [f"stride: {evaluated} of {len(steps)} steps ask the network, which is few; take more steps"]

    def evaluates(self, step: Step, table: StepTable) -> bool:
        """Whether the network is evaluated at a step that is not before the first."""
        return (step.i - self.get_first_step(len(table))) % self.stride == 0

    def get_first_step(self, num_steps: int) -> int:
        """Return the position of the step that the edit begins with."""
        return find_place(self.first_step, num_steps)

    def scale(self, request: EditRequest, step: Step, table: StepTable) -> float:
        """Return the guidance scale of a step."""
        guided = step.i in pick(self.guidance_steps, len(table))
        return SCHEDULES[self.guidance](request.guidance_scale, step, table) if guided else 1.0

    def make_target(
        self, latents: Latents, request: EditRequest, step: Step, table: StepTable, reads: int | None = None
    ) -> Branch:
        """Make the branch of the edited video: its prompt, its negative prompt and the scale of the step."""
        negative = request.negative_prompt
        if self.negative == "source":
            if request.source_prompt is None:
                raise ValueError("source_prompt: negative='source' moves away from it, so it must be given, got None")
            negative = request.source_prompt
        return Branch(latents, request.prompt, negative, self.scale(request, step, table), reads=reads)

    def count_guided(self, request: EditRequest, table: StepTable) -> list[int]:
        """Return the rows of the edited video at each step, 0 before the first."""
        steps = [self.scale(request, step, table) for step in table]
        first = self.get_first_step(len(table))
        return [
            0 if step.i < first or not self.evaluates(step, table) else 1 if scale == 1.0 else 2
            for step, scale in zip(table, steps, strict=True)
        ]


def _land(state: EditState, velocity: Latents, step: Step, inversion: Inversion) -> EditState:
    latents = inversion.inverter.land(state.latents, velocity, inversion.state, step)
    return keep_outside(state, latents, inversion.levels[step.i + 1])


def extrapolate(carried: Sequence[tuple[float, Latents]], angle: float) -> Latents:
    """Return what lies on the line through the last two findings at an angle; the last one where there is no other.

    Args:
        carried: (angle in radians, finding), newest first; at least one.
        angle: Where it is wanted.
    """
    (last_angle, last), *before = carried
    if not before:
        return last
    ((before_angle, found),) = before[:1]
    return last + (angle - last_angle) / (last_angle - before_angle) * (last - found)


def keep_outside(state: EditState, latents: Latents, outside: Latents) -> EditState:
    """Return the state with new latents, and others outside the request's mask if it has one."""
    mask = state.request.mask
    return replace(state, latents=latents if mask is None else outside + mask * (latents - outside))


def tell_source(request: EditRequest, inversion: Inversion) -> str:
    """Return what the source shows: the source prompt, or the inversion's own where there is none."""
    return inversion.prompt if request.source_prompt is None else request.source_prompt


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless an option is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {value!r}")


def check_strength(strength: float) -> None:
    """Raise a ValueError unless a strength of reading lies in 0 .. 1."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength: must lie in 0 .. 1, got {strength}")


def find_place(place: Place, size: int) -> int:
    """Return a position; shares of ``size`` are rounded."""
    return round(place * size) if isinstance(place, float) else place


def pick(places: Range, size: int) -> range:
    """Return the positions in a range of layers or steps, of which there are ``size``."""
    first, end = places
    return range(size)[find_place(first, size) : None if end is None else find_place(end, size)]


def check_range(name: str, value: Range) -> None:
    """Raise a ValueError unless an option is a half-open range."""
    first, end = value
    for place in (first, end):
        if isinstance(place, float) and not 0.0 <= place <= 1.0:
            raise ValueError(f"{name}: a float is a share and must lie in 0 .. 1, got {place}")
    ordered = end is None or isinstance(first, float) != isinstance(end, float) or first <= end
    if first < 0 or not ordered:
        raise ValueError(f"{name}: must be a range with 0 <= first <= end, got {(first, end)}")


def check_fits(name: str, value: Range, size: int) -> None:
    """Raise a ValueError unless a range ends within the layers or steps that there are."""
    first = find_place(value[0], size)
    end = size if value[1] is None else find_place(value[1], size)
    if not (first < size if value[1] is None else first <= end <= size):
        raise ValueError(f"editor.{name}: must end within the {size} that there are, got {value}")
