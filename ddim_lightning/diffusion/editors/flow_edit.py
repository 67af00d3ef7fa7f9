"""FlowEdit moves the clean video by the difference of what the model makes of it under two prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import (
    Editor,
    EditState,
    apply_mask,
    check_choice,
    check_eval_every,
    check_kv_scale,
    get_source_prompt,
)
from ddim_lightning.diffusion.editors.places import Place
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import add_noise, draw_noise, get_denoised
from ddim_lightning.types import Branch, EditRequest, KVScale, Latents, Needs, Step


@dataclass(frozen=True)
class FlowEdit(Editor):
    """`FlowEdit` noises source and edit alike at each level and moves the edit by the difference of their predictions.

    It is written in variance-preserving form. The state is the edited clean video ``z``, the source's at first. At each
    level both are noised with the same noise, ``xs = a x0 + s n`` and ``xt = a z + s n``, and

        ``z <- x0 + r (z - x0) + (1 - r) (denoised(xt, target) - denoised(xs, source))``,  ``r = s' a / (a' s)``

    with ``a', s'`` of the next level: the difference ``xt - xs`` takes the DDIM step of the difference of the
    velocities. It is regular at zero SNR (r = 0), and an edit to the same prompt at the same scale returns ``x0``. Of
    the inversion it uses the clean latents and the schedule alone, and for a ``velocity_mask`` some levels.

    The defaults are those of the paper for Stable Diffusion 3: the first 17 of 50 steps are left out, one noise a step,
    the source guided by 3.5.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``. The
            noisiest steps move the layout.
        noise: ``fresh`` at every step, or ``fixed``: one for all.
        num_noise_samples: Noises averaged at each step, >= 1; each costs the NFE of both branches. Every second one is
            the negative of the one before it (antithetic variates), so that what is odd in the noise cancels.
        source_guidance: Guidance scale of the source, >= 0, at the steps where the edit is guided.
        kv_scale: How much the edit attends to the keys and values of the source beside it, 0 (not at all) .. 1; see
            `SourceBranch`. It costs no NFE, for the source is evaluated anyway. A little of it holds what the prompt
            leaves alone.
        eval_every: Evaluate the network at every n-th step alone, >= 1. The difference that it found is carried on to
            the steps between: an approximation, the same for all prompts.
        outside: Whose tokens the network sees outside a mask: ``edit`` evaluates the edit's own there, too; ``source``
            takes those of the source beside it, in every layer, and evaluates the edit inside alone, for less work.

    Raises:
        ValueError: An option out of its range.

    Source: Kulikov et al. 2024, "FlowEdit: inversion-free text-based editing using pre-trained flow models",
    arXiv:2412.08629, algorithm 1 (there for flow matching) and appendix with the settings of Stable Diffusion 3.
    """

    first_step: Place = 0.34
    noise: Literal["fresh", "fixed"] = "fresh"
    num_noise_samples: int = 1
    source_guidance: float = 3.5
    kv_scale: float = 0.0
    eval_every: int = 1
    outside: Literal["edit", "source"] = "edit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("noise", self.noise, ("fresh", "fixed"))
        if self.num_noise_samples < 1:
            raise ValueError(f"num_noise_samples: must be at least 1, got {self.num_noise_samples}")
        if self.source_guidance < 0:
            raise ValueError(f"source_guidance: must not be negative, got {self.source_guidance}")
        check_kv_scale(self.kv_scale)
        check_eval_every(self.eval_every)
        check_choice("outside", self.outside, ("edit", "source"))

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        return EditState(inversion.clean, request, num_layers, seed=seed)

    def check_request(self, request: EditRequest, schedule: NoiseSchedule, inversion_prompt: str) -> list[str]:  # noqa: D102
        found = super().check_request(request, schedule, inversion_prompt)
        if request.source_prompt is None and not inversion_prompt:
            found.append("source_prompt: not given; this editor compares with it, and edits are poorer without")
        return found

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:  # noqa: D102
        branches: list[Branch] = []
        prompt, mask = get_source_prompt(state.request, inversion), self.get_token_mask(state.request)
        has_source = self.kv_scale > 0.0 or mask is not None
        for k, (target, source) in enumerate(self._make_pairs(state, step, inversion)):
            kv_source = len(branches) + 1 if has_source else None
            branch = self.make_target(target, state.request, step, inversion.schedule, kv_source)
            branch = replace(branch, mask=mask)
            scale = 1.0 if branch.guidance_scale == 1.0 else self.source_guidance
            # Edits under one seed noise the source alike.
            cache_key = (state.seed, step.i, k)
            branches += [branch, Branch(source, prompt, branch.negative_prompt, scale, cache_key=cache_key)]
        # Its dtype by name: a Trainer's precision may change the default.
        kv_scale = torch.full((state.num_layers,), self.kv_scale, dtype=torch.float32, device="cpu")
        return branches, kv_scale if has_source else None

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        moved = torch.zeros_like(state.latents)
        pairs = zip(velocities[::2], velocities[1::2], strict=True)
        for (target, source), (v_target, v_source) in zip(self._make_pairs(state, step, inversion), pairs, strict=True):
            assert v_target is not None
            assert v_source is not None
            moved += get_denoised(target, v_target, step.angle) - get_denoised(source, v_source, step.angle)
        moved = moved / self.num_noise_samples
        state = replace(state, carried=((step.angle, moved), *state.carried[:1]))
        return self._move(state, moved, step, inversion)

    def carry(self, state: EditState, step: Step, inversion: Inversion) -> EditState:
        """Move by the last difference of the predictions: fresh noise would make a line through two of them rough."""
        return self._move(state, state.carried[0][1], step, inversion)

    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:  # noqa: D102
        target_nfe = self.count_target_nfe(request, schedule)
        source_nfe = [min(nfe, 1) if self.source_guidance == 1.0 else nfe for nfe in target_nfe]
        return self.num_noise_samples * (together * sum(target_nfe) + sum(source_nfe))

    def needs(self, request: EditRequest, schedule: NoiseSchedule, inverter: Inverter) -> Needs:
        """Return ``clean``, unless a mask is made from velocities."""
        return "levels" if self.finds_mask(request) else "clean"

    @property
    def splits_tokens(self) -> bool:  # noqa: D102
        return self.outside == "source"

    @property
    def _every(self) -> int:
        return self.eval_every

    def _move(self, state: EditState, moved: Latents, step: Step, inversion: Inversion) -> EditState:
        clean = inversion.clean
        ratio = math.cos(step.angle) * math.sin(step.angle_next) / (math.cos(step.angle_next) * math.sin(step.angle))
        latents = clean + ratio * (state.latents - clean) + (1.0 - ratio) * moved
        return apply_mask(state, latents, inversion, -1)

    def _make_pairs(self, state: EditState, step: Step, inversion: Inversion) -> list[tuple[Latents, Latents]]:
        """Noise the edit and the source with the same noises; the same ones whenever asked for a step."""
        clean, pairs = inversion.clean, []
        for k in range(self.num_noise_samples):
            drawn = k // 2 if self.noise == "fixed" else step.i * self.num_noise_samples + k // 2
            noise = draw_noise(clean, torch.Generator().manual_seed(state.seed + drawn))
            noise = -noise if k % 2 else noise
            pairs.append((add_noise(state.latents, noise, step.angle), add_noise(clean, noise, step.angle)))
        return pairs
