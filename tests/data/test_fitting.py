from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ddim_lightning.data.fitting import fit_frame


def bars(height, width):
    """Red grows to the right, green grows downwards, blue is constant."""
    x = torch.linspace(0, 255, width).expand(height, width)
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([x, y, torch.full_like(x, 77)]).round().to(torch.uint8)


def test_crop_cuts_evenly_at_the_sides():
    frame = bars(40, 120)  # three times as wide as high, wanted 3 : 2
    out = fit_frame(frame, 20, 30, "crop")
    assert out.shape == (3, 20, 30)
    assert out.dtype == torch.uint8
    # columns 30 .. 89 of 120 remain, all rows
    assert out[0, 10, 0].item() == pytest.approx(255 * 30.5 / 119, abs=2)
    assert out[0, 10, -1].item() == pytest.approx(255 * 88.5 / 119, abs=2)
    assert out[1, 0, 0].item() == pytest.approx(255 * 0.5 / 39, abs=2)
    assert out[1, -1, 0].item() == pytest.approx(255 * 38.5 / 39, abs=2)


def test_crop_cuts_evenly_at_top_and_bottom():
    out = fit_frame(bars(120, 40), 30, 20, "crop")
    assert out[1, 0, 5].item() == pytest.approx(255 * 30.5 / 119, abs=2)
    assert out[1, -1, 5].item() == pytest.approx(255 * 88.5 / 119, abs=2)
    assert out[0, 5, -1].item() == pytest.approx(255 * 38.5 / 39, abs=2)


def test_pad_keeps_all_between_black_bars():
    out = fit_frame(bars(40, 120), 30, 60, "pad")  # becomes 20 x 60
    assert (out[:, :5] == 0).all()
    assert (out[:, 25:] == 0).all()
    assert (out[2, 5:25] == 77).all()
    assert out[0, 10, 0].item() == pytest.approx(0, abs=3)
    assert out[0, 10, -1].item() == pytest.approx(255, abs=3)


def test_stretch_keeps_all():
    out = fit_frame(bars(40, 120), 32, 16, "stretch")
    assert out.shape == (3, 32, 16)
    assert (out[2] == 77).all()
    assert out[0, 10, -1].item() == pytest.approx(255, abs=9)
    assert out[1, -1, 5].item() == pytest.approx(255, abs=9)


def test_wide_pixels_are_made_square():
    # 40 x 60 pixels, each twice as wide as high, are shown as 40 x 120
    out = fit_frame(bars(40, 60), 30, 60, "pad", pixel_aspect=Fraction(2))
    assert (out[2, 5:25] == 77).all()
    assert (out[:, :5] == 0).all()
    cropped = fit_frame(bars(40, 60), 20, 30, "crop", pixel_aspect=Fraction(2))
    assert cropped[0, 10, 0].item() == pytest.approx(255 * 15 / 59, abs=3)  # columns 15 .. 44 of 60
    assert cropped[0, 10, -1].item() == pytest.approx(255 * 44 / 59, abs=3)


def test_a_frame_of_the_right_size_is_left_alone():
    frame = torch.randint(0, 256, (3, 16, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for fit in ("crop", "pad", "stretch"):
        assert torch.equal(fit_frame(frame, 16, 24, fit), frame)
