"""An edit starts on the trajectory, in fresh noise, or in a mix of both."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import add_noise, draw_noise
from ddim_lightning.types import Latents, Needs


def make_inverted(inversion: Inversion, i: int, generator: torch.Generator | None, order: int) -> Latents:
    """Return the trajectory's own latents."""
    return inversion.levels[i]


def make_random(inversion: Inversion, i: int, generator: torch.Generator | None, order: int) -> Latents:
    """Return the clean latents under fresh noise, of which nothing is left at the level of zero SNR.

    Source: Meng et al. 2021, "SDEdit", arXiv:2108.01073, for levels below noise.
    """
    clean, schedule = inversion.clean, inversion.schedule
    noise = draw_noise(clean, generator)
    # At zero SNR cos(pi/2) is not quite 0 in floating point; the script's start is the noise itself.
    return noise if _is_noise(schedule, i) else add_noise(clean, noise, schedule.angles[i])


def make_k_rnr(inversion: Inversion, i: int, generator: torch.Generator | None, order: int) -> Latents:
    """Return K-order recursive noise: ``a (1 - s^K) / (1 - s) x0 + s^K x_T``.

    It carries the source's own signal into the start. It is no inverse.

    Source: Yesiltepe and Yanardag 2025, "Dynamic view synthesis as an inverse problem", arXiv:2506.08004, equation 7.
    """
    angle = inversion.schedule.angles[i]
    signal, noise = math.cos(angle), math.sin(angle)
    weight = signal * sum(noise**k for k in range(order))
    return weight * inversion.clean + noise**order * inversion.x_T


STARTS: dict[str, Callable[[Inversion, int, torch.Generator | None, int], Latents]] = {
    "inverted": make_inverted,
    "random": make_random,
    "k_rnr": make_k_rnr,
}


def make_start(name: str, inversion: Inversion, i: int, generator: torch.Generator | None, order: int) -> Latents:
    """Make the latents an edit starts from.

    Args:
        name: One of `STARTS`.
        inversion: The source video's inversion.
        i: The level, 0 (noise) .. N - 1.
        generator: Source of fresh noise; lies on the CPU.
        order: K of ``k_rnr``, >= 1.

    Returns:
        (b, f, c, h, w), in the dtype of the trajectory.
    """
    return STARTS[name](inversion, i, generator, order)


def find_start_needs(name: str, schedule: NoiseSchedule, i: int) -> Needs:
    """Return what of an inversion `make_start` reads.

    Args:
        name: One of `STARTS`.
        schedule: The noise schedule.
        i: The level, 0 (noise) .. N - 1.
    """
    if name != "random":
        return "levels"
    return "nothing" if _is_noise(schedule, i) else "clean"


def _is_noise(schedule: NoiseSchedule, i: int) -> bool:
    """Whether nothing of a video is left at a level: zero SNR."""
    return schedule.angles[i] >= math.pi / 2
