"""K/V injection: the edited video also attends to the keys and values of the source's trajectory."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import (
    Editor,
    EditState,
    Range,
    check_choice,
    check_fits,
    check_range,
    check_strength,
    pick,
    tell_source,
)
from ddim_lightning.diffusion.editors.starts import STARTS, make_start
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Latents, Step, Strength


@dataclass(frozen=True)
class KVInjection(Editor):
    """The reference script's idea, started from the inverted latent and told what the source shows.

    At every step the latents of the stored trajectory pass through the network beside the edited ones, and the edited
    rows attend to their own and to the source's keys and values. The source's latents are always those of the
    trajectory: no error of the source branch can accumulate. Its keys and values are recomputed, never cached: for
    CogVideoX-5B at 49 x 480 x 720 they would take 9 GB a step.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``.
        layers: Half-open range of layers that read the source, by position or as shares; ``None`` as the end is the
            last layer.
        steps: Half-open range of steps, counted from noise, likewise; outside it the source is not evaluated at all.
        strength: 0 (reads nothing) .. 1 (the script): log(strength) is added to the logits of the source's keys.
        source_rows: ``shared``: one source row, read by all rows of the edit. ``paired``: the script's layout, one
            source row per row of the edit, under the negative prompt and the source's text.
        source_text: What the source rows are told: ``source`` the source prompt, or the inversion's own prompt when
            there is none; ``inversion`` the inversion's own; ``edit`` the edit's; ``auto`` is ``edit`` for paired rows,
            as the script has it, and ``source`` for a shared one.
        source: ``snapped``: the source branch reads the trajectory. ``replayed``: it runs by itself and is corrected at
            each step by what the trajectory says a step misses (direct inversion), at one set of source rows more.
        initial: ``inverted`` starts from the trajectory, ``random`` (the script) from fresh noise, which for
            ``first_step > 0`` is mixed with the clean latents (SDEdit), ``k_rnr`` from K-order recursive noise.
        order: K of ``k_rnr``.

    Raises:
        ValueError: An option out of its range.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``; compare Cao et al. 2023, "MasaCtrl", arXiv:2304.08465.
    Replay: Ju et al. 2023, "Direct inversion", arXiv:2310.01506, algorithm 1.
    """

    layers: Range = (0, None)
    steps: Range = (0, None)
    strength: float = 1.0
    source_rows: Literal["shared", "paired"] = "shared"
    source_text: Literal["auto", "source", "inversion", "edit"] = "auto"
    source: Literal["snapped", "replayed"] = "snapped"
    initial: Literal["inverted", "random", "k_rnr"] = "inverted"
    order: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.strength)
        check_range("layers", self.layers)
        check_range("steps", self.steps)
        check_choice("source_rows", self.source_rows, ("shared", "paired"))
        check_choice("source_text", self.source_text, ("auto", "source", "inversion", "edit"))
        check_choice("source", self.source, ("snapped", "replayed"))
        check_choice("initial", self.initial, tuple(STARTS))
        if self.stride > 1 and self.source == "replayed":
            raise ValueError(f"stride: must be 1 where the source runs freely, got {self.stride}")
        if self.order < 1:
            raise ValueError(f"order: must be at least 1, got {self.order}")
        if self.initial == "k_rnr" and self.first_step == 0:
            raise ValueError("first_step: k_rnr starts below pure noise, so it must be at least 1, got 0")

    def check(self, num_layers: int, num_steps: int) -> None:  # noqa: D102
        super().check(num_layers, num_steps)
        check_fits("layers", self.layers, num_layers)
        check_fits("steps", self.steps, num_steps)

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        first = self.get_first_step(len(inversion.table))
        latents = make_start(self.initial, inversion, first, generator, self.order)
        # Its own memory: a branch that runs freely is shared with no other edit, not even at its first step.
        source = inversion.levels[first].clone() if self.source == "replayed" else None
        return EditState(latents, request, num_layers, source)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:  # noqa: D102
        table = inversion.table
        strength = self._strength(state.num_layers, step, len(table))
        reads = None if strength is None else 1
        target = self.make_target(state.latents, state.request, step, table, reads)
        if strength is None and state.source is None:
            return [target], None
        trajectory = self._make_source(inversion.levels[step.i], target, state.request, inversion)
        if state.source is None:
            return [target, replace(trajectory, wanted=False)], strength
        return [target, replace(trajectory, latents=state.source), trajectory], strength

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        state = super().update(state, velocities[:1], step, inversion)
        if state.source is None:
            return state
        _, free, stored = velocities
        assert free is not None
        assert stored is not None
        return replace(state, source=replay(state.source, free, stored, step, inversion))

    def count_calls(self, request: EditRequest, table: StepTable, together: int = 1) -> int:  # noqa: D102
        guided = self.count_guided(request, table)
        if self.source == "replayed":
            steps = range(len(table))
            source = self._count_source(guided, steps, together) + together * self._count_source(guided, steps, 1)
        else:
            reads = self.strength > 0.0 and self.layers[0] != self.layers[1]
            reading = pick(self.steps, len(table)) if reads else range(0)
            source = self._count_source(guided, reading, together)
        return together * sum(guided) + source

    def _count_source(self, guided: list[int], needed: Container[int], together: int) -> int:
        """Return the rows of the source at the steps that need it, evaluated once for all requests if it can be."""
        paired = self.source_rows == "paired"
        per_step = [rows if paired else min(rows, 1) for rows in guided]
        return (together if self._text == "edit" else 1) * sum(rows for i, rows in enumerate(per_step) if i in needed)

    @property
    def _text(self) -> str:
        """What the source rows are told, once ``auto`` is resolved."""
        auto = "edit" if self.source_rows == "paired" else "source"
        return auto if self.source_text == "auto" else self.source_text

    def _make_source(self, latents: Latents, target: Branch, request: EditRequest, inversion: Inversion) -> Branch:
        texts = {"edit": request.prompt, "inversion": inversion.prompt, "source": tell_source(request, inversion)}
        text = texts[self._text]
        if self.source_rows == "paired":
            return replace(target, latents=latents, prompt=text, reads=None)
        return Branch(latents, text)

    def _strength(self, num_layers: int, step: Step, num_steps: int) -> Strength | None:
        """Return the strength per layer at this step, ``None`` where no layer reads."""
        strength = torch.zeros(num_layers, dtype=torch.float32)
        strength[list(pick(self.layers, num_layers))] = self.strength
        return strength if step.i in pick(self.steps, num_steps) and strength.any() else None


def replay(latents: Latents, velocity: Latents, stored: Latents, step: Step, inversion: Inversion) -> Latents:
    """Step latents and add what the step misses on the trajectory: ``step(z) + x*_{i+1} - step(x*_i)``.

    Args:
        latents: z, at level ``i``.
        velocity: There.
        stored: The velocity at the trajectory's own latents ``x*_i``.
        step: The row of the step table.
        inversion: Whose trajectory.

    Source: Ju et al. 2023, "Direct inversion", arXiv:2310.01506, algorithm 1.
    """
    land, levels = inversion.inverter.land, inversion.levels
    missed = levels[step.i + 1] - land(levels[step.i], stored, inversion.state, step)
    return land(latents, velocity, inversion.state, step) + missed
