"""PSNR and SSIM against closed forms and against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from ddim_lightning.metrics.functional import psnr, ssim


def _videos(f=3, c=3, h=17, w=23):
    generator = torch.Generator().manual_seed(0)
    video = torch.rand((f, c, h, w), generator=generator)
    return video, (video + 0.1 * torch.randn(video.shape, generator=generator)).clamp(0, 1)


def test_psnr_of_a_constant_error_is_its_closed_form():
    reference = torch.full((2, 3, 8, 9), 0.25)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference - 0.01, reference) == pytest.approx(40.0, abs=1e-4)


def test_psnr_pools_the_error_over_all_frames():
    reference = torch.zeros(2, 3, 8, 9)
    video = reference.clone()
    video[0] = 0.2  # the mean over frames of 13.98 dB and infinity would be infinity
    assert psnr(video, reference) == pytest.approx(10 * math.log10(1 / (0.04 / 2)), abs=1e-5)


def test_equal_videos():
    video, _ = _videos()
    assert psnr(video, video) == math.inf
    assert ssim(video, video) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_the_published_formula():
    video, reference = (v.double() for v in _videos(f=2, h=19, w=16))
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (line / line.sum())[:, None] * (line / line.sum())[None, :]

    def blur(x):
        padded = torch.nn.functional.pad(x.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="reflect")
        return torch.nn.functional.conv2d(padded, window[None, None])

    mean_a, mean_b = blur(video), blur(reference)
    var_a, var_b = blur(video**2) - mean_a**2, blur(reference**2) - mean_b**2
    covariance = blur(video * reference) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert ssim(video, reference) == pytest.approx(float(score.mean()), abs=1e-5)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_different_shapes_are_refused(measure):
    video, reference = _videos()
    with pytest.raises(ValueError, match=r"^reference: must have the shape .*got \(2, 3, 17, 23\)"):
        measure(video, reference[:2])


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match=r"^video: .*at least 6 x 6.*got 5 x 9"):
        ssim(torch.zeros(1, 3, 5, 9), torch.zeros(1, 3, 5, 9))
