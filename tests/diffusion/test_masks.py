"""Masks: from frames to latents, from two velocities, and what stays as it was."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import BDIA, EditFriendly, UniInv
from ddim_lightning.diffusion.masks import PROBE_ANGLES, choose_probes, count_probe_nfe, find_mask, pool_mask
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.types import EditRequest


@pytest.mark.parametrize(("temporal", "spatial"), [(4, 8), (2, 3)])
def test_one_pixel_of_one_frame_lights_one_latent(temporal, spatial):
    """Latent frame 0 of frame 0; latent frame j of the ``temporal`` frames that end with frame ``temporal`` j."""
    frames, height, width = 2 * temporal + 1, 2 * spatial, 3 * spatial
    for frame, y, x in product(range(frames), (0, spatial - 1, spatial, height - 1), (0, spatial, width - 1)):
        mask = torch.zeros(frames, height, width, dtype=torch.bool)
        mask[frame, y, x] = True
        pooled = pool_mask(mask, temporal, spatial)
        assert pooled.shape == (1, 3, 1, 2, 3) and pooled.dtype == torch.float32
        assert pooled.nonzero().tolist() == [[0, math.ceil(frame / temporal), 0, y // spatial, x // spatial]]
        assert float(pooled.sum()) == 1.0


def test_full_and_empty_masks_stay_so():
    assert torch.equal(pool_mask(torch.ones(5, 8, 4, dtype=torch.bool), 4, 4), torch.ones(1, 2, 1, 2, 1))
    assert torch.equal(pool_mask(torch.zeros(1, 8, 4, dtype=torch.bool), 4, 4), torch.zeros(1, 1, 1, 2, 1))


@pytest.mark.parametrize("shape", [(8, 16, 24), (9, 17, 24), (9, 16, 20)])
def test_sizes_that_do_not_divide_are_refused(shape):
    got = " x ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"^mask: must have 4k \+ 1 frames, .*multiples of 8, got {got}"):
        pool_mask(torch.zeros(shape, dtype=torch.bool), 4, 8)


class RegionDenoiser:
    """Its velocity depends on the prompt in one region of the video alone."""

    num_layers = 2
    sizes = (1, 3, 4, 12, 14)

    def __init__(self, frame, rows, columns):
        self.region = torch.zeros(self.sizes)
        self.region[:, frame, :, slice(*rows), slice(*columns)] = 1.0
        self.seen = []

    def __call__(self, branches, step, kv_scale=None):
        self.seen.append((step.i, [branch.prompts for branch in branches]))
        told = {"left": 0.0, "right": 1.0}
        return [0.1 * branch.latents + told[branch.prompt] * self.region for branch in branches]


def find_by_hand(region, threshold):
    """Smooth, cut and grow, latent by latent."""
    _, frames, _, height, width = region.shape

    def near(y, x):
        ys, xs = range(max(y - 1, 0), min(y + 2, height)), range(max(x - 1, 0), min(x + 2, width))
        return list(product(ys, xs))

    smooth = torch.zeros(frames, height, width)
    for f, y, x in product(range(frames), range(height), range(width)):
        smooth[f, y, x] = sum(float(region[0, f, 0, v, u]) for v, u in near(y, x)) / len(near(y, x))
    cut = smooth >= threshold * smooth.max() - 1e-6
    grown = torch.zeros(1, frames, 1, height, width)
    for f, y, x in product(range(frames), range(height), range(width)):
        grown[0, f, 0, y, x] = float(any(cut[f, v, u] for v, u in near(y, x)))
    return grown


@pytest.mark.parametrize("threshold", [0.2, 0.6])
@pytest.mark.parametrize(("rows", "columns"), [((3, 6), (8, 12)), ((0, 4), (9, 14))])
def test_a_mask_is_found_where_the_prompts_differ(rows, columns, threshold, make_schedule):
    model = RegionDenoiser(1, rows, columns)
    clean = torch.randn(model.sizes, generator=torch.Generator().manual_seed(0))
    inversion = invert(model, clean, make_schedule(10), UniInv(), prompt="left")
    model.seen.clear()
    mask = find_mask(model, inversion, EditRequest("right"), threshold)
    assert torch.equal(mask, find_by_hand(model.region, threshold))
    assert not mask[:, [0, 2]].any() and 12 <= float(mask.sum()) < 60
    assert [prompts for _, prompts in model.seen] == [[("right",), ("left",)]] * 4
    assert 2 * len(model.seen) == count_probe_nfe(inversion.schedule)
    assert torch.equal(find_mask(model, inversion, EditRequest("right"), 0.0), torch.ones(1, 3, 1, 12, 14))


def test_the_source_prompt_says_what_the_source_shows(make_schedule):
    model = RegionDenoiser(0, (2, 6), (3, 9))
    inversion = invert(model, torch.zeros(model.sizes), make_schedule(10), UniInv(), prompt="right")
    model.seen.clear()
    find_mask(model, inversion, EditRequest("right", source_prompt="left"), 0.5)
    assert {tuple(prompts) for _, prompts in model.seen} == {(("right",), ("left",))}


def test_probes_are_the_levels_next_to_their_angles_each_once(make_schedule):
    for num_steps in (50, 10, 3, 1):
        schedule = make_schedule(num_steps)
        probes = choose_probes(schedule)
        apart = [[abs(schedule.angles[i] - angle) for i in range(num_steps)] for angle in PROBE_ANGLES]
        assert set(probes) == {distances.index(min(distances)) for distances in apart}
        assert len(set(probes)) == len(probes) == count_probe_nfe(schedule) / 2
    assert [round(make_schedule(50).angles[i], 1) for i in choose_probes(make_schedule(50))] == list(PROBE_ANGLES)


def test_each_clip_of_a_batch_has_its_own_largest_difference(make_schedule):
    model = RegionDenoiser(1, (3, 6), (8, 12))
    model.region = torch.cat([model.region, 0.01 * model.region.roll(1, dims=1)])
    inversion = invert(model, torch.zeros_like(model.region), make_schedule(10), UniInv(), prompt="left")
    mask = find_mask(model, inversion, EditRequest("right"), 0.5)
    assert mask.shape == (2, 3, 1, 12, 14)
    assert torch.equal(mask[0, 1], mask[1, 2]) and mask[1, 2].any() and not mask[1, 1].any()


@pytest.fixture
def mask():
    """Frame 0 is kept whole, so is a part of frame 1."""
    found = torch.zeros(1, 2, 1, 4, 5)
    found[:, 1, :, 1:3, 2:] = 1.0
    return found


@pytest.mark.parametrize("inverter", [UniInv(), BDIA(), EditFriendly()], ids=repr)
@pytest.mark.parametrize(
    "editor",
    [
        KVInjection(),
        KVInjection(initial="random", source_rows="paired"),
        KVInjection(first_step=4, initial="k_rnr", kv_scale=0.0),
        KVInjection(eval_every=3),
        Denoise(initial="random"),
        DirectInversion(),
        DirectInversion(replay_steps=(3, 6)),
        FlowEdit(),
    ],
    ids=repr,
)
def test_outside_a_mask_the_video_stays_exactly_as_it_was(editor, inverter, mask, toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(10), inverter, generator=torch.Generator().manual_seed(0))
    path = []
    landed = edit(
        toy,
        inversion,
        editor,
        EditRequest("right", mask=mask),
        generator=torch.Generator().manual_seed(1),
        callback=lambda step, latents: path.append((step.i, latents)),
    )
    kept = (mask == 0.0).expand_as(clean)
    assert torch.equal(landed[kept], clean[kept])
    assert float((landed - clean)[~kept].abs().min()) > 1e-6
    for i, latents in path:
        level = clean if isinstance(editor, FlowEdit) else inversion.levels[i + 1]
        assert torch.equal(latents[kept], level[kept])


@pytest.mark.parametrize("editor", [KVInjection(), DirectInversion(), FlowEdit()], ids=repr)
def test_a_full_mask_is_none(editor, mask, toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(10), UniInv())
    full, none = (
        edit(toy, inversion, editor, EditRequest("right", mask=m), generator=torch.Generator().manual_seed(1))
        for m in (torch.ones_like(mask), None)
    )
    torch.testing.assert_close(full, none, rtol=0, atol=1e-12)


def test_an_editor_finds_its_mask_unless_the_request_brings_one(toy, make_schedule):
    model = RegionDenoiser(1, (3, 6), (8, 12))
    clean = torch.randn(model.sizes, generator=torch.Generator().manual_seed(0))
    inversion = invert(model, clean, make_schedule(10), UniInv(), prompt="left")
    editor, request = KVInjection(velocity_mask=0.5), EditRequest("right", guidance_scale=1.0)
    found = find_mask(model, inversion, request, 0.5)
    model.seen.clear()
    kept = (found == 0.0).expand_as(clean)
    landed = edit(model, inversion, editor, request)
    assert torch.equal(landed[kept], clean[kept]) and not torch.isclose(landed[~kept], clean[~kept]).any()
    assert len(model.seen) == 4 + 10
    model.seen.clear()
    brought = edit(model, inversion, editor, EditRequest("right", guidance_scale=1.0, mask=1.0 - found))
    assert len(model.seen) == 10 and torch.equal(brought[~kept], clean[~kept])
