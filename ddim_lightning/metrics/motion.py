"""How steady a video is: the consistency of neighbouring frames, and the warp error along the motion of its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ddim_lightning.metrics.flow import FlowFn, tv_l1, warp

FeatureFn = Callable[[Float[Tensor, "f c h w"]], Float[Tensor, "f d"]]
"""Frames in 0 .. 1 to one feature vector a frame."""

_POOLED = 16
"""Cells along each side of a pooled frame."""
_PIXELS = 2**20
"""Most pixels whose flow is estimated at once."""


@dataclass(frozen=True)
class Motion:
    """How the pixels of a source video move from each frame to the next.

    Args:
        flow: (f - 1, 2, h, w) pixels, x before y: the point ``p`` of frame t is at ``p + flow[t, :, p]`` in the next.
        visible: (f - 1, h, w); True where the point is seen in both frames and does not lie on the border of a motion.
    """

    flow: Float[Tensor, "t 2 h w"]
    visible: Bool[Tensor, "t h w"]


def pool_pixels(video: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d"]:
    """Reduce each frame to its colours, 0 at mid grey, averaged over 16 x 16 cells: features that need no weights."""
    return (functional.adaptive_avg_pool2d(video, _POOLED) * 2 - 1).flatten(1)


def frame_consistency(video: Float[Tensor, "f c h w"], features: FeatureFn = pool_pixels) -> float:
    """Mean cosine similarity of the features of neighbouring frames.

    With CLIP's embedding of frames as the features this is the published CLIP-F; values of different features cannot be
    compared.

    Args:
        video: At least two frames in 0 .. 1.
        features: What describes a frame; by default its pooled pixels.

    Returns:
        A value in -1 .. 1; 1 for a still.

    Raises:
        ValueError: Fewer than two frames.

    Esser et al., "Structure and content-guided video synthesis with diffusion models", 2023, section 4.2.
    """
    _check_frames(video)
    vectors = features(video)
    return float(functional.cosine_similarity(vectors[:-1], vectors[1:], dim=1).mean())


def estimate_motion(source: Float[Tensor, "f c h w"], flow_fn: FlowFn = tv_l1) -> Motion:
    """Estimate the motion of a source video, once for all videos that are to move like it.

    A point is visible where the flow forward and the flow back from where it leads cancel, where it stays inside the
    frame, and where the flow is smooth.

    Args:
        source: At least two frames in 0 .. 1.
        flow_fn: Estimates optical flow; a network such as RAFT fits once its weights are loaded.

    Raises:
        ValueError: Fewer than two frames.

    Ruder et al., "Artistic style transfer for videos", 2016, equations 5 and 6.
    """
    _check_frames(source)
    flows, visible = [], []
    # Some pairs at a time: a flow takes dozens of copies of its frames, which is gigabytes for 49 frames of 480 x 720.
    pairs = max(1, _PIXELS // source[0, 0].numel())
    for frames, following in zip(torch.split(source[:-1], pairs), torch.split(source[1:], pairs), strict=True):
        flow, back = flow_fn(frames, following), flow_fn(following, frames)
        flows.append(flow)
        visible.append(_find_visible(flow, back))
    return Motion(torch.cat(flows), torch.cat(visible))


def warp_error(video: Float[Tensor, "f c h w"], motion: Motion) -> float:
    """Mean squared error between each frame and the next one warped back along the motion of the source.

    The mean runs over the channels of the visible pixels of a pair, then over the pairs in which any pixel is visible.
    Published tables often print it times 1000.

    Args:
        video: Frames in 0 .. 1, as many and as large as those of the source.
        motion: Of the source; see `estimate_motion`.

    Returns:
        0 for a video that moves exactly like its source and does not flicker.

    Raises:
        ValueError: Another size than the motion, or no pixel is visible in any pair.

    Lai et al., "Learning blind video temporal consistency", 2018, section 4.2.
    """
    pairs, _, h, w = motion.flow.shape
    if (len(video) - 1, *video.shape[2:]) != (pairs, h, w):
        raise ValueError(f"video: must have {pairs + 1} frames of {h} x {w} like the source, got {tuple(video.shape)}")
    if not motion.visible.any():
        raise ValueError(f"motion: must leave a visible pixel, got none in {pairs} pairs of frames")
    errors = []
    for frame, following, flow, visible in zip(video[:-1], video[1:], motion.flow, motion.visible, strict=True):
        if visible.any():
            difference = warp(following[None], flow[None])[0].double() - frame.double()
            errors.append(float(difference.square().mean(0)[visible].mean()))
    return sum(errors) / len(errors)


def _find_visible(flow: Float[Tensor, "n 2 h w"], back: Float[Tensor, "n 2 h w"]) -> Bool[Tensor, "n h w"]:
    """Mark the points of the first frames that the flow follows faithfully; the constants are the published ones."""
    returned, size = warp(back, flow), flow.square().sum(1)
    cancels = (flow + returned).square().sum(1) <= 0.01 * (size + returned.square().sum(1)) + 0.5
    down = functional.pad(flow, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    right = functional.pad(flow, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    smooth = (down.square() + right.square()).sum(1) <= 0.01 * size + 0.002
    h, w = flow.shape[-2:]
    x = torch.arange(w, device=flow.device) + flow[:, 0]
    y = torch.arange(h, device=flow.device)[:, None] + flow[:, 1]
    # The frame ends half a pixel beyond the middles of its outermost pixels.
    inside = (x >= -0.5) & (x <= w - 0.5) & (y >= -0.5) & (y <= h - 0.5)
    return cancels & smooth & inside


def _check_frames(video: Tensor) -> None:
    if len(video) < 2:
        raise ValueError(f"video: must have at least two frames, got {len(video)}")
