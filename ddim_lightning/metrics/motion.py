"""Motion fidelity says whether what moves in one video moves in the same directions in another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ddim_lightning.metrics.pieces import Piece, to_bytes

GRID = 55
"""Points of a row and of a column of the first frame that are followed, as in the program of the paper."""


def make_grid(height: int, width: int, device: torch.device) -> Float[Tensor, "n c"]:
    """Return the first points of tracks, (x, y) in pixels: a grid with a 64th of the width free around it."""
    margin = width / 64
    y = torch.linspace(margin, max(height - 1 - margin, margin), GRID, device=device)
    x = torch.linspace(margin, max(width - 1 - margin, margin), GRID, device=device)
    return torch.cartesian_prod(x, y)


def correlate(tracks: Float[Tensor, "n f c"], others: Float[Tensor, "m f c"]) -> Float[Tensor, "n m"]:
    """Return how each track agrees with each of the others: the mean cosine between their steps.

    Where both points stand still, which has no direction, they agree; where one does, the step counts 0.

    Args:
        tracks: Places (x, y) of points, frame by frame.
        others: Those of another video of as many frames.

    Returns:
        -1 .. 1.

    Yatim et al. 2024, arXiv:2311.17009, the correlation in its Motion-Fidelity-Score.
    """
    steps, other_steps = (one.diff(dim=1) for one in (tracks, others))
    directions, other_directions = (functional.normalize(one, dim=-1).flatten(1) for one in (steps, other_steps))
    still, other_still = ((one == 0).all(-1).to(steps) for one in (steps, other_steps))
    return (directions @ other_directions.T + still @ other_still.T) / steps.shape[1]


def measure_fidelity(tracks: Float[Tensor, "n f c"], others: Float[Tensor, "m f c"]) -> float:
    """Return how alike two videos move: for each track the best match in the other video, mean over both directions.

    Args:
        tracks: Places (x, y) of points, frame by frame.
        others: Those of another video of as many frames.

    Returns:
        -1 .. 1; 1 for equal motion.

    Yatim et al. 2024, arXiv:2311.17009, the Motion-Fidelity-Score, whose two sums are averaged.
    """
    agreement = correlate(tracks, others)
    return float(agreement.amax(1).mean() + agreement.amax(0).mean()) / 2


def measure_score(tracks: Float[Tensor, "n f c"], others: Float[Tensor, "n f c"]) -> float:
    """Return what the program of the paper, and with it FiVE's, prints for `measure_fidelity`.

    It looks from the edit to the source alone, and lowers by 1 how a track agrees with the one of the same place.

    Args:
        tracks: Those of the edit.
        others: As many, of the source.
    """
    agreement = correlate(tracks, others)
    return float((agreement - torch.eye(len(agreement), device=agreement.device)).amax(1).mean())


class TrackMeter:
    """A `TrackMeter` measures the motion of one clip by CoTracker, which looks at the whole clip at once.

    Args:
        names: Which of ``motion_fidelity`` and ``five_motion``.
        tracker: A `CoTrackerPredictor`: called with a video (1, f, 3, h, w) in 0 .. 255 and ``grid_size``, it returns
            tracks (1, f, n, 2) and which points are seen.
        device: Where it works.
    """

    def __init__(self, names: Collection[str], tracker: Any, device: torch.device) -> None:
        self._names, self._tracker, self._device = set(names), tracker, device
        self._videos: list[Tensor] = []
        self._references: list[Tensor] = []

    def add(self, piece: Piece) -> None:
        """Take in the next frames, which wait on the host."""
        self._videos.append(to_bytes(piece.video).cpu())
        self._references.append(to_bytes(piece.reference).cpu())

    def read(self) -> dict[str, float]:
        """Return the numbers; a clip of one frame has none."""
        videos, references = torch.cat(self._videos), torch.cat(self._references)
        if len(videos) < 2:
            return {}
        tracks, wanted = self._track(videos), self._track(references)
        numbers = {}
        if "motion_fidelity" in self._names:
            numbers["motion_fidelity"] = measure_fidelity(tracks, wanted)
        if "five_motion" in self._names:
            numbers["motion_fidelity_score"] = measure_score(tracks, wanted)
        return numbers

    @torch.no_grad()
    def _track(self, video: Tensor) -> Tensor:
        tracks, _ = self._tracker(video[None].to(self._device).float(), grid_size=GRID)
        found: Tensor = tracks[0].transpose(0, 1)
        return found
