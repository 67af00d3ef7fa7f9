"""Optical flow without weights: the duality-based TV-L1 method, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

FlowFn = Callable[[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]], Float[Tensor, "n 2 h w"]]
"""Frames and the frames that follow them, 0 .. 1, to the flow in pixels, x before y, from the ones to the others."""

_COARSEST = 8
"""The pyramid ends where another halving would leave a side shorter than this many pixels."""
_WARPS = 5
"""How often a level is linearised anew."""
_ITERATIONS = 30
"""Alternations between the brightness and the smoothness term for each linearisation."""
_ATTACHMENT = 15.0
"""Weight of the brightness term, lambda in the paper, for brightness in 0 .. 1."""
_TIGHTNESS = 0.3
"""How far the two halves of the splitting may differ, theta in the paper."""
_DUAL_STEP = 0.25
"""Step of the dual ascent, tau in the paper; larger ones need not converge."""


def tv_l1(frames: Float[Tensor, "n c h w"], following: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2 h w"]:
    """Estimate dense optical flow, smooth but for sharp borders.

    The method knows one number a pixel. Brightness may hide a red shape on a green wall, so it gets the shade along the
    colour axis in which neighbouring pixels of a frame differ most; for grey video the two agree.

    Args:
        frames: Values in 0 .. 1.
        following: Values in 0 .. 1, of the same shape.

    Returns:
        Pixels, x before y: the point ``p`` of a frame is at ``p + flow[:, p]`` in the one that follows.

    Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow", 2007.
    """
    axis = _find_colour_axis(frames)
    pyramid = [((frames * axis).sum(1, keepdim=True), (following * axis).sum(1, keepdim=True))]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _COARSEST:
        pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
    flow = pyramid[-1][0].new_zeros(1).expand(len(frames), 2, *pyramid[-1][0].shape[-2:])
    for coarse, other in reversed(pyramid):
        flow = _refine(coarse, other, _resize_flow(flow, coarse.shape[-2], coarse.shape[-1]))
    return flow


def warp(frames: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n c h w"]:
    """Fetch each pixel from where the flow leads, bilinearly; beyond the border lies the border's nearest pixel."""
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device) + flow[:, 0]
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    # grid_sample counts from -1, the middle of the first pixel, to 1, the middle of the last.
    grid = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1), dim=-1)
    return functional.grid_sample(frames, grid.to(frames.dtype), padding_mode="border", align_corners=True)


def _refine(frames: Tensor, following: Tensor, flow: Tensor) -> Tensor:
    """Improve the flow of one level."""
    dual = torch.zeros_like(torch.stack((flow, flow)))  # along x and along y, of both components of the flow
    bound = _ATTACHMENT * _TIGHTNESS
    for _ in range(_WARPS):
        warped = warp(following, flow)
        gradient = _differentiate(warped)
        steepness = gradient.square().sum(1, keepdim=True).clamp_min(1e-12)
        constant = warped - frames - (gradient * flow).sum(1, keepdim=True)
        for _ in range(_ITERATIONS):
            # Brightness: the exact minimiser of |mismatch| near the current flow, pixel by pixel.
            mismatch = constant + (gradient * flow).sum(1, keepdim=True)
            target = flow - gradient * (mismatch / steepness).clamp(-bound, bound)
            # Smoothness: one step of Chambolle's dual ascent towards that target.
            slope = torch.stack((_forward(flow, 3), _forward(flow, 2)))
            length = slope.square().sum(0).sqrt()
            dual = (dual + _DUAL_STEP / _TIGHTNESS * slope) / (1 + _DUAL_STEP / _TIGHTNESS * length)
            flow = target + _TIGHTNESS * (_backward(dual[0], 3) + _backward(dual[1], 2))
    return flow


def _find_colour_axis(frames: Tensor) -> Tensor:
    """First principal axis of the differences of neighbouring pixels, (n, c, 1, 1); grey keeps its brightness."""
    right, down = frames.diff(dim=3).flatten(2), frames.diff(dim=2).flatten(2)
    axis: Tensor = torch.linalg.eigh(right @ right.mT + down @ down.mT).eigenvectors[:, :, -1]
    return (axis / math.sqrt(frames.shape[1]))[:, :, None, None]


def _forward(field: Tensor, dim: int) -> Tensor:
    """Forward differences, 0 at the far border."""
    return functional.pad(field.diff(dim=dim), (0, 1) if dim == 3 else (0, 0, 0, 1))


def _backward(field: Tensor, dim: int) -> Tensor:
    """Backward differences, minus the adjoint of `_forward`: the field is 0 beyond both borders."""
    inner = field.narrow(dim, 0, field.shape[dim] - 1)
    return functional.pad(inner, (1, 1) if dim == 3 else (0, 0, 1, 1)).diff(dim=dim)


def _differentiate(brightness: Tensor) -> Tensor:
    """Central differences along x and along y, one-sided at the borders."""
    right, down = torch.gradient(brightness, dim=(3, 2))
    return torch.cat((right, down), dim=1)


def _halve(frames: Tensor) -> Tensor:
    size = ((frames.shape[-2] + 1) // 2, (frames.shape[-1] + 1) // 2)
    return functional.interpolate(frames, size, mode="bilinear", antialias=True)


def _resize_flow(flow: Tensor, h: int, w: int) -> Tensor:
    scale = flow.new_tensor([w / flow.shape[-1], h / flow.shape[-2]])
    return functional.interpolate(flow, (h, w), mode="bilinear") * scale[:, None, None]
