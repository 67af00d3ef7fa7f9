"""An image-to-video model sees image latents beside the latents of every row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddim_lightning.diffusion.windows import Windows
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.network.network import Network
from ddim_lightning.types import Branch, Step
from tests.network.conftest import make_transformer

STEP = Step(2, 640, angle=1.2, angle_next=1.1)


@pytest.fixture
def image_transformer():
    return make_transformer(in_channels=8)


@pytest.fixture
def images():
    """Of four clips: a frame, then zeros."""
    images = torch.zeros(4, 3, 4, 8, 12)
    images[:, 0] = torch.randn(4, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    return images


@pytest.fixture(params=["fused", "diffusers"])
def denoiser(request, image_transformer, embeds):
    attention = resolve_attention("sdpa", torch.device("cpu"))
    made = Network(image_transformer) if request.param == "fused" else DiffusersNetwork(image_transformer, attention)
    return CogVideoXDenoiser(made, embeds.__getitem__)


def test_rows_are_those_of_the_plain_pipeline(denoiser, image_transformer, embeds, latents, images):
    """Guided, beside a source that is shown another image: every row against diffusers' transformer by itself."""
    target = Branch(latents[:2], "cat", "dog", 6.0, image_latents=images[:2])
    source = Branch(latents[2:], "bird", image_latents=images[2:])
    velocities = denoiser([target, source], STEP)
    rotary = tuple(table[7:] for table in denoiser.network.get_rotary(latents))

    def run(branch, prompt):
        rows = torch.cat([branch.latents, branch.image_latents], dim=2)
        text, time = embeds[prompt].expand(2, -1, -1), torch.full((2,), 640)
        return image_transformer(rows, text, time, image_rotary_emb=rotary).sample

    negative, positive = run(target, "dog"), run(target, "cat")
    torch.testing.assert_close(velocities[0], negative + 6.0 * (positive - negative), rtol=0, atol=2e-5)
    torch.testing.assert_close(velocities[1], run(source, "bird"), rtol=0, atol=2e-6)
    assert velocities[1].shape == latents[2:].shape and denoiser.nfe == 6


def test_rows_keep_their_images_whatever_their_order(denoiser, latents, images):
    """The network wants readers first and mere sources last; each goes with its own image."""
    target = Branch(latents[:1], "cat", "", 6.0, kv_source=0, image_latents=images[:1])
    source = Branch(latents[1:2], "bird", needs_velocity=False, image_latents=images[1:2])
    _, last = denoiser([source, target], STEP, torch.ones(3))
    first, _ = denoiser([replace(target, kv_source=1), source], STEP, torch.ones(3))
    assert torch.equal(first, last)
    swapped = denoiser([replace(source, image_latents=images[:1]), target], STEP, torch.ones(3))[1]
    assert (swapped - last).abs().max() > 1e-3


def test_the_image_has_the_networks_dtype(image_transformer, embeds, latents, images):
    branch = Branch(latents[:1], "cat", image_latents=images[:1])
    (exact,) = CogVideoXDenoiser(Network(image_transformer), embeds.__getitem__)([branch], STEP)
    (half,) = CogVideoXDenoiser(Network(image_transformer.to(torch.bfloat16)), embeds.__getitem__)([branch], STEP)
    assert half.dtype == torch.float32 and 0.0 < (half - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("image", "message"),
    [(None, r"^image_latents: .*encode_image"), (torch.zeros(1, 2, 4, 8, 12), r"^image_latents: .*\(1, 2, 4, 8, 12\)")],
)
def test_an_image_that_is_missing_or_does_not_fit(image, message, denoiser, latents):
    with pytest.raises(ValueError, match=message):
        denoiser([Branch(latents[:1], "cat", image_latents=image)], STEP)


def test_a_text_to_video_model_takes_no_image(transformer, embeds, latents, images):
    with pytest.raises(ValueError, match=r"^image_latents: .*None"):
        CogVideoXDenoiser(Network(transformer), embeds.__getitem__)(
            [Branch(latents[:1], "cat", image_latents=images[:1])], STEP
        )


def test_windows_are_refused(image_transformer, embeds, latents, images):
    windowed = CogVideoXDenoiser(Network(image_transformer), embeds.__getitem__, Windows(2, 1))
    with pytest.raises(ValueError, match=r"^latents: .*at most 2 .*got 3"):
        windowed([Branch(latents[:1], "cat", image_latents=images[:1])], STEP)
