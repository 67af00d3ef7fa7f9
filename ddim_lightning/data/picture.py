"""A decoded frame becomes a picture: upright, opaque, and in the colors of an SDR screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from ddim_lightning.data.alpha import put_on_black, read_alpha
from ddim_lightning.data.color import HDR_NAMES, needs_conversion, to_sdr
from ddim_lightning.data.deinterlace import was_interlaced
from ddim_lightning.data.fitting import fit_frame, measure_crop
from ddim_lightning.data.frames import Fit, FrameChoice
from ddim_lightning.data.mp4 import SCALER
from ddim_lightning.data.orientation import Orientation, read_orientation

_UNSPECIFIED = 2  # as FFmpeg numbers matrices of colors
_BT2020 = 9
_HD_HEIGHT = 720


@dataclass(frozen=True)
class Picture:
    """A `Picture` is a frame as it is meant to be shown.

    Args:
        pixels: (c, h, w) uint8 RGB, upright.
        pixel_aspect: Width over height of a pixel.
        notes: Sentences about what was made of the frame and cannot be undone.
    """

    pixels: Tensor
    pixel_aspect: Fraction
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PictureFacts:
    """The `PictureFacts` say how a frame is stored, as far as it is not shown as it is stored.

    Args:
        transfer: FFmpeg's number of the transfer function.
        primaries: FFmpeg's number of the primaries.
        interlaced: Whether it was interlaced; it no longer is.
        has_alpha: Whether some of its pixels are not opaque.
        orientation: How it is turned and mirrored.
    """

    transfer: int
    primaries: int
    interlaced: bool
    has_alpha: bool
    orientation: Orientation

    @property
    def converts_color(self) -> bool:
        """Whether its colors are HDR or of a wide gamut."""
        return needs_conversion(self.transfer, self.primaries)

    @property
    def notes(self) -> Iterator[str]:
        """Sentences about what is made of such a frame and cannot be undone."""
        if self.transfer in HDR_NAMES:
            yield f"the clip is HDR ({HDR_NAMES[self.transfer]}) and was converted to SDR colors (BT.709)"
        elif self.converts_color:
            yield "the clip has the wide gamut of BT.2020 and was converted to the colors of BT.709"
        if self.interlaced:
            yield "the clip is interlaced and was deinterlaced"
        if self.has_alpha:
            yield "the clip has transparent pixels (alpha) and was put on black"


def to_picture(frame: VideoFrame, stream: VideoStream) -> Picture:
    """Convert a frame to the picture that is meant to be shown.

    Frames that do not name their matrix are taken to be BT.709 from 720 lines on and BT.601 below, which is what
    players do; HDR is BT.2020. HDR and wide gamut become SDR (see `color`). Transparent pixels are put on black.

    Args:
        frame: A decoded and deinterlaced frame.
        stream: Where it comes from.
    """
    facts = read_facts(frame)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if facts.orientation.transposed:
        aspect = 1 / aspect
    return Picture(_to_rgb(frame, facts), aspect, tuple(facts.notes))


def fit_pictures(
    pictures: Iterable[Picture], choice: FrameChoice, size: tuple[int, int], fit: Fit
) -> tuple[Tensor, FrameChoice]:
    """Bring the chosen pictures to a model's size.

    Args:
        pictures: ``choice.count`` pictures.
        choice: Which they are.
        size: Height and width in pixels.
        fit: See `fit_frame`.

    Returns:
        (f, c, height, width) uint8, and the choice with what was made of the pictures.
    """
    frames = torch.empty(choice.count, 3, *size, dtype=torch.uint8)
    notes, cropped = dict.fromkeys(choice.notes), 0.0
    for i, picture in enumerate(pictures):
        frames[i] = fit_frame(picture.pixels, *size, fit, pixel_aspect=picture.pixel_aspect)
        notes.update(dict.fromkeys(picture.notes))
        if fit == "crop":
            h, w = picture.pixels.shape[1:]
            cropped = max(cropped, measure_crop(h, w, *size, picture.pixel_aspect))
    return frames, replace(choice, notes=tuple(notes), cropped=cropped)


def read_facts(frame: VideoFrame) -> PictureFacts:
    """Read how a frame is stored.

    Args:
        frame: A decoded and deinterlaced frame.
    """
    return PictureFacts(
        transfer=int(frame.color_trc),
        primaries=int(frame.color_primaries),
        interlaced=was_interlaced(frame),
        has_alpha=read_alpha(frame) is not None,
        orientation=read_orientation(frame),
    )


def _to_rgb(frame: VideoFrame, facts: PictureFacts) -> Tensor:
    """Convert to (c, h, w) uint8, turned and mirrored as the metadata say."""
    colorspace: int | None = None
    if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
        colorspace = Colorspace.ITU709 if min(frame.height, frame.width) >= _HD_HEIGHT else Colorspace.ITU601
        colorspace = _BT2020 if facts.converts_color else colorspace
    layout = "rgb48le" if facts.converts_color else "rgb24"
    codes = frame.to_ndarray(format=layout, src_colorspace=colorspace, interpolation=SCALER, threads=1)
    if facts.converts_color:
        pixels = to_sdr(codes.astype(np.uint16, copy=False), facts.transfer, facts.primaries)
    else:
        pixels = torch.from_numpy(np.asarray(codes)).permute(2, 0, 1)
    alpha = read_alpha(frame) if facts.has_alpha else None
    if alpha is not None:
        pixels = put_on_black(pixels, alpha)
    return facts.orientation.apply(pixels)
