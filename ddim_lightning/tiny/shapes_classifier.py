"""A classifier reads the words of a shapes caption back from pixels alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ddim_lightning.tiny.shapes import BACKGROUNDS, COLORS, SHAPES, SIZE, make_coverage, make_grid
from ddim_lightning.types import Frames

_MIN_CONTRAST = 40.0
_MAX_ROUGHNESS = 15.0
_MAX_COLOUR_ERROR = 55.0
_AREA = (150.0, 1100.0)
_MIN_IOU = 0.84
_MIN_SPEED = 1.0


@dataclass(frozen=True)
class Labels:
    """`Labels` are what the classifier sees in a clip; ``None`` where it recognizes nothing."""

    shape: str | None
    color: str | None
    background: str | None
    direction: str | None


def classify(frames: Frames) -> Labels:
    """Read the words of the caption back from the pixels.

    The background is the plane that fits the pixels away from the object; the object is what differs from it; its
    shape is the template with the largest soft intersection over union, at the radius that its area says; its
    direction is the slope of its centroids.

    Args:
        frames: (f, 3, 64, 64) uint8 RGB, f >= 2.

    Raises:
        ValueError: Frames of another size.
    """
    if frames.ndim != 4 or frames.shape[0] < 2 or frames.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"frames must be (f >= 2, 3, {SIZE}, {SIZE}), got {tuple(frames.shape)}")
    pixels = frames.float()
    plane, away = _background_plane(pixels)
    roughness = float(((pixels - plane) * away[:, None]).square().sum().div(3 * away.sum()).sqrt())
    if roughness > _MAX_ROUGHNESS:
        return Labels(None, None, None, None)
    background = _nearest(plane.mean((1, 2)), BACKGROUNDS)
    coverage, tint = _object_coverage(pixels, plane)
    if coverage is None:
        return Labels(None, None, background, None)
    area = coverage.sum((1, 2))
    seen = (area > _AREA[0]) & (area < _AREA[1])
    if int(seen.sum()) * 4 < 3 * len(frames):
        return Labels(None, None, background, None)
    x, y = _centroids(coverage)
    shape = _match_shape(coverage[seen], x[seen], y[seen])
    times = torch.arange(len(frames), dtype=torch.float32)[seen]
    return Labels(shape, _nearest(tint, COLORS), background, _match_direction(times, x[seen], y[seen]))


def _background_plane(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the shaded background: the plane (3, 64, 64), and the pixels it was fitted to, (f, 64, 64) in {0, 1}."""
    x, y = make_grid()
    design = torch.stack(
        [torch.ones(SIZE, SIZE), (x / SIZE - 0.5).expand(SIZE, SIZE), (y / SIZE - 0.5).expand(SIZE, SIZE)]
    )
    away = torch.zeros(len(pixels), SIZE, SIZE)
    away[:, :4], away[:, -4:], away[:, :, :4], away[:, :, -4:] = 1, 1, 1, 1
    for _ in range(3):  # from the border inwards, as the object shows itself
        normal = torch.einsum("ihw,jhw,fhw->ij", design, design, away)
        target = torch.einsum("ihw,fchw,fhw->ic", design, pixels, away)
        plane = torch.einsum("ic,ihw->chw", torch.linalg.solve(normal + 1e-3 * torch.eye(3), target), design)
        away = ((pixels - plane).norm(dim=1) < _MIN_CONTRAST).float()
        if float(away.mean()) < 0.2:  # no plane explains this clip
            break
    return plane, away.clamp(min=1e-6)


def _object_coverage(pixels: Tensor, plane: Tensor) -> tuple[Tensor | None, Tensor]:
    """How much of each pixel is object, (f, 64, 64), or ``None`` without one; and its color (3,)."""
    contrast = (pixels - plane).norm(dim=1)
    inside = contrast > _MIN_CONTRAST
    if int(inside.sum()) < _AREA[0]:
        return None, torch.zeros(3)
    # The middle of the object: pixels of an edge are mixtures, and lie below the typical contrast.
    core = contrast >= contrast[inside].median() * 0.9
    tint = pixels.permute(1, 0, 2, 3)[:, core].median(dim=1).values
    axis = tint[:, None, None] - plane
    coverage = ((pixels - plane) * axis).sum(1) / axis.square().sum(0).clamp(min=1.0)
    return coverage.clamp(0, 1) * inside, tint


def _centroids(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Centers of mass (f,) and (f,) of weights (f, 64, 64)."""
    x, y = make_grid()
    total = weight.sum((1, 2)).clamp(min=1e-6)
    return (weight * x).sum((1, 2)) / total, (weight * y).sum((1, 2)) / total


@cache
def _moments(shape: str) -> tuple[float, float]:
    """Area in squared radii, and how far the center of mass lies below the center in radii."""
    radius, center = torch.tensor(SIZE / 4), torch.tensor([SIZE / 2])
    coverage = make_coverage(shape, center, center, radius)
    _, y = _centroids(coverage)
    return float(coverage.sum() / radius**2), float((y[0] - SIZE / 2) / radius)


def _match_shape(coverage: Tensor, x: Tensor, y: Tensor) -> str | None:
    """The best template's word, or ``None`` if even that fits badly."""
    area = coverage.sum((1, 2))
    scores = {}
    for shape in SHAPES:
        area_of_one, below = _moments(shape)
        radius = (area / area_of_one).sqrt()
        template = make_coverage(shape, x, y - below * radius, radius)
        overlap = torch.minimum(coverage, template).sum((1, 2)) / torch.maximum(coverage, template).sum((1, 2))
        scores[shape] = float(overlap.mean())
    best = max(SHAPES, key=lambda shape: scores[shape])
    return best if scores[best] >= _MIN_IOU else None


def _match_direction(times: Tensor, x: Tensor, y: Tensor) -> str | None:
    """The direction whose axis the centroids follow, or ``None`` if they stand still or move aslant."""
    centered = times - times.mean()
    speed_x, speed_y = (float((centered * at).sum() / centered.square().sum()) for at in (x, y))
    along, across = max(abs(speed_x), abs(speed_y)), min(abs(speed_x), abs(speed_y))
    if along < _MIN_SPEED or across > along / 2:
        return None
    if abs(speed_x) > abs(speed_y):
        return "right" if speed_x > 0 else "left"
    return "down" if speed_y > 0 else "up"


def _nearest(color: Tensor, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's word for a color (3,), or ``None`` if it is far from all."""
    errors = {word: float((color - torch.tensor(rgb)).norm()) for word, rgb in palette.items()}
    word = min(errors, key=lambda each: errors[each])
    return word if errors[word] <= _MAX_COLOUR_ERROR else None
