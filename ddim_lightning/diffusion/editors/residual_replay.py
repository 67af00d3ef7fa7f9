"""Residual replay: the edited video is corrected by what each step misses on the source's trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddim_lightning.diffusion.editors.base import EditState, Range, check_fits, check_range, keep_outside, pick
from ddim_lightning.diffusion.editors.kv_injection import KVInjection, replay
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Latents, Step, Strength


@dataclass(frozen=True)
class ResidualReplay(KVInjection):
    """Step the edit by its own velocity and add the correction that keeps the source on its trajectory.

    ``z_{i+1} = step(z_i, v_target) + x*_{i+1} - step(x*_i, v_source)``: the edit moves by the difference of the two
    velocities, so that with equal prompts and scales the source comes back exactly, whatever the inverter. This is
    FlowEdit with the inverted trajectory as its coupling. It needs the source's velocity at each step, one row more
    than an edit without; reading the source's keys and values on top costs nothing further.

    Args:
        strength: See `KVInjection`; 0 by default: the source is replayed, not read. So are all its other options.
        replay_steps: Steps that are corrected, counted from noise.

    Raises:
        ValueError: An option out of its range.

    Source: the correction of Ju et al. 2023, "Direct inversion", arXiv:2310.01506, put on the target branch; compare
    Kulikov et al. 2024, "FlowEdit", arXiv:2412.08629.
    """

    strength: float = 0.0
    replay_steps: Range = (0, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("replay_steps", self.replay_steps)
        if self.source == "replayed":
            raise ValueError("source: must be snapped where the target branch is replayed, got 'replayed'")

        if self.stride > 1:
            raise ValueError(f"stride: must be 1 where every step is replayed, got {self.stride}")

    def check(self, num_layers: int, num_steps: int) -> None:  # noqa: D102
        super().check(num_layers, num_steps)
        check_fits("replay_steps", self.replay_steps, num_steps)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:  # noqa: D102
        (target, *source), strength = super().branches(state, step, inversion)
        if not self._replays(step, inversion.table):
            return [target, *source], strength
        made = source or [self._make_source(inversion.levels[step.i], target, state.request, inversion)]
        return [target, replace(made[0], wanted=True)], strength

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        if not self._replays(step, inversion.table):
            return super().update(state, velocities, step, inversion)
        target, source = velocities
        assert target is not None
        assert source is not None
        latents = replay(state.latents, target, source, step, inversion)
        return keep_outside(state, latents, inversion.levels[step.i + 1])

    def count_calls(self, request: EditRequest, table: StepTable, together: int = 1) -> int:  # noqa: D102
        guided = self.count_guided(request, table)
        reads = self.strength > 0.0 and self.layers[0] != self.layers[1]
        reading = pick(self.steps, len(table)) if reads else range(0)
        needed = [step.i for step in table if self._replays(step, table) or step.i in reading]
        return together * sum(guided) + self._count_source(guided, needed, together)

    def _replays(self, step: Step, table: StepTable) -> bool:
        return step.i in pick(self.replay_steps, len(table))
