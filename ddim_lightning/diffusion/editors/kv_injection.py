"""K/V injection lets the edited video attend to the keys and values of the source's trajectory, too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ddim_lightning.diffusion.editors.base import EditState, apply_mask, check_eval_every, extrapolate
from ddim_lightning.diffusion.editors.source_branch import SourceBranch
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.types import Step


@dataclass(frozen=True)
class KVInjection(SourceBranch):
    """`KVInjection` denoises under the new prompt while attending to the keys and values of the source, layer by layer.

    It is the reference script's idea, started from the inverted latent and with the source under its own prompt. The
    script's own form is ``KVInjection(source_rows="paired", initial="random")``.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``.
        initial: See `Denoise`; likewise ``order``.
        layers: See `SourceBranch`; likewise ``steps``, ``kv_scale``, ``source_rows``, ``source_text`` and ``outside``.
        eval_every: Evaluate the network at every n-th step alone, >= 1. The velocity is carried on to the steps between
            along a line through the last two: an approximation, the same for all prompts.

    Raises:
        ValueError: An option out of its range.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``; compare Cao et al. 2023, "MasaCtrl", arXiv:2304.08465.
    """

    eval_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eval_every(self.eval_every)

    def carry(self, state: EditState, step: Step, inversion: Inversion) -> EditState:
        """Return the state at level ``i + 1``: the inverter's step with the extrapolated velocity."""
        velocity = extrapolate(state.carried, step.angle)
        latents = inversion.inverter.step_with_velocity(state.latents, velocity, inversion.state, step)
        return apply_mask(state, latents, inversion, step.i + 1)

    def fast(self) -> Self:
        """Return the same editor with the source attended to in the noisier half; a range of ``steps`` stays as it is.

        The layout is decided there; attending in the cleaner half copies what the prompt wants to change.
        """
        return replace(self, steps=(0, 0.5)) if self.steps == (0, None) else self

    needs = SourceBranch.needs  # it reads no more

    @property
    def _every(self) -> int:
        return self.eval_every
