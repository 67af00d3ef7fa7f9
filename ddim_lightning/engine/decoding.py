"""A video is decoded and measured piece by piece, so that a long clip takes no more device memory than a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddim_lightning.engine.measuring import SourceMeter
from ddim_lightning.metrics.diagnosis import measure_color
from ddim_lightning.metrics.functional import use_full_precision
from ddim_lightning.metrics.running import FrameMean, compare, read_comparison
from ddim_lightning.models.vae import quantize
from ddim_lightning.runtime.timing import StageTimer
from ddim_lightning.types import Frames, Video


@dataclass
class DecodedVideo:
    """A `DecodedVideo` is what came out of the decoder, on the CPU.

    Args:
        frames: (f, c, h, w) uint8.
        video: The same before rounding, floats in 0 .. 1; ``None`` unless another video is compared with it.
        color: `describe_color` of it.
        metrics: ``psnr`` and ``ssim`` against each reference, with the reference's suffix; and what else was asked for.
    """

    frames: Frames
    video: Tensor | None = None
    color: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def measure_decoded(
    pieces: Iterator[Video],
    references: Mapping[str, Tensor],
    timer: StageTimer,
    check: Callable[[Tensor], None],
    *,
    keep: bool = False,
    meter: SourceMeter | None = None,
) -> DecodedVideo:
    """Take a video from the decoder piece by piece, measure each piece before it is rounded, and let go of it.

    Args:
        pieces: What `InversionEngine.stream` yields, of one clip.
        references: By suffix of the metrics' names what the video is compared with, (f, c, h, w) uint8 or floats in
            0 .. 1, on any device; at least one.
        timer: Told the time of ``decode`` and of ``measure``.
        check: Called with every piece; raises where it is unfit.
        keep: Also keep the video as it was before rounding.
        meter: Measures what else was asked for.
    """
    like = next(iter(references.values()))
    decoded = DecodedVideo(torch.empty(like.shape, dtype=torch.uint8, device="cpu"))
    if keep:
        decoded.video = torch.empty(like.shape, dtype=torch.float32, device="cpu")
    measures, done = FrameMean(), 0
    while True:
        with timer.stage("decode"):
            piece = next(pieces, None)
        if piece is None:
            break
        video = piece[0]
        check(video)
        with timer.stage("measure"), use_full_precision(video.device):
            where = slice(done, done + len(video))
            values = measure_color(video)
            for suffix, reference in references.items():
                wanted = reference[where].to(video.device)
                wanted = wanted.float() / 255.0 if wanted.dtype == torch.uint8 else wanted
                values |= compare(video, wanted, suffix)
            measures.add(values, len(video))
            if meter is not None:
                meter.add(video, where)
            decoded.frames[where] = quantize(video)
            if decoded.video is not None:
                decoded.video[where] = video
            done = where.stop
    with timer.stage("measure"), use_full_precision(timer.device):
        means = measures.read()
        asked = {} if meter is None else meter.read()
    decoded.color = {name: means[name] for name in ("saturation", "brightness")}
    for suffix in references:
        decoded.metrics |= read_comparison(means, suffix)
    decoded.metrics = decoded.metrics | {name: asked[name] for name in asked if name not in decoded.metrics}
    return decoded
