"""Frame consistency and warp error against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ddim_lightning.metrics.motion import Motion, estimate_motion, frame_consistency, pool_pixels, warp_error


def constant_flow(x: float, y: float, count: int = 1, h: int = 8, w: int = 11) -> torch.Tensor:
    return torch.tensor([x, y])[None, :, None, None].expand(count, 2, h, w)


def noise(f: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((f, 3, h, w), generator=torch.Generator().manual_seed(seed))


def test_frame_consistency_is_the_mean_cosine_of_neighbours():
    angles = torch.tensor([0.0, 0.3, 0.3, 1.5])
    vectors = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.tensor([[1.0], [2.0], [5.0], [0.1]])
    video = noise(4, 5, 6)

    def features(frames: torch.Tensor) -> torch.Tensor:
        assert frames is video
        return vectors

    expected = (math.cos(0.3) + 1 + math.cos(1.2)) / 3
    assert frame_consistency(video, features) == pytest.approx(expected, abs=1e-6)


def test_by_default_frames_are_compared_by_pooled_pixels():
    frame = noise(1, 32, 48)
    assert frame_consistency(frame.expand(3, 3, 32, 48)) == pytest.approx(1.0, abs=1e-6)
    assert frame_consistency(torch.cat((frame, 1 - frame))) == pytest.approx(-1.0, abs=1e-6)
    cells = frame.unflatten(3, (16, 3)).unflatten(2, (16, 2)).mean((3, 5))
    assert torch.allclose(pool_pixels(frame), (2 * cells - 1).flatten(1), atol=1e-6)


def test_a_flicker_over_a_still_source_is_its_square():
    motion = estimate_motion(noise(1, 20, 25).expand(4, 3, 20, 25))
    assert torch.allclose(motion.flow, torch.zeros(3, 2, 20, 25), atol=1e-5)
    assert motion.visible.all()
    video = torch.full((4, 3, 20, 25), 0.5)
    video[1, 2] += 0.3  # one channel of one frame: two of three pairs, a third of the channels
    assert warp_error(video, motion) == pytest.approx(0.09 / 3 * 2 / 3, rel=1e-5)


def test_what_moves_like_the_source_has_no_warp_error():
    wide = noise(1, 24, 40)[0]
    source, video = (
        torch.stack([w[:, 2 * t : 2 * t + 8, 3 * t : 3 * t + 11] for t in range(3)]) for w in (wide, 1 - wide)
    )
    motion = Motion(constant_flow(-3, -2, 2), torch.zeros(2, 8, 11, dtype=torch.bool))
    motion.visible[:, 2:, 3:] = True
    assert warp_error(source, motion) < 1e-10
    assert warp_error(video, motion) < 1e-10
    assert warp_error(video.flip(0), motion) > 0.01
    still = Motion(torch.zeros(2, 2, 8, 11), motion.visible)
    assert warp_error(video, still) > 0.01


def test_only_visible_pixels_count_and_pairs_without_any_are_left_out():
    video = torch.zeros(4, 3, 8, 11)
    video[1:, :, 4:] = 0.2  # seen by the first pair only
    video[3] = 1.0
    visible = torch.zeros(3, 8, 11, dtype=torch.bool)
    visible[0, 3:5, 6] = True  # one pixel without error, one with 0.04
    visible[1] = True
    assert warp_error(video, Motion(torch.zeros(3, 2, 8, 11), visible)) == pytest.approx((0.02 + 0) / 2, rel=1e-6)


def test_a_point_is_visible_where_flow_and_return_cancel_inside_the_frame():
    source = noise(2, 8, 11)

    def flow_fn(frames: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        sign = 1.0 if torch.equal(frames, source[:1]) else -1.0
        flow = sign * constant_flow(3, -2)
        if sign < 0:
            flow = flow.clone()
            flow[0, :, 0:2, 5:] += 1.0  # off by more than the 0.5 + 1 % allowed: 2 > 0.01 * 18 + 0.5
        return flow

    motion = estimate_motion(source, flow_fn)
    expected = torch.zeros(1, 8, 11, dtype=torch.bool)
    expected[:, 2:, :8] = True  # rows above 2 and columns beyond 7 leave the frame
    expected[:, 2:4, 2:8] = False  # what arrives in the rows 0, 1 and the columns from 5 on does not come back
    assert torch.equal(motion.visible, expected)
    assert torch.equal(motion.flow, constant_flow(3, -2))


def test_the_border_of_a_motion_is_not_visible():
    def flow_fn(frames: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        flow = torch.zeros(len(frames), 2, 8, 11)
        flow[:, 1, :, 6:] = 0.1 if torch.equal(frames, source[:3]) else -0.1  # too small to fail the way back
        return flow

    source = noise(4, 8, 11)
    visible = estimate_motion(source, flow_fn).visible
    expected = torch.ones(3, 8, 11, dtype=torch.bool)
    expected[:, :, 5] = False  # a jump of 0.1: 0.01 > 0.002
    assert torch.equal(visible, expected)


def test_motion_of_a_source_is_estimated_pair_by_pair(monkeypatch: pytest.MonkeyPatch):
    source = torch.stack([noise(1, 60, 70)[0, :, 10 + t : 42 + t, 20 - 2 * t : 60 - 2 * t] for t in (0, 1, 3)])
    source = torch.nn.functional.avg_pool2d(source, 5, stride=1)
    motion = estimate_motion(source)
    for pair, (x, y) in enumerate([(2.0, -1.0), (4.0, -2.0)]):
        found = motion.flow[pair, :, 6:-6, 6:-6].flatten(1).median(1).values
        assert torch.allclose(found, torch.tensor([x, y]), atol=0.1)
    monkeypatch.setattr("ddim_lightning.metrics.motion._PIXELS", 1)  # one pair at a time
    assert torch.allclose(estimate_motion(source).flow, motion.flow, atol=1e-3)
    assert warp_error(source, motion) < 0.1 * float(source.diff(dim=0).square().mean())


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r"^video: must have at least two frames, got 1$"):
        frame_consistency(noise(1, 8, 11))
    with pytest.raises(ValueError, match=r"^video: must have at least two frames, got 1$"):
        estimate_motion(noise(1, 8, 11))
    visible = torch.ones(2, 8, 11, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^video: must have 3 frames of 8 x 11 like the source, got \(3, 3, 11, 8\)$"):
        warp_error(noise(3, 11, 8), Motion(constant_flow(0, 0, 2), visible))
    with pytest.raises(ValueError, match=r"^motion: must leave a visible pixel, got none in 2 pairs of frames$"):
        warp_error(noise(3, 8, 11), Motion(constant_flow(0, 0, 2), ~visible))
