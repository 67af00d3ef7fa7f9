"""Branches become rows, rows become one pass, velocities come back guided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.types import Branch, Step

STEP = Step(2, 640, angle=1.2, angle_next=1.1)


@pytest.fixture
def denoiser(transformer, embeds):
    return CogVideoXDenoiser(Network(transformer), embeds.__getitem__)


def run_rows(denoiser, rows, prompts, **reading):
    """The rows of a call, written out."""
    embeds = torch.cat([denoiser.encode_prompt(prompt).expand(rows[0].shape[0], -1, -1) for prompt in prompts])
    return denoiser.network(torch.cat(rows), embeds, 640, **reading)


def test_guidance_off_is_one_evaluation(denoiser, latents):
    (velocity,) = denoiser([Branch(latents[:1], "cat", "dog")], STEP)
    assert denoiser.nfe == 1
    assert torch.equal(velocity, run_rows(denoiser, [latents[:1]], ["cat"]))


def test_guidance_is_two_evaluations_combined(denoiser, latents):
    (velocity,) = denoiser([Branch(latents[:1], "cat", "dog", guidance_scale=6.0)], STEP)
    assert denoiser.nfe == 2
    negative, positive = run_rows(denoiser, [latents[:1]] * 2, ["dog", "cat"]).chunk(2)
    torch.testing.assert_close(velocity, negative + 6.0 * (positive - negative), rtol=0, atol=0)


@pytest.mark.parametrize("source_first", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_a_branch_beside_its_source(paired, source_first, denoiser, latents):
    target_latents, source_latents = latents[:1], latents[1:2]
    target = Branch(target_latents, "cat", "", 6.0, kv_source=0 if source_first else 1)
    source = Branch(source_latents, "bird", "dog", 6.0 if paired else 1.0, needs_velocity=False)
    branches = [source, target] if source_first else [target, source]
    velocities = denoiser(branches, STEP, torch.ones(3))
    assert velocities[0 if source_first else 1] is None
    rows = [target_latents] * 2 + [source_latents] * (2 if paired else 1)
    prompts = ["", "cat", *(["dog", "bird"] if paired else ["bird"])]
    assert denoiser.nfe == len(rows)
    out = run_rows(denoiser, rows, prompts, reads=(2, 3) if paired else (2, 2), wanted=2)
    torch.testing.assert_close(velocities[1 if source_first else 0], out[0:1] + 6.0 * (out[1:2] - out[0:1]))


def test_a_source_is_not_disturbed_by_its_reader(denoiser, latents):
    _, read = denoiser([Branch(latents[:1], "cat", kv_source=1), Branch(latents[1:2], "bird")], STEP, torch.ones(3))
    (alone,) = denoiser([Branch(latents[1:2], "bird")], STEP)
    torch.testing.assert_close(read, alone, rtol=0, atol=1e-6)


def test_kv_scale_is_per_layer(denoiser, latents):
    branches = [Branch(latents[:1], "cat", kv_source=1), Branch(latents[1:2], "bird", needs_velocity=False)]
    (alone,) = denoiser([Branch(latents[:1], "cat")], STEP)
    (none, _), (full, _) = denoiser(branches, STEP, torch.zeros(3)), denoiser(branches, STEP, torch.ones(3))
    torch.testing.assert_close(none, alone, rtol=0, atol=1e-6)
    single = []
    for layer in range(3):
        kv_scale = torch.zeros(3)
        kv_scale[layer] = 0.7
        single.append(denoiser(branches, STEP, kv_scale)[0])
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (single[a] - single[b]).norm() > 1e-3 * full.norm()
    assert (full - alone).norm() > 1e-2 * full.norm()
    almost = denoiser(branches, STEP, torch.full((3,), 1.0 - 1e-6))[0]
    torch.testing.assert_close(almost, full, rtol=0, atol=1e-4)
    less = denoiser(branches, STEP, torch.full((3,), 0.3))[0]
    assert min((less - full).norm(), (less - alone).norm()) > 1e-2 * full.norm()


def test_several_readers_share_a_source(denoiser, latents):
    source = Branch(latents[2:3], "bird", needs_velocity=False)
    cat, dog = Branch(latents[:1], "cat", "", 6.0, kv_source=2), Branch(latents[1:2], "dog", "", 6.0, kv_source=2)
    together = denoiser([cat, dog, source], STEP, torch.ones(3))
    assert denoiser.nfe == 5
    for k, branch in enumerate((cat, dog)):
        apart = denoiser([replace(branch, kv_source=1), source], STEP, torch.ones(3))[0]
        torch.testing.assert_close(together[k], apart, rtol=1e-5, atol=1e-5)


def test_batch_of_latents_keeps_its_samples_apart(denoiser, latents):
    a, b = latents[:2], latents[2:]
    together = denoiser(
        [Branch(a, "cat", "", 6.0, kv_source=1), Branch(b, "bird", needs_velocity=False)], STEP, torch.ones(3)
    )[0]
    assert denoiser.nfe == 6
    for k in range(2):
        pair = [Branch(a[k : k + 1], "cat", "", 6.0, kv_source=1), Branch(b[k : k + 1], "bird", needs_velocity=False)]
        torch.testing.assert_close(together[k : k + 1], denoiser(pair, STEP, torch.ones(3))[0], rtol=1e-5, atol=1e-5)


def test_equal_evaluations_are_made_once(denoiser, latents):
    """Of the same latents, by memory or by key, under the same text, reading the same."""
    video, other = latents[:1], latents[1:2]
    (alone,) = denoiser([Branch(video, "cat")], STEP)
    denoiser.nfe = 0
    (equal,) = denoiser([Branch(video, "cat", "cat", guidance_scale=6.0)], STEP)
    assert denoiser.nfe == 1 and torch.equal(equal, alone)
    target, source = Branch(video, "cat", "dog", 6.0), Branch(video, "dog")
    apart = denoiser([target], STEP) + denoiser([source], STEP)
    denoiser.nfe = 0
    together = denoiser([target, source], STEP)
    assert denoiser.nfe == 2
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    for pair, nfe in (
        ([Branch(video, "cat"), Branch(video.clone(), "cat")], 2),  # values are not compared
        ([Branch(video, "cat", cache_key=(1,)), Branch(video.clone(), "cat", cache_key=(1,))], 1),
        ([Branch(video, "cat", kv_source=1), Branch(video, "cat")], 2),
        ([Branch(video, "cat", kv_source=2), Branch(video, "cat", kv_source=2), Branch(other, "dog")], 2),
        ([Branch(video, "cat"), Branch(video, "cat", needs_velocity=False)], 1),
    ):
        denoiser.nfe = 0
        found = denoiser(pair, STEP, torch.ones(3))
        assert denoiser.nfe == nfe and [one is None for one in found] == [not branch.needs_velocity for branch in pair]


def test_a_branch_that_is_its_source_outside_a_mask(denoiser, latents):
    mask = torch.zeros(1, 3, 1, 8, 12)
    mask[:, 1:, :, 2:4, 4:8] = 1.0
    target = Branch(latents[:1], "cat", "", 6.0, kv_source=1, mask=mask)
    source = Branch(latents[1:2], "bird", needs_velocity=False)
    found, _ = denoiser([target, source], STEP, torch.zeros(3))
    out = run_rows(
        denoiser, [latents[:1]] * 2 + [latents[1:2]], ["", "cat", "bird"],
        reads=(2, 2), wanted=2, kv_scale=torch.zeros(3), masks=[mask, mask],
    )  # fmt: skip
    torch.testing.assert_close(found, out[:1] + 6.0 * (out[1:] - out[:1]))
    assert torch.equal(found != 0, mask.bool().expand_as(found))
    with pytest.raises(ValueError, match=r"^mask: .*kv_source"):
        denoiser([replace(target, kv_source=None)], STEP)


def test_network_in_bfloat16_latents_in_float32(transformer, embeds, latents):
    branch = Branch(latents[:1], "cat", "", 6.0)
    (exact,) = CogVideoXDenoiser(Network(transformer), embeds.__getitem__)([branch], STEP)
    transformer.to(torch.bfloat16)
    seen = []
    transformer.patch_embed.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].dtype))
    (velocity,) = CogVideoXDenoiser(Network(transformer), embeds.__getitem__)([branch], STEP)
    assert seen == [torch.bfloat16] and velocity.dtype == torch.float32
    assert (velocity - exact).norm() < 0.1 * exact.norm()
    # Guidance is combined in float32: combined in bfloat16, every value would be a bfloat16.
    assert not torch.equal(velocity, velocity.bfloat16().float())


def test_rotary_table_follows_the_size(denoiser):
    for shape in ((1, 3, 4, 8, 12), (1, 2, 4, 6, 4), (1, 3, 4, 8, 12)):
        video = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        (velocity,) = denoiser([Branch(video, "cat")], STEP)
        torch.testing.assert_close(velocity, run_rows(denoiser, [video], ["cat"]))


def test_without_rotary_embeddings(flat_transformer, embeds, latents):
    theirs = flat_transformer(latents[:1], embeds["cat"], torch.tensor([640])).sample
    (velocity,) = CogVideoXDenoiser(Network(flat_transformer), embeds.__getitem__)([Branch(latents[:1], "cat")], STEP)
    torch.testing.assert_close(velocity, theirs, rtol=0, atol=2e-6)
