"""Direct inversion corrects the edited video by what each step misses on the source's trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddim_lightning.diffusion.editors.base import EditState, apply_mask
from ddim_lightning.diffusion.editors.places import Range, check_fits, check_range, pick
from ddim_lightning.diffusion.editors.source_branch import SourceBranch
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Branch, EditRequest, KVScale, Latents, Step


@dataclass(frozen=True)
class DirectInversion(SourceBranch):
    """`DirectInversion` steps the edit by its own velocity and adds the correction that keeps the source in place.

    ``z_{i+1} = step(z_i, v_target) + x*_{i+1} - step(x*_i, v_source)``: the edit moves by the difference of the two
    velocities, so that with equal prompts and scales the source comes back exactly, whatever the inverter. This is
    FlowEdit with the inverted trajectory as its coupling. It needs the source's velocity at each step, 1 NFE more than
    an edit without; attending to the source's keys and values on top costs nothing further.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``.
        initial: See `Denoise`; likewise ``order``.
        layers: See `SourceBranch`; likewise ``steps``, ``source_rows``, ``source_text`` and ``outside``.
        kv_scale: See `SourceBranch`; 0 by default: the source corrects the edit, which does not attend to it.
        replay_steps: Half-open range of steps that are corrected, counted from noise.

    Raises:
        ValueError: An option out of its range.

    Source: Ju et al. 2023, "Direct inversion", arXiv:2310.01506, algorithm 1, with the correction on the target branch;
    compare Kulikov et al. 2024, "FlowEdit", arXiv:2412.08629.
    """

    kv_scale: float = 0.0
    replay_steps: Range = (0, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("replay_steps", self.replay_steps)

    def check(self, num_layers: int, num_steps: int) -> None:  # noqa: D102
        super().check(num_layers, num_steps)
        check_fits("replay_steps", self.replay_steps, num_steps)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:  # noqa: D102
        (target, *source), kv_scale = super().branches(state, step, inversion)
        if not self._replays(step, inversion.schedule):
            return [target, *source], kv_scale
        made = source or [self.make_source(inversion.levels[step.i], target, state.request, inversion)]
        return [target, replace(made[0], needs_velocity=True)], kv_scale

    def update(  # noqa: D102
        self, state: EditState, velocities: Sequence[Latents | None], step: Step, inversion: Inversion
    ) -> EditState:
        if not self._replays(step, inversion.schedule):
            return super().update(state, velocities, step, inversion)
        target, source = velocities
        assert target is not None
        assert source is not None
        advance, levels = inversion.inverter.step_with_velocity, inversion.levels
        missed = levels[step.i + 1] - advance(levels[step.i], source, inversion.state, step)
        latents = advance(state.latents, target, inversion.state, step) + missed
        return apply_mask(state, latents, inversion, step.i + 1)

    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:  # noqa: D102
        target_nfe = self.count_target_nfe(request, schedule)
        with_tokens = self.list_source_steps(request, len(schedule))
        needed = [step.i for step in schedule if self._replays(step, schedule) or step.i in with_tokens]
        return together * sum(target_nfe) + self.count_source_nfe(target_nfe, needed, together)

    needs = SourceBranch.needs  # the steps that are corrected evaluate the source, too

    def _replays(self, step: Step, schedule: NoiseSchedule) -> bool:
        return step.i in pick(self.replay_steps, len(schedule))
