"""Overlapping windows make one velocity of a long clip from a model that was trained on short ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_lightning.types import Branch, Context, Denoiser, KVScale, Latents, Step


@dataclass(frozen=True)
class Windows:
    """The `Windows` of a model say how the latent frames of a long clip are covered by pieces that it takes at once.

    All windows have the full length, so that each is of the shape that the model was trained on, compiled for or
    exported with. There are as few as the overlap allows, spread evenly: the last one ends with the clip.

    Args:
        length: Latent frames of a window, >= 2.
        overlap: Latent frames that neighbors share at least, 1 .. length - 1. The first of them leads the later window
            in; over the others the two are blended.

    Raises:
        ValueError: An overlap out of its range.
    """

    length: int
    overlap: int

    def __post_init__(self) -> None:
        if not 1 <= self.overlap < self.length:
            raise ValueError(f"overlap: must be in 1 .. {self.length - 1}, got {self.overlap}")

    def list_starts(self, num_frames: int) -> list[int]:
        """Return where the windows over so many latent frames begin; one window takes a clip that fits."""
        last = num_frames - self.length
        if last <= 0:
            return [0]
        steps = -(-last // (self.length - self.overlap))
        return [k * last // steps for k in range(steps + 1)]

    def make_weights(self, num_frames: int) -> list[Tensor]:
        """Return what each window counts for at each of its frames: it fades in as the one before it fades out.

        The first frame of a later window counts for nothing: a model was trained to find there the latent of a single
        frame, and finds one of four. Weights sum to 1, and where a window is alone it counts for exactly 1.

        Args:
            num_frames: Latent frames of the clip, at least those of a window.

        Returns:
            For each window a tensor (length,), float64.
        """
        starts = self.list_starts(num_frames)
        ramp = torch.arange(self.length, dtype=torch.float64, device="cpu")
        triangle = torch.minimum(ramp, self.length - ramp)
        total = torch.zeros(num_frames, dtype=torch.float64, device="cpu")
        total[0] = 1.0
        for start in starts:
            total[start : start + self.length] += triangle
        weights = [triangle / total[start : start + self.length] for start in starts]
        weights[0][0] = 1.0  # no window before it covers the first frame of the clip
        return weights


def evaluate_windows(
    denoiser: Denoiser, windows: Windows, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None
) -> list[Latents | None]:
    """Evaluate branches that are longer than a window, window by window, and blend the velocities where they overlap.

    What comes out is one velocity field of the whole clip, a function of its latents alone. Whatever follows it, an
    inverter in either direction or an editor, works on the whole clip and knows nothing of windows; noise is that of
    the clip, shared where windows overlap.

    Args:
        denoiser: Evaluates one window of all branches, one pass for each.
        windows: How the clip is covered.
        branches: The trajectories, all of one length; see `Branch`.
        step: The step.
        kv_scale: See `Denoiser`; a branch attends to the same window of its source, held or not.

    Returns:
        For each branch its velocity, on the device of its latents, or ``None`` where it is not needed.

    Source: Bar-Tal et al. 2023, "MultiDiffusion", arXiv:2302.08113, equation 5, over time instead of over the picture;
    Wang et al. 2023, "Gen-L-Video", arXiv:2305.18264.
    """
    num_frames = branches[0].latents.shape[1]
    blended = [torch.zeros_like(branch.latents) if branch.needs_velocity else None for branch in branches]
    starts_weights = zip(windows.list_starts(num_frames), windows.make_weights(num_frames), strict=True)
    for k, (start, weights) in enumerate(starts_weights):
        frames = slice(start, start + windows.length)
        pieces = [
            replace(
                branch,
                latents=branch.latents[:, frames],
                context=None if branch.context is None else branch.context[k : k + 1],
                mask=None if branch.mask is None else branch.mask[:, frames],
            )
            for branch in branches
        ]
        for whole, velocity in zip(blended, denoiser(pieces, step, kv_scale), strict=True):
            if whole is not None and velocity is not None:
                whole[:, frames] += weights.to(velocity)[:, None, None, None] * velocity
    return blended


def hold_windows(denoiser: Denoiser, windows: Windows, branch: Branch) -> Context:
    """Hold a branch that is longer than a window, window by window.

    Args:
        denoiser: Holds one window.
        windows: How the clip is covered.
        branch: The trajectory; see `Denoiser.hold`.
    """
    starts = windows.list_starts(branch.latents.shape[1])
    pieces = [replace(branch, latents=branch.latents[:, start : start + windows.length]) for start in starts]
    return tuple(held for piece in pieces for held in denoiser.hold(piece))
