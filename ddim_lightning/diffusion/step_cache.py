"""A step cache evaluates a model only where what it is told has changed enough, and foretells the other steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddim_lightning.diffusion.editors.base import extrapolate
from ddim_lightning.types import Branch, Context, Denoiser, KVScale, Latents, Step


@dataclass(frozen=True)
class StepCache:
    """A `StepCache` says at which steps of an edit the network is evaluated, for all branches alike.

    At the first and the last step it is; between them at each step where the changes since the last evaluation come to
    the threshold. That is known before an edit begins: nothing of a pass is looked at, so no host waits for a device.

    Args:
        threshold: >= 0; 0 evaluates every step.
        changes: For each step of the schedule how much what the model is told of the timestep has changed since the
            step before, relative L1; see `network.timestep_changes`. The first is 0.

    Source: Liu et al. 2024, "Timestep embedding tells: it's time to cache for video diffusion model" (TeaCache),
    arXiv:2411.19108 (its accumulated relative L1 distance), on the input that its authors take for CogVideoX.
    """

    threshold: float
    changes: tuple[float, ...]

    def skips(self, i: int, seen: int) -> bool:
        """Return whether step ``i`` is foretold, where ``seen`` was the last one evaluated."""
        return i < len(self.changes) - 1 and sum(self.changes[seen + 1 : i + 1]) < self.threshold


class CachedDenoiser:
    """A `CachedDenoiser` is a `Denoiser` of one edit that foretells the velocities of the steps that its cache skips.

    A foretold velocity lies on the line through the last two that were evaluated, by the angle of their steps. All
    branches are evaluated or none: so a source, an edit and what guidance moves away from stay of one step. Where the
    branches are others than those of the last evaluation (guidance sets in, or the source is no longer read), they are
    evaluated. Two velocities a branch are kept, each of the size of its latents, those of a long clip as a whole.

    Args:
        denoiser: The model.
        cache: Which steps are skipped.

    Source: Liu et al. 2025, "From reusing to forecasting: accelerating diffusion models with TaylorSeers",
    arXiv:2503.06923, with the first derivative alone, of what the network returns instead of what its layers do.
    """

    def __init__(self, denoiser: Denoiser, cache: StepCache) -> None:
        self.denoiser = denoiser
        self.cache = cache
        self._seen = -1
        """The last step that was evaluated."""
        self._form: Any = None
        """What its branches were."""
        self._kept: list[tuple[float, list[Latents | None]]] = []
        """Angles and velocities of the last two evaluations of branches of this form, newest first."""

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.denoiser.num_layers

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Evaluate all branches, or foretell them all; see `Denoiser`."""
        form = [(one.prompts, one.kv_source, one.needs_velocity, one.mask is None) for one in branches]
        if form == self._form and self.cache.skips(step.i, self._seen):
            return [self._foretell(k, step.angle) for k in range(len(branches))]
        velocities = self.denoiser(branches, step, kv_scale)
        before = self._kept[:1] if form == self._form else []
        self._seen, self._form, self._kept = step.i, form, [(step.angle, velocities), *before]
        return velocities

    def hold(self, branch: Branch) -> Context:
        """Evaluate a branch for its keys and values; see `Denoiser`."""
        return self.denoiser.hold(branch)

    def _foretell(self, k: int, angle: float) -> Latents | None:
        carried = [(then, found) for then, velocities in self._kept if (found := velocities[k]) is not None]
        return extrapolate(carried, angle) if carried else None
