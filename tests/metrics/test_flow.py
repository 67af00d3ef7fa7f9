"""Flow, warp error and visibility, for motion that is known."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.optical_flow import raft_small

from ddim_lightning.metrics.flow import FlowMeter, Raft, find_visible, measure_warp, warp
from ddim_lightning.metrics.pieces import Piece
from tests.metrics.networks import write_raft


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_raft(tmp_path_factory.mktemp("raft")))


def make_flow(x, y, height=20, width=26):
    return torch.tensor([x, y], dtype=torch.float32)[None, :, None, None].expand(1, 2, height, width)


@pytest.fixture
def picture():
    """A texture on black, with 6 pixels around it that are free."""
    picture = torch.zeros(1, 3, 20, 26)
    picture[:, :, 6:-6, 6:-6] = torch.rand(1, 3, 8, 14, generator=torch.Generator().manual_seed(0))
    return picture


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, -2), (-5, 4)])
def test_a_translation_that_the_flow_knows_has_no_warp_error(picture, x, y):
    moved = picture.roll((y, x), (2, 3))
    flow, back = make_flow(x, y), make_flow(-x, -y)
    visible = find_visible(flow, back)
    assert visible.all()
    assert measure_warp(picture, moved, flow, visible).item() < 1e-10
    assert (x, y) == (0, 0) or measure_warp(picture, moved, make_flow(0, 0), visible).item() > 1e-3


def test_warp_reads_between_pixels_and_repeats_the_border():
    ramp = torch.arange(26.0).expand(1, 1, 20, 26)
    warped = warp(ramp, make_flow(0.5, 3))
    assert torch.allclose(warped[..., :25], ramp[..., :25] + 0.5, atol=1e-4)
    assert torch.allclose(warped[..., 25], torch.tensor(25.0), atol=1e-4)


def test_the_error_is_a_mean_over_visible_pixels_and_channels():
    before, now = torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 6)
    now[:, 0, :2] = 0.3
    now[:, :, 2:] = 1.0
    visible = torch.zeros(1, 4, 6, dtype=torch.bool)
    visible[:, :2] = True
    error = measure_warp(before, now, make_flow(0, 0, 4, 6), visible)
    assert error.item() == pytest.approx(0.09 / 3)


def test_what_does_not_come_back_and_borders_of_motion_are_not_visible():
    still, there = make_flow(0, 0), make_flow(4, 0)
    assert not find_visible(there, still).any()  # |4|^2 > 0.01 * |4|^2 + 0.5
    assert find_visible(make_flow(0.7, 0), still).all()  # 0.49 < 0.5
    assert not find_visible(make_flow(0.72, 0), still).any()
    edge = still.clone()
    edge[..., 13:] = 0.6
    hidden = ~find_visible(edge, -edge)
    assert hidden[0, 0].nonzero().flatten().tolist() == [12]  # 0.36 > 0.002, where the next pixel differs


def test_raft_is_that_of_torchvision_on_sizes_it_takes(weights):
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 1, 3, 128, 136, generator=generator)
    network = raft_small(weights=None).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        expected = network(first * 2 - 1, second * 2 - 1)[-1]
    raft = Raft(torch.load(weights, weights_only=True), torch.device("cpu"))
    assert raft.size == "small"
    assert torch.equal(raft(first, second), expected)


def test_raft_repeats_the_borders_of_sizes_it_does_not_take(weights):
    raft = Raft(torch.load(weights, weights_only=True), torch.device("cpu"))
    raft._network = lambda first, second: [
        first[:, :2] + 100 * (first.shape[2] == 128) + 1000 * (first.shape[3] == 136)
    ]
    frames = torch.rand(1, 3, 50, 131, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(raft(frames, frames), frames[:, :2] * 2 - 1 + 1100)


def find_shift(first, second):
    """A flow for textures on black: how far their brightness has moved, the same for all pixels."""
    height, width = first.shape[2:]
    x, y = torch.arange(width).expand(height, -1), torch.arange(height)[:, None].expand(-1, width)
    centers = [
        torch.stack([(frame[0].mean(0) * axis).sum() / frame[0].mean(0).sum() for axis in (x, y)])
        for frame in (first, second)
    ]
    return (centers[1] - centers[0])[None, :, None, None].expand(1, 2, height, width)


def test_an_edit_that_moves_with_its_source_has_no_warp_error_and_full_fidelity(picture):
    reference = torch.cat([picture.roll((t, 2 * t), (2, 3)) for t in range(3)])
    other = torch.where(reference > 0, 1 - 0.5 * reference, 0.0)
    pieces = [Piece(other[:1], reference[:1]), Piece(other[1:], reference[1:])]
    meter = FlowMeter(["warp_error", "flow_fidelity"], find_shift)
    for piece in pieces:
        meter.add(piece)
    assert meter.read() == {"warp_error": pytest.approx(0, abs=1e-8), "flow_fidelity": pytest.approx(1, abs=1e-5)}


def test_an_edit_that_moves_back_has_a_warp_error_and_the_opposite_fidelity(picture):
    reference = torch.cat([picture.roll(t, 3) for t in range(3)])
    other = torch.cat([picture.roll(-t, 3) for t in range(3)])
    meter = FlowMeter(["warp_error", "flow_fidelity"], find_shift)
    meter.add(Piece(other, reference))
    measured = meter.read()
    # Brought back by the flow of the source, the edit is two pixels off.
    expected = (picture.roll(-2, 3) - picture).square().mean()
    assert measured["warp_error"] == pytest.approx(expected.item(), rel=1e-4)
    assert measured["flow_fidelity"] == pytest.approx(-1, abs=1e-5)


def test_a_single_frame_has_no_motion(picture):
    meter = FlowMeter(["warp_error", "flow_fidelity"], find_shift)
    meter.add(Piece(picture, picture))
    assert meter.read() == {}
