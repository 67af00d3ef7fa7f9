"""One DDIM step is a rotation in the plane of the latents and their velocity.

With ``x = cos(p) x0 + sin(p) e`` and ``v = cos(p) e - sin(p) x0`` the probability-flow ODE is ``dx/dp = v``. If ``x0``
and ``e`` are held fixed over a step, ``x`` moves on a circle; this is DDIM with eta 0.

Source: Song et al. 2021, "Denoising diffusion implicit models", equation 12; Salimans and Ho 2022, "Progressive
distillation", appendix D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddim_lightning.types import Latents, Step


def denoise_step(latents: Latents, velocity: Latents, step: Step) -> Latents:
    """Denoise latents from level ``i`` to ``i + 1``: ``cos(h) x - sin(h) v``, the update line of all sampling.

    Equal to `CogVideoXDDIMScheduler.step` in exact arithmetic.

    Args:
        latents: (b, f, c, h, w) at level ``i``.
        velocity: The velocity there, same shape.
        step: The step; ``h`` is the difference of its angles.
    """
    h = step.angle - step.angle_next
    return math.cos(h) * latents - math.sin(h) * velocity


def inverse_step(latents: Latents, velocity: Latents, step: Step) -> Latents:
    """Rotate latents from level ``i + 1`` to ``i`` by the velocity found at level ``i + 1``: ``cos(h) x + sin(h) v``.

    This is `DDIMInverseScheduler.step`. It does not undo `denoise_step`: that needs the velocity at level ``i``; see
    `solve_denoise_step`.
    """
    h = step.angle - step.angle_next
    return math.cos(h) * latents + math.sin(h) * velocity


def solve_denoise_step(latents: Latents, velocity: Latents, step: Step) -> Latents:
    """Solve `denoise_step` for its latents, given the velocity at level ``i``: ``(x + sin(h) v) / cos(h)``."""
    h = step.angle - step.angle_next
    return (latents + math.sin(h) * velocity) / math.cos(h)


def get_denoised(latents: Latents, velocity: Latents, angle: float) -> Latents:
    """Return the clean latents that a velocity predicts: ``cos(angle) x - sin(angle) v``."""
    return math.cos(angle) * latents - math.sin(angle) * velocity


def get_noise(latents: Latents, velocity: Latents, angle: float) -> Latents:
    """Return the noise that a velocity predicts: ``sin(angle) x + cos(angle) v``."""
    return math.sin(angle) * latents + math.cos(angle) * velocity


def add_noise(denoised: Latents, noise: Latents, angle: Tensor | float) -> Latents:
    """Noise clean latents to a level: ``cos(angle) x0 + sin(angle) e``.

    Args:
        denoised: Clean latents, (b, f, c, h, w).
        noise: Standard normal, same shape.
        angle: Radians; a number, or a tensor that broadcasts against the latents.
    """
    cos, sin = _cos_sin(angle)
    return cos * denoised + sin * noise


def draw_noise(like: Latents, generator: torch.Generator | None) -> Latents:
    """Draw standard normal noise.

    It is drawn on the CPU, so that a seed means the same noise on every device; its way to a GPU is from page-locked
    memory, for which the host need not wait.

    Args:
        like: Gives shape, dtype and device.
        generator: On the CPU.
    """
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu")
    return (
        noise.pin_memory().to(like.device, non_blocking=True) if like.device.type == "cuda" else noise.to(like.device)
    )


def make_velocity(denoised: Latents, noise: Latents, angle: Tensor | float) -> Latents:
    """Return the velocity at a level: ``cos(angle) e - sin(angle) x0``; arguments as in `add_noise`."""
    cos, sin = _cos_sin(angle)
    return cos * noise - sin * denoised


def _cos_sin(angle: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    if isinstance(angle, Tensor):
        return angle.cos(), angle.sin()
    return math.cos(angle), math.sin(angle)
