"""Fixed-point inversion: solve each forward step for its argument by iteration."""

from __future__ import annotations

from dataclasses import dataclass

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.inverters.predictor import predict_point
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.steps import solve_forward_step
from ddim_lightning.types import VelocityFn


@dataclass(frozen=True)
class FixedPoint(Inverter):
    """Iterate ``x_i = (x + sin(h) v(x_i)) / cos(h)``, the forward step read backwards, at every level.

    The iteration starts at the prediction from the last two velocities, as `UniInv` does; from clean, which has no
    velocity before it, at the latents themselves. That step converges slowest, like one over the number of iterations;
    what it misses is the residual.

    Args:
        keep_residual: See `Inverter`.
        iterations: Most calls a step, >= 1.
        clean_iterations: Most calls on the step from clean, >= 1.
        tolerance: Stop a step once the point moved by no more than this share of its norm; 0 never stops early.
            Asking makes the host wait for the device once a call.

    Raises:
        ValueError: No iteration, or a negative tolerance.

    Source: Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion" (AIDI),
    arXiv:2309.04907, equation 7; Garibi et al. 2024, "ReNoise", arXiv:2403.14602. The start is that of `UniInv`.
    """

    iterations: int = 3
    clean_iterations: int = 8
    tolerance: float = 3e-5

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("clean_iterations", self.clean_iterations)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance: must not be negative, got {self.tolerance}")

    def up(self, velocity_fn: VelocityFn, state: State, table: StepTable, i: int) -> State:  # noqa: D102
        latents, *velocities = state
        point = predict_point(latents, velocities, table, i)
        for _ in range(self.iterations if velocities else self.clean_iterations):
            velocity = velocity_fn(point, table[i])
            last, point = point, solve_forward_step(latents, velocity, table[i])
            if self.tolerance and float((point - last).norm()) <= self.tolerance * float(point.norm()):
                break
        return (point, velocity, *velocities[:1]) if i > 0 else (point,)  # the way down needs no velocity

    def count_calls(self, num_steps: int) -> int:  # noqa: D102
        return (num_steps - 1) * self.iterations + self.clean_iterations + self.keep_residual
