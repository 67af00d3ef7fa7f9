"""Fixed-point inversion solves each denoising step for its latents by iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.inverters.predictor import predict_point
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import solve_denoise_step
from ddim_lightning.types import Latents, VelocityFn


@dataclass(frozen=True)
class FixedPoint(Inverter):
    """`FixedPoint` iterates ``x_i = (x + sin(h) v(x_i)) / cos(h)``, the denoising step solved, at every level.

    The iteration starts at the prediction from the last two velocities, as `UniInv` does, and is sped up by Anderson's
    method from its second evaluation on. From clean, which has no velocity before it, it starts at the latents and is
    plain. That step converges slowest, like one over the number of iterations; what it misses is the residual.

    Args:
        keep_residual: See `Inverter`.
        iterations: Most NFE of a step, >= 1; most steps need two or three.
        first_step_iterations: Most NFE of the step from clean, >= 1.
        tolerance: Stop a step once the point moved by no more than this share of its norm, in every clip of a batch; 0
            never stops early. Asking makes the host wait for the device once an evaluation.
        accelerate: Mix the last two iterates by Anderson's method.

    Raises:
        ValueError: No iteration, or a negative tolerance.

    Source: Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion" (AIDI),
    arXiv:2309.04907, equation 7, which accelerates it likewise; Garibi et al. 2024, "ReNoise", arXiv:2403.14602. The
    start is that of `UniInv`.
    """

    iterations: int = 8
    first_step_iterations: int = 4
    tolerance: float = 2e-5
    accelerate: bool = True

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("first_step_iterations", self.first_step_iterations)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance: must not be negative, got {self.tolerance}")

    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        latents, *velocities = state
        point, before = predict_point(latents, velocities, schedule, i), None
        for _ in range(self.iterations if velocities else self.first_step_iterations):
            velocity = velocity_fn(point, schedule[i])
            solved = solve_denoise_step(latents, velocity, schedule[i])
            moved = solved - point
            point = solved if before is None or not (self.accelerate and velocities) else _mix(solved, moved, *before)
            before = solved, moved
            if self.tolerance and bool((_measure(moved) <= self.tolerance * _measure(solved)).all()):
                break
        return (point, velocity, *velocities[:1]) if i > 0 else (point,)  # denoising starts without a velocity

    def count_nfe(self, num_steps: int) -> int:  # noqa: D102
        return (num_steps - 1) * self.iterations + self.first_step_iterations + self.keep_residual


def _measure(latents: Latents) -> Tensor:
    """Return the norm of each clip of a batch, (b,)."""
    norms: Tensor = torch.linalg.vector_norm(latents.detach(), dim=(1, 2, 3, 4))
    return norms


def _mix(solved: Latents, moved: Latents, solved_before: Latents, moved_before: Latents) -> Latents:
    """Anderson's method with a memory of one: the mix of two solutions whose moves, mixed alike, are shortest.

    Source: Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", algorithm AA with m = 1.
    """
    change = moved - moved_before
    # Of each clip by itself, and on the device, so that the host need not wait; two equal moves are mixed by nothing.
    along, length = ((one * change).sum(dim=(1, 2, 3, 4), keepdim=True) for one in (moved, change))
    share = along / length.clamp(min=torch.finfo(change.dtype).tiny)
    return solved - share.clamp(-1.0, 1.0) * (solved - solved_before)
