"""An editor says where an edit starts, what the network evaluates, and how the edit steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors.places import Place, Range, check_fits, check_range, find_place, pick
from ddim_lightning.diffusion.guidance import SCHEDULES
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Branch, Context, EditRequest, KVScale, Latents, Needs, Step

_FEW = 4
"""Evaluated steps, below which an edit that skips some is a poor one."""


@dataclass(frozen=True)
class EditState:
    """An `EditState` is an edit under way.

    Args:
        latents: (b, f, c, h, w) float32 at the current level.
        request: What was asked for.
        num_layers: Layers of the model whose keys and values can be attended to.
        seed: Of a method that draws noise at every step.
        carried: What the last two evaluated steps found, with their angles in radians, newest first.
        context: What the model keeps of the branch of `Editor.make_context`.
        noise: (b, f, c, h, w), the noise of the start, of a method that noises the source alike.
        copy: (b, f, c, h, w), an edit of the source to itself beside the edit, of a method that makes one.
    """

    latents: Latents
    request: EditRequest
    num_layers: int
    seed: int = 0
    carried: tuple[tuple[float, Latents], ...] = ()
    context: Context | None = None
    noise: Latents | None = None
    copy: Latents | None = None


@dataclass(frozen=True)
class Editor(ABC):
    """An `Editor` is a method by which a new prompt meets the trajectory of an inversion.

    Subclass it as a frozen dataclass; its fields are its options, and a config builds it by class name. Its methods are
    pure: everything that changes travels in the state.

    Args:
        first_step: Step the edit begins with, 0 (noise) .. N - 1, or a share of the steps, 0.0 .. 1.0; a later start
            keeps more of the source and costs less.
        guidance: How the guidance scale changes over the steps: ``constant``, or ``script_dynamic`` for parity with the
            reference script's ``use_dynamic_cfg``.
        guidance_steps: Half-open range of steps that are guided, by position or as shares; at the others the scale is
            1, at half the NFE.
        negative: What guidance moves away from: ``request``, the request's negative prompt, or ``source``, the source
            prompt.
        velocity_mask: Threshold, 0 .. 1, of a mask made from the velocities under the two prompts (see
            `diffusion.masks`), outside which the trajectory is kept; ``None`` makes none. A mask of the request goes
            first.

    Raises:
        ValueError: An option out of its range.
    """

    first_step: Place = 0
    guidance: Literal["constant", "script_dynamic"] = "constant"
    guidance_steps: Range = (0, None)
    negative: Literal["request", "source"] = "request"
    velocity_mask: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Have a class that does not say itself what it needs need everything: it may read more than its parent."""
        super().__init_subclass__(**options)
        if "needs" not in vars(cls):
            cls.needs = Editor.needs  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_range("first_step", (self.first_step, None))
        check_choice("guidance", self.guidance, tuple(SCHEDULES))
        check_range("guidance_steps", self.guidance_steps)
        check_choice("negative", self.negative, ("request", "source"))
        if self.velocity_mask is not None and not 0.0 <= self.velocity_mask <= 1.0:
            raise ValueError(f"velocity_mask: must lie in 0 .. 1, got {self.velocity_mask}")

    def check(self, num_layers: int, num_steps: int) -> None:
        """Check the options against a model and a schedule, before any work.

        Args:
            num_layers: Layers of the model whose keys and values can be attended to.
            num_steps: Steps of the schedule.

        Raises:
            ValueError: An option that does not fit.
        """
        if self.get_first_step(num_steps) >= num_steps:
            raise ValueError(f"editor.first_step: must be one of the {num_steps} steps, got {self.first_step}")
        check_fits("guidance_steps", self.guidance_steps, num_steps)

    def check_request(self, request: EditRequest, schedule: NoiseSchedule, inversion_prompt: str) -> list[str]:
        """Check a request, before any work.

        Args:
            request: What is asked for.
            schedule: The noise schedule.
            inversion_prompt: The prompt of the inversion.

        Returns:
            A warning for each thing that will make the edit poorer.

        Raises:
            ValueError: A request without something that this editor needs.
        """
        self._get_negative_prompt(request)
        steps = range(self.get_first_step(len(schedule)), len(schedule))
        evaluated = sum(self.evaluates(schedule[i], schedule) for i in steps)
        if self._every == 1 or evaluated >= _FEW:
            return []
        return [f"eval_every: {evaluated} of {len(steps)} steps evaluate the network, which is few; take more steps"]

    def make_context(self, inversion: Inversion, request: EditRequest) -> Branch | None:
        """Return a branch that is evaluated once, at its own timestep, for all steps of the edit to attend to.

        Edits whose contexts are the same share one. ``None``, as here, where nothing is attended to in this way; see
        `context_nfe`.
        """
        return None

    @abstractmethod
    def start(
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        """Return the state at level ``first_step``.

        Args:
            inversion: The source video's inversion.
            request: What is asked for.
            generator: Source of every random number.
            num_layers: Layers of the model whose keys and values can be attended to.

        Raises:
            ValueError: A request without something that this editor needs.
        """

    @abstractmethod
    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:
        """Return the branches to evaluate at this step and, when one attends to another, the kv_scale per layer.

        A branch without ``image_latents`` is shown the inversion's.
        """

    @abstractmethod
    def update(
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        """Return the state at level ``i + 1``, from the velocities of the branches; outside a mask the source's."""

    @abstractmethod
    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:
        """Return the number of function evaluations of an edit: one latent under one embedding counts 1.

        Args:
            request: What is asked for.
            schedule: The noise schedule.
            together: Requests that differ in their prompt alone and share each network pass; the NFE are those of all,
                with the one context that they share.
        """

    def needs(self, request: EditRequest, schedule: NoiseSchedule, inverter: Inverter) -> Needs:
        """Return what an edit reads of an inversion, beside its schedule, its prompt and its image.

        Where it is not ``levels``, a run makes no inversion for it, and the edit is given `Inversion.of_clean`. A class
        that reads less than everything says so itself; what its parent says does not count.

        Args:
            request: What is asked for; of its mask it counts whether there is one.
            schedule: The noise schedule.
            inverter: Whose steps the edit takes.

        Returns:
            ``nothing`` but the shape of its latents, the ``clean`` latents, or its ``levels`` and all else.
        """
        return "levels"

    def finds_mask(self, request: EditRequest) -> bool:
        """Return whether a mask is made from velocities at some levels, which a mask of the request spares."""
        return self.velocity_mask is not None and request.mask is None

    def carry(self, state: EditState, step: Step, inversion: Inversion) -> EditState:
        """Return the state at level ``i + 1`` at a step where the network is not evaluated.

        Raises:
            TypeError: An editor that evaluates every step.
        """
        raise TypeError(f"{type(self).__name__} evaluates every step")

    def fast(self) -> Self:
        """Return the form of this editor that goes with a step cache; itself, as here, where no option is changed."""
        return self

    def evaluates(self, step: Step, schedule: NoiseSchedule) -> bool:
        """Return whether the network is evaluated at a step that is not before the first."""
        return (step.i - self.get_first_step(len(schedule))) % self._every == 0

    def get_first_step(self, num_steps: int) -> int:
        """Return the position of the step that the edit begins with."""
        return find_place(self.first_step, num_steps)

    def scale(self, request: EditRequest, step: Step, schedule: NoiseSchedule) -> float:
        """Return the guidance scale of a step."""
        guided = step.i in pick(self.guidance_steps, len(schedule))
        return SCHEDULES[self.guidance](request.guidance_scale, step, schedule) if guided else 1.0

    def make_target(
        self,
        latents: Latents,
        request: EditRequest,
        step: Step,
        schedule: NoiseSchedule,
        kv_source: int | None = None,
    ) -> Branch:
        """Make the branch of the edited video: its prompt, its negative prompt, its image and the scale of the step."""
        return Branch(
            latents,
            request.prompt,
            self._get_negative_prompt(request),
            self.scale(request, step, schedule),
            kv_source=kv_source,
            image_latents=request.image_latents,
        )

    def get_token_mask(self, request: EditRequest) -> Tensor | None:
        """Return the mask inside which the network evaluates the edit's tokens alone; ``None`` where it does all."""
        return request.mask if self.splits_tokens else None

    def count_target_nfe(self, request: EditRequest, schedule: NoiseSchedule) -> list[int]:
        """Return the NFE of the edited video at each step: 2 with guidance, 0 where the network is not evaluated."""
        first = self.get_first_step(len(schedule))
        return [
            0
            if step.i < first or not self.evaluates(step, schedule)
            else 1
            if self.scale(request, step, schedule) == 1.0
            else 2
            for step in schedule
        ]

    @property
    def context_nfe(self) -> int:
        """Of the NFE of an edit those of its context, which edits of a clip share: 1 with `make_context`, else 0."""
        return 0

    @property
    def splits_tokens(self) -> bool:
        """Whether it has the network evaluate the tokens inside a mask alone, which not every forward pass can."""
        return False

    @property
    def _every(self) -> int:
        """Of how many steps one is evaluated."""
        return 1

    def _get_negative_prompt(self, request: EditRequest) -> str:
        if self.negative == "request":
            return request.negative_prompt
        if request.source_prompt is None:
            raise ValueError("source_prompt: negative='source' moves away from it, so it must be given, got None")
        return request.source_prompt


def extrapolate(carried: Sequence[tuple[float, Latents]], angle: float) -> Latents:
    """Return what lies on the line through the last two findings at an angle; the last one where there is no other.

    Args:
        carried: (angle in radians, finding), newest first; at least one.
        angle: Where it is wanted, in radians.

    Source: extrapolation as in the two-step Adams-Bashforth method.
    """
    (last_angle, last), *before = carried
    if not before:
        return last
    ((before_angle, found),) = before[:1]
    return last + (angle - last_angle) / (last_angle - before_angle) * (last - found)


def apply_mask(state: EditState, latents: Latents, inversion: Inversion, i: int) -> EditState:
    """Return the state with new latents, and with the source's of level ``i`` outside the request's mask if it has one.

    Without a mask no level is read.
    """
    mask = state.request.mask
    if mask is None:
        return replace(state, latents=latents)
    outside = inversion.levels[i]
    return replace(state, latents=outside + mask * (latents - outside))


def get_source_prompt(request: EditRequest, inversion: Inversion) -> str:
    """Return the prompt of the source: the request's, or the inversion's own where there is none."""
    return inversion.prompt if request.source_prompt is None else request.source_prompt


def get_image_latents(request: EditRequest, inversion: Inversion) -> Latents | None:
    """Return what an image-to-video model is shown beside the edit: the request's image, or the inversion's own."""
    return inversion.image_latents if request.image_latents is None else request.image_latents


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless an option is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {value!r}")


def check_kv_scale(kv_scale: float) -> None:
    """Raise a ValueError unless a kv_scale lies in 0 .. 1."""
    if not 0.0 <= kv_scale <= 1.0:
        raise ValueError(f"kv_scale: must lie in 0 .. 1, got {kv_scale}")


def check_eval_every(eval_every: int) -> None:
    """Raise a ValueError unless at least every step can be evaluated."""
    if eval_every < 1:
        raise ValueError(f"eval_every: must be at least 1, got {eval_every}")
