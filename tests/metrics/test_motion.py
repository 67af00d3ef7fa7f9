"""Motion fidelity of tracks that are known."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.metrics.motion import GRID, TrackMeter, correlate, make_grid, measure_fidelity, measure_score
from ddim_lightning.metrics.pieces import Piece


def make_tracks(*steps, count=4, frames=5):
    """Points that move on by the same step every frame."""
    starts = torch.arange(count * 2.0).reshape(count, 1, 2)
    return torch.cat([starts + torch.arange(frames)[None, :, None] * torch.tensor(step) for step in steps])


def test_equal_reversed_and_orthogonal_motion():
    right, left, down = make_tracks((2.0, 0.0)), make_tracks((-3.0, 0.0)), make_tracks((0.0, 1.0))
    assert measure_fidelity(right, right) == pytest.approx(1)
    assert measure_fidelity(right, left) == pytest.approx(-1)
    assert measure_fidelity(right, down) == pytest.approx(0, abs=1e-6)
    assert measure_fidelity(right, make_tracks((7.0, 0.0))) == pytest.approx(1)  # the direction counts, not the speed


def test_both_directions_count():
    """Every point of the first moves like one of the second, of which half find no match."""
    one, two = make_tracks((1.0, 0.0)), make_tracks((1.0, 0.0), (-1.0, 0.0))
    assert measure_fidelity(one, two) == measure_fidelity(two, one) == pytest.approx((1 + 0) / 2)


def test_points_that_stand_still():
    still, right = make_tracks((0.0, 0.0)), make_tracks((1.0, 0.0))
    assert measure_fidelity(still, still) == pytest.approx(1)
    assert measure_fidelity(still, right) == pytest.approx(0)


def test_the_correlation_is_the_mean_cosine_of_steps():
    tracks, others = torch.randn(2, 6, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, other_steps = tracks.diff(dim=1), others[:4].diff(dim=1)
    cosines = torch.nn.functional.cosine_similarity(steps[:, None], other_steps[None], dim=-1)
    assert torch.allclose(correlate(tracks, others[:4]), cosines.mean(-1))


def test_what_the_program_of_the_paper_prints():
    """Its lines: steps of length 1, their products, less the identity, the best of every row."""
    tracks, others = torch.randn(2, 6, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unit = [one.diff(dim=1) / one.diff(dim=1).norm(dim=-1, keepdim=True) for one in (tracks, others)]
    similarity = torch.einsum("ntc,mtc->nmt", *unit).mean(-1) - torch.eye(6)
    assert measure_score(tracks, others) == pytest.approx(similarity.max(1)[0].mean().item())


def test_a_tracker_is_shown_both_videos_as_it_takes_them():
    """A tracker that follows the brightness of a video: the brighter, the further right."""
    shown = []

    def track(video, grid_size):
        shown.append(video)
        places = make_grid(*video.shape[3:], "cpu")[None, None].repeat(1, video.shape[1], 1, 1)
        places[..., 0] += video.mean((2, 3, 4))[..., None]
        assert grid_size == GRID
        return places, None

    brighter = torch.linspace(0, 1, 4)[:, None, None, None].expand(-1, 3, 8, 10)
    meter = TrackMeter(["motion_fidelity", "five_motion"], track, torch.device("cpu"))
    for video, reference in zip(brighter.split(2), brighter.flip(0).split(2), strict=True):
        meter.add(Piece(video, reference))
    measured = meter.read()
    assert measured["motion_fidelity"] == pytest.approx(-1)
    assert measured["motion_fidelity_score"] == pytest.approx(-1)
    assert [tuple(video.shape) for video in shown] == [(1, 4, 3, 8, 10)] * 2
    assert shown[0].max() == 255
