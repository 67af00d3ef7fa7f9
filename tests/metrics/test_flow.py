"""Optical flow against translations that are known to a fraction of a pixel."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.metrics.flow import tv_l1, warp


def texture(x: float = 0.0, y: float = 0.0, h: int = 50, w: int = 66) -> torch.Tensor:
    """Waves of many directions, moved right by x and down by y pixels, exactly; (1, 3, h, w) in 0 .. 1."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.rand((24, 2, 1, 1, 1), generator=generator) * 0.8 - 0.4
    phase = torch.rand((24, 3, 1, 1), generator=generator) * 6.28
    columns, rows = torch.arange(w) - x, torch.arange(h)[:, None] - y
    return (0.5 + torch.sin(frequency[:, 0] * columns + frequency[:, 1] * rows + phase).mean(0))[None]


@pytest.mark.parametrize(("x", "y"), [(0.3, -0.7), (-2.0, 5.0), (7.5, -6.0)])
def test_a_known_translation_is_found(x: float, y: float):
    flow = tv_l1(texture(), texture(x, y))
    assert flow.shape == (1, 2, 50, 66)
    inner = flow[0, :, 12:-12, 12:-12]
    assert torch.allclose(inner[0], torch.tensor(x), atol=0.1)
    assert torch.allclose(inner[1], torch.tensor(y), atol=0.1)
    assert float((inner.mean((1, 2)) - torch.tensor([x, y])).norm()) < 0.02


def test_each_pair_of_a_batch_has_its_own_flow():
    first, second = (texture(), texture(2.0, 1.0)), (texture(1.0, 0.5), texture())
    together = tv_l1(torch.cat((first[0], second[0])), torch.cat((first[1], second[1])))
    assert torch.allclose(together, torch.cat((tv_l1(*first), tv_l1(*second))), atol=1e-3)


def test_a_still_has_no_flow():
    assert torch.allclose(tv_l1(texture(), texture()), torch.zeros(1, 2, 50, 66), atol=1e-5)


def test_colours_of_equal_brightness_are_told_apart():
    frames = torch.zeros(2, 3, 40, 56)
    frames[:, 1] = 0.6
    for frame, left in zip(frames, (14, 17), strict=True):
        frame[0, 12:26, left : left + 15], frame[1, 12:26, left : left + 15] = 0.6, 0.0
    assert torch.equal(frames.sum(1), torch.full((2, 40, 56), 0.6))  # brightness sees nothing move
    flow = tv_l1(frames[:1], frames[1:])[0]
    assert torch.allclose(flow[0, 14:24, 17:26], torch.tensor(3.0), atol=0.2)
    assert torch.allclose(flow[1, 14:24, 17:26], torch.tensor(0.0), atol=0.2)


def test_warping_by_whole_pixels_is_slicing():
    frames = torch.rand((2, 4, 6, 9), generator=torch.Generator().manual_seed(0))
    flow = torch.tensor([3.0, -2.0])[None, :, None, None].expand(2, 2, 6, 9)
    warped = warp(frames, flow)
    assert torch.allclose(warped[:, :, 2:, :-3], frames[:, :, :-2, 3:], atol=1e-5)
    # Beyond the border lies the nearest pixel of the border.
    assert torch.allclose(warped[:, :, 2:, -3:], frames[:, :, :-2, -1:].expand(2, 4, 4, 3), atol=1e-5)
    assert torch.allclose(warped[:, :, :2, :-3], frames[:, :, :1, 3:].expand(2, 4, 2, 6), atol=1e-5)


def test_warping_by_part_of_a_pixel_is_bilinear():
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    frames = (0.3 * columns + 0.1 * rows)[None, None]
    warped = warp(frames, torch.tensor([0.5, 0.25])[None, :, None, None].expand(1, 2, 5, 7))
    assert torch.allclose(warped[..., :-1, :-1], frames[..., :-1, :-1] + 0.3 * 0.5 + 0.1 * 0.25, atol=1e-6)
