"""Classifier-free guidance combines two velocities, by a scale that may change over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Latents, Step

GuidanceSchedule = Callable[[float, Step, NoiseSchedule], float]
"""(the scale asked for, step, schedule) -> the scale of this step."""


def combine(negative: Latents, positive: Latents, scale: float) -> Latents:
    """Return ``negative + scale (positive - negative)``.

    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance", equation 6 with ``scale = 1 + w``.
    """
    return negative + scale * (positive - negative)


def constant(scale: float, step: Step, schedule: NoiseSchedule) -> float:
    """Return the scale itself at every step."""
    return scale


def script_dynamic(scale: float, step: Step, schedule: NoiseSchedule) -> float:
    """Return the scale of the reference script's ``use_dynamic_cfg``, kept for parity with it.

    The formula expects a step count and is given the training timestep, so that the scale oscillates; it is reproduced,
    not recommended. As in the script, a scale of 1 or less means no guidance at all.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``, ``sample``.
    """
    if scale <= 1.0:
        return 1.0
    ratio = (len(schedule) - step.timestep) / len(schedule)
    return 1.0 + scale * (1.0 - math.cos(math.pi * ratio**5.0)) / 2.0


SCHEDULES: dict[str, GuidanceSchedule] = {"constant": constant, "script_dynamic": script_dynamic}
