"""Inversion-free editing: move the clean video by the difference of what two prompts make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import (
    Editor,
    EditState,
    Place,
    Range,
    check_choice,
    check_strength,
    keep_outside,
    tell_source,
)
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.steps import add_noise, draw_noise, get_denoised
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Latents, Step, Strength


@dataclass(frozen=True)
class InversionFree(Editor):
    """FlowEdit in variance-preserving form: source and edit are noised alike, and their predictions compared.

    The state is the edited clean video ``z``, the source's at first. At each level both are noised with the same
    noise, ``xs = a x0 + s n`` and ``xt = a z + s n``, and

        ``z <- x0 + r (z - x0) + (1 - r) (denoised(xt, target) - denoised(xs, source))``,  ``r = s' a / (a' s)``

    with ``a', s'`` of the next level: the difference ``xt - xs`` takes the DDIM step of the difference of the
    velocities. It is regular at zero SNR (r = 0), and an edit to the same prompt at the same scale returns ``x0``. Of
    the inversion it uses the clean latents and the table alone, and for a ``velocity_mask`` some levels.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``. The
            noisiest steps move the layout, and are left out by default. Guidance in those after them moves it further
            than the prompt asks; in the later ones it makes shapes crisp, so that it begins there; in the last it only
            disturbs what is kept.
        stride: See `Editor`. Every second step is as good as every step, on the tiny model's edits, at half the calls.
        noise: ``fresh`` at every step, or ``fixed``: one for all.
        draws: Noises averaged at each step, >= 1; each costs the rows of both branches. Every second one is the
            negative of the one before it (antithetic variates), so that what is odd in the noise cancels.
        source_guidance: Scale of the source branch, >= 0, at the steps that are guided.
        strength: How much the edit attends to the keys and values of the source beside it, 0 (not at all) .. 1; see
            `KVInjection`. It costs no row, for the source is evaluated anyway, and both are noised alike. A little of
            it holds what the prompt leaves alone.

    Raises:
        ValueError: An option out of its range.

    Source: Kulikov et al. 2024, "FlowEdit: inversion-free text-based editing using pre-trained flow models",
    arXiv:2412.08629, algorithm 1 (there for flow matching).
    """

    first_step: Place = 0.08
    guidance_steps: Range = (0.42, 0.8)
    stride: int = 2
    noise: Literal["fresh", "fixed"] = "fresh"
    draws: int = 2
    source_guidance: float = 1.0
    strength: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("noise", self.noise, ("fresh", "fixed"))
        if self.draws < 1:
            raise ValueError(f"draws: must be at least 1, got {self.draws}")
        if self.source_guidance < 0:
            raise ValueError(f"source_guidance: must not be negative, got {self.source_guidance}")
        check_strength(self.strength)

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        seed = int(torch.randint(2**62, (), generator=generator))
        return EditState(inversion.levels[-1], request, num_layers, seed=seed)

    def list_doubts(self, request: EditRequest, table: StepTable, inversion_prompt: str) -> list[str]:  # noqa: D102
        doubts = super().list_doubts(request, table, inversion_prompt)
        if request.source_prompt is None and not inversion_prompt:
            doubts.append("source_prompt: not given; this editor compares with it, and edits are poorer without")
        return doubts

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:  # noqa: D102
        branches: list[Branch] = []
        for draw, (target, source) in enumerate(self._make_pairs(state, step, inversion)):
            reads = len(branches) + 1 if self.strength > 0.0 else None
            branch = self.make_target(target, state.request, step, inversion.table, reads)
            scale = 1.0 if branch.guidance_scale == 1.0 else self.source_guidance
            told = tell_source(state.request, inversion)
            # Edits under one seed noise the source alike.
            name = (state.seed, step.i, draw)
            branches += [branch, Branch(source, told, branch.negative_prompt, scale, name=name)]
        # Its dtype by name: a Trainer's precision may change the default.
        strength = torch.full((state.num_layers,), self.strength, dtype=torch.float32)
        return branches, strength if self.strength > 0.0 else None

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        clean, moved = inversion.levels[-1], torch.zeros_like(state.latents)
        pairs = zip(velocities[::2], velocities[1::2], strict=True)
        for (target, source), (v_target, v_source) in zip(self._make_pairs(state, step, inversion), pairs, strict=True):
            assert v_target is not None
            assert v_source is not None
            moved += get_denoised(target, v_target, step.angle) - get_denoised(source, v_source, step.angle)
        moved = moved / self.draws
        state = replace(state, carried=((step.angle, moved), *state.carried[:1]))
        return self._move(state, moved, step, clean)

    def carry(self, state: EditState, step: Step, inversion: Inversion) -> EditState:
        """Move by the last difference of the predictions: fresh noise would make a line through two of them rough."""
        return self._move(state, state.carried[0][1], step, inversion.levels[-1])

    def _move(self, state: EditState, moved: Latents, step: Step, clean: Latents) -> EditState:
        ratio = math.cos(step.angle) * math.sin(step.angle_next) / (math.cos(step.angle_next) * math.sin(step.angle))
        latents = clean + ratio * (state.latents - clean) + (1.0 - ratio) * moved
        return keep_outside(state, latents, clean)

    def count_calls(self, request: EditRequest, table: StepTable, together: int = 1) -> int:  # noqa: D102
        guided = self.count_guided(request, table)
        source = [min(rows, 1) if self.source_guidance == 1.0 else rows for rows in guided]
        return self.draws * (together * sum(guided) + sum(source))

    def _make_pairs(self, state: EditState, step: Step, inversion: Inversion) -> list[tuple[Latents, Latents]]:
        """Noise the edit and the source with the same noises; the same ones whenever asked for a step."""
        clean, pairs = inversion.levels[-1], []
        for draw in range(self.draws):
            drawn = draw // 2 if self.noise == "fixed" else step.i * self.draws + draw // 2
            noise = draw_noise(clean, torch.Generator().manual_seed(state.seed + drawn))
            noise = -noise if draw % 2 else noise
            pairs.append((add_noise(state.latents, noise, step.angle), add_noise(clean, noise, step.angle)))
        return pairs
