"""PSNR, SSIM and LPIPS of a whole frame and of the two sides of a mask, by both definitions that are in use.

``inside`` and ``outside`` look at the pixels of one side alone. ``edit_part`` and ``unedit_part`` look at both pictures
multiplied by the mask, as the evaluation of FiVE-Bench does, so that a black area counts as equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ddim_lightning.metrics.functional import make_ssim_map, score_frames
from ddim_lightning.metrics.lpips import Lpips
from ddim_lightning.metrics.pieces import Piece
from ddim_lightning.metrics.running import WeightedMean, to_decibels


class PixelMeter:
    """A `PixelMeter` measures PSNR, SSIM and LPIPS of one clip.

    Args:
        names: Which of ``psnr``, ``ssim``, ``lpips`` and the same after ``five_``, which has also ``five_mse``.
        lpips: The network, where LPIPS is among them.
    """

    def __init__(self, names: Collection[str], lpips: Lpips | None = None) -> None:
        self._names, self._lpips, self._means = set(names), lpips, WeightedMean()

    def add(self, piece: Piece) -> None:
        """Take in the next frames."""
        # Frame by frame, for the maps of LPIPS and SSIM take many times the memory of a frame.
        for index in range(len(piece.video)):
            one = slice(index, index + 1)
            mask = None if piece.mask is None else piece.mask[one]
            self._add_frame(piece.video[one], piece.reference[one], mask)

    def read(self) -> dict[str, float]:
        """Return the numbers: PSNR pooled over the pixels of all frames, all else as means over frames or pixels."""
        means = self._means.read()
        pooled = {name for name in means if name.startswith("squared_error")}
        decibels = {name.replace("squared_error", "psnr"): to_decibels(means[name]) for name in pooled}
        return {name: means[name] for name in means if name not in pooled} | decibels

    def _add_frame(self, video: Tensor, reference: Tensor, mask: Tensor | None) -> None:
        maps = self._make_maps(video, reference)
        for name, values in maps.items():
            self._means.add(name, values, torch.ones_like(values))
        if self._lpips is not None and "lpips" in self._names:
            distance = self._lpips(video, reference)  # as published, by layers of their own sizes
            self._means.add("lpips", distance, torch.ones_like(distance))
        if mask is None:
            return
        if self._lpips is not None and "lpips" in self._names:
            maps["lpips"] = self._lpips.make_map(video, reference)
        for name, values in maps.items():
            self._means.add(f"{name}_inside", values, mask)
            self._means.add(f"{name}_outside", values, ~mask)
        for part, kept in (("edit_part", mask), ("unedit_part", ~mask)):
            counts = kept.any()[None]  # a frame without such a part says nothing of it
            for name, value in self._measure_multiplied(video * kept[:, None], reference * kept[:, None]):
                self._means.add(f"{name}_{part}", value, counts)

    def _make_maps(self, video: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Return what is known of every pixel, (1, h, w) each."""
        maps = {}
        if "psnr" in self._names:
            maps["squared_error"] = (video.double() - reference.double()).square().mean(1)
        if "ssim" in self._names:
            maps["ssim"] = make_ssim_map(video[0], reference[0])[None]
        return maps

    def _measure_multiplied(self, video: Tensor, reference: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the numbers of two pictures of which a part is black."""
        if self._names & {"five_psnr", "five_mse"}:
            error = (video.double() - reference.double()).square().mean()[None]
            if "five_psnr" in self._names:
                yield "psnr", -10.0 * error.log10()
            if "five_mse" in self._names:
                yield "mse", error
        if "five_ssim" in self._names:
            yield "ssim", score_frames(video, reference)
        if self._lpips is not None and "five_lpips" in self._names:
            yield "lpips", self._lpips(video, reference)
