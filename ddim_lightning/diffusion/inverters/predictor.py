"""The latents that an implicit step leads to are predicted from the velocities found before it."""

from __future__ import annotations

from collections.abc import Sequence

from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import inverse_step, solve_denoise_step
from ddim_lightning.types import Latents


def predict_point(latents: Latents, velocities: Sequence[Latents], schedule: NoiseSchedule, i: int) -> Latents:
    """Predict the latents at level ``i`` from those at level ``i + 1``.

    Two velocities are carried on along the line through them, which makes the prediction one order better than the
    last velocity alone; a parabola through three is worse on trained models.

    Args:
        latents: At level ``i + 1``.
        velocities: The last velocity and the one before it, found at the levels ``i + 1`` and ``i + 2``; as many as
            there are, at most two. Without any the latents are all that is known.
        schedule: The noise schedule.
        i: Position of the step.

    Source: with one velocity, Jiao et al. 2025, "UniEdit-Flow", arXiv:2504.13109, algorithm 1; the line is that of the
    two-step Adams-Bashforth method.
    """
    step = schedule[i]
    if not velocities:
        return latents
    if len(velocities) == 1:
        return inverse_step(latents, velocities[0], step)
    last, before = velocities
    ratio = (step.angle - step.angle_next) / (schedule[i + 1].angle - schedule[i + 1].angle_next)
    return solve_denoise_step(latents, last + ratio * (last - before), step)
