"""Windows over a long clip: what they cover, what they count for, and that nothing behind them knows of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, UniInv
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct
from ddim_lightning.diffusion.windows import Windows, evaluate_windows
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.types import Branch, EditRequest

INVERTERS = [DDIM(), UniInv(), UniInv(extrapolate=True, extra_evals=0.5), FixedPoint(), BDIA(), EditFriendly()]
EDITORS = [
    Denoise(),
    Denoise(initial="random"),
    DirectInversion(kv_scale=0.5),
    KVInjection(source_rows="paired"),
    KVInjection(eval_every=2, velocity_mask=0.4),
    FlowEdit(first_step=0, kv_scale=0.3, num_noise_samples=2),
]


class Windowed:
    """A `Denoiser` through windows."""

    def __init__(self, denoiser, windows):
        self.denoiser, self.windows, self.num_layers = denoiser, windows, denoiser.num_layers

    def __call__(self, branches, step, kv_scale=None):
        return evaluate_windows(self.denoiser, self.windows, branches, step, kv_scale)


@pytest.fixture
def long_clip():
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(2, 11, 3, 4, 5, generator=generator, dtype=torch.float64) + 0.2


@pytest.mark.parametrize(("length", "overlap"), [(13, 4), (13, 1), (13, 12), (3, 2), (3, 1), (2, 1)])
@pytest.mark.parametrize("num_frames", [13, 14, 20, 63])
def test_windows_cover_the_clip_and_their_weights_sum_to_one(length, overlap, num_frames):
    windows = Windows(length, overlap)
    starts, weights = windows.list_starts(num_frames), windows.make_weights(num_frames)
    assert starts[0] == 0 and starts[-1] == num_frames - length
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= length - overlap for step in steps)
    # As few as the overlap allows.
    assert len(starts) == 1 or (len(starts) - 2) * (length - overlap) < num_frames - length
    total, cover = torch.zeros(num_frames, dtype=torch.float64), torch.zeros(num_frames)
    for start, weight in zip(starts, weights, strict=True):
        assert weight.shape == (length,) and (weight >= 0).all()
        total[start : start + length] += weight
        cover[start : start + length] += 1
        # What is in no other window counts for exactly 1, so that it keeps its bytes.
        assert (weight[cover[start : start + length] == 1] > 0).all()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)
    assert total[cover == 1].eq(1.0).all()
    assert all(weight[0] == 0 for weight in weights[1:])


def test_a_blend_is_linear_over_the_overlap():
    first, second = Windows(6, 4).make_weights(8)
    torch.testing.assert_close(first[2:], torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(second[:4], torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("overlap", [0, 3, -1])
def test_an_overlap_leaves_a_window_something_of_its_own(overlap):
    with pytest.raises(ValueError, match=f"^overlap: must be in 1 .. 2, got {overlap}$"):
        Windows(3, overlap)


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: type(editor).__name__)
@pytest.mark.parametrize("inverter", INVERTERS, ids=lambda inverter: type(inverter).__name__)
def test_every_method_does_through_windows_what_it_does_at_once(inverter, editor, toy, long_clip, make_schedule):
    """The closed form looks at one element at a time: windows and their blends must not show at all."""
    schedule, request = make_schedule(6), EditRequest("right", "up", "left", guidance_scale=2.0)

    def run(denoiser):
        draw = [torch.Generator().manual_seed(3) for _ in "ab"]
        inversion = invert(denoiser, long_clip, schedule, inverter, prompt="left", generator=draw[0])
        edited = edit(denoiser, inversion, editor, request, generator=draw[1])
        return inversion.levels, reconstruct(denoiser, inversion), edited

    whole, alone = run(toy), toy.nfe
    windowed = run(Windowed(toy, Windows(4, 2)))
    for ours, theirs in zip(windowed, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert toy.nfe - alone == 5 * alone


def test_a_branch_attends_to_the_same_window_of_its_source(toy, long_clip, make_schedule):
    step, source = make_schedule(3)[1], long_clip.flip(0)
    branches = [Branch(long_clip, "right", kv_source=1), Branch(source, "left", needs_velocity=False)]
    velocity, nothing = evaluate_windows(toy, Windows(4, 2), branches, step, torch.ones(4))
    assert nothing is None and velocity.shape == long_clip.shape
    assert len(toy.seen) == 5
    for start, (pieces, _, _) in zip([0, 1, 3, 5, 7], toy.seen, strict=True):
        assert torch.equal(pieces[0].latents, long_clip[:, start : start + 4])
        assert torch.equal(pieces[1].latents, source[:, start : start + 4]) and pieces[0].kv_source == 1


@torch.no_grad()
def test_a_clip_of_one_window_keeps_its_bytes_and_others_depend_on_all_windows(loaded, trained):
    parts, prompts, clean, caption = loaded
    step = trained.schedules[5][2]
    windowed = CogVideoXDenoiser(Network(parts.transformer), prompts, Windows(3, 2))
    for count in (2, 3):
        ours, theirs = (one([Branch(clean[:, :count], caption)], step)[0] for one in (windowed, trained.denoiser))
        assert torch.equal(ours, theirs)
    assert windowed.nfe == 2
    twice = torch.cat([clean, clean.flip(1)], dim=1)
    (velocity,) = windowed([Branch(twice, caption, guidance_scale=2.0)], step)
    (first,) = windowed([Branch(twice[:, :3], caption, guidance_scale=2.0)], step)
    # The first two frames are in no other window, or lead it in; the third is blended.
    assert torch.equal(velocity[:, :2], first[:, :2]) and not torch.equal(velocity[:, 2], first[:, 2])
    assert windowed.nfe == 2 + 4 * 2 + 2
