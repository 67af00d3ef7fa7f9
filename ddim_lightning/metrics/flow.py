"""Optical flow by RAFT says how a video moves: what an edit does not follow is its warp error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.optical_flow import raft_large, raft_small

from ddim_lightning.metrics.motion import make_grid, measure_fidelity
from ddim_lightning.metrics.pieces import Piece
from ddim_lightning.metrics.running import WeightedMean

_LEAST = 128
"""Height and width in pixels below which RAFT has too few features for its pyramid."""
_MULTIPLE = 8


class Raft:
    """A `Raft` finds the optical flow from one frame to another.

    Args:
        weights: Of RAFT from torchvision, large or small; which of them is found out.
        device: Where it works.

    Raises:
        ValueError: Weights of something else.

    Teed and Deng 2020, arXiv:2003.12039, with the 12 iterations of torchvision.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        first = weights.get("feature_encoder.convnormrelu.0.weight")
        self.size = "small" if first is not None and len(first) == 32 else "large"
        network = (raft_small if self.size == "small" else raft_large)(weights=None)
        try:
            network.load_state_dict(dict(weights))
        except RuntimeError as error:
            rule = "must be the weights of raft_large or raft_small of torchvision"
            raise ValueError(f"raft_weights: {rule}, got {', '.join(list(weights)[:3]) or 'none'}") from error
        self._network = network.to(device).eval()

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return how far every pixel of the first frames moves, (n, 2, h, w) in pixels, x before y.

        Args:
            first: (n, 3, h, w) in 0 .. 1; their borders are repeated up to sizes that RAFT takes.
            second: Likewise.
        """
        height, width = first.shape[2:]
        missing = [max(_LEAST, -(-size // _MULTIPLE) * _MULTIPLE) - size for size in (width, height)]
        border = [side for gap in missing for side in (gap // 2, gap - gap // 2)]
        padded = [functional.pad(frames, border, mode="replicate") * 2 - 1 for frames in (first, second)]
        flow: Tensor = self._network(*padded)[-1]
        return flow[:, :, border[2] : border[2] + height, border[0] : border[0] + width]


class FlowMeter:
    """A `FlowMeter` measures the motion of one clip by RAFT; it keeps one frame.

    Args:
        names: Which of ``warp_error`` and ``flow_fidelity``.
        raft: Finds the flow from a frame (1, 3, h, w) to another; a `Raft`.
    """

    def __init__(self, names: Collection[str], raft: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._names, self._raft, self._means = set(names), raft, WeightedMean()
        self._last: tuple[Tensor, Tensor] | None = None
        self._tracks: list[Tensor] = []
        self._wanted: list[Tensor] = []

    def add(self, piece: Piece) -> None:
        """Take in the next frames."""
        for index in range(len(piece.video)):
            now = piece.video[index : index + 1], piece.reference[index : index + 1]
            if self._last is not None:
                self._add_step(self._last, now)
            self._last = now

    def read(self) -> dict[str, float]:
        """Return the numbers; a clip of one frame has none."""
        numbers = self._means.read()
        if self._tracks:
            tracks, wanted = (torch.stack(tracks, 1) for tracks in (self._tracks, self._wanted))
            numbers["flow_fidelity"] = measure_fidelity(tracks, wanted)
        return numbers

    def _add_step(self, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> None:
        forward = self._raft(before[1], now[1])
        if "warp_error" in self._names:
            visible = find_visible(forward, self._raft(now[1], before[1]))
            error = measure_warp(before[0], now[0], forward, visible)
            self._means.add("warp_error", error, visible.flatten(1).any(1))
        if "flow_fidelity" in self._names:
            self._tracks = _follow(self._tracks, self._raft(before[0], now[0]))
            self._wanted = _follow(self._wanted, forward)


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Return what frames show where a flow points: (n, c, h, w), bilinear; beyond the border its pixels are repeated.

    Args:
        frames: (n, c, h, w).
        flow: (n, 2, h, w) in pixels, x before y.
    """
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    return sample(frames, torch.stack([x, y]) + flow)


def sample(frames: Tensor, places: Tensor) -> Tensor:
    """Return frames (n, c, h, w) at places (n, 2, i, j) in pixels, x before y, as `warp` does."""
    height, width = frames.shape[2:]
    scale = places.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = places.permute(0, 2, 3, 1) / scale * 2 - 1
    return functional.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=True)


def find_visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Return which pixels of a frame the next one still shows, by going there and back.

    Args:
        forward: Flow from the frame to the next, (n, 2, h, w) in pixels.
        backward: Flow from the next one back.

    Returns:
        (n, h, w) bool. Not visible are pixels that do not come back, and those at borders of motion.

    Ruder et al. 2016, arXiv:1604.08610, its two rules for pixels without a match, as Lai et al. 2018 take them.
    """
    back = warp(backward, forward)
    lengths = back.square().sum(1) + forward.square().sum(1)
    is_lost = (back + forward).square().sum(1) > 0.01 * lengths + 0.5
    along_x = functional.pad(forward.diff(dim=3), (0, 1)).square()
    along_y = functional.pad(forward.diff(dim=2), (0, 0, 0, 1)).square()
    is_border = (along_x + along_y).sum(1) > 0.01 * forward.square().sum(1) + 0.002
    return ~(is_lost | is_border)


def measure_warp(before: Tensor, now: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Return how far frames are from the next ones brought back by a flow: a mean squared error over visible pixels.

    Args:
        before: (n, c, h, w) in 0 .. 1.
        now: The frames after them.
        flow: From the first to the second, (n, 2, h, w) in pixels.
        visible: (n, h, w) bool. Where nothing is visible the error is 0, which says nothing.

    Returns:
        (n,), each 0 .. 1.

    Lai et al. 2018, arXiv:1808.00449, the flow warping error; like their program it is a mean over channels, too.
    """
    error = (warp(now, flow) - before).square().mean(1)
    shown = visible.to(error)
    return (error * shown).sum((1, 2)) / shown.sum((1, 2)).clamp_min(1)


def _follow(tracks: list[Tensor], flow: Tensor) -> list[Tensor]:
    """Move the points of tracks on by the flow of a step; the first ones lie on a grid."""
    tracks = tracks or [make_grid(flow.shape[2], flow.shape[3], flow.device)]
    moved = sample(flow, tracks[-1].T[None, :, :, None])[0, :, :, 0].T
    return [*tracks, tracks[-1] + moved]
