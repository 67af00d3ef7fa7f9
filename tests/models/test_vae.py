"""Video to latents and back, with the axes and scales of the pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXPipeline

from ddim_lightning.models.loading import load_components
from ddim_lightning.models.vae import decode_latents, encode_video, order_channels_last, quantize, stream_decoded

VIDEO = torch.rand(2, 9, 3, 24, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def parts(tiny_model):
    return load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def vae(parts):
    return parts.vae


@torch.no_grad()
def test_encoding_is_the_scaled_mode_with_frames_before_channels(vae):
    latents = encode_video(vae, VIDEO)
    theirs = vae.encode(VIDEO.transpose(1, 2) * 2 - 1).latent_dist.mode() * 0.7
    assert latents.shape == (2, 3, 8, 6, 10) and latents.dtype == torch.float32
    assert torch.equal(latents, theirs.transpose(1, 2))


@torch.no_grad()
def test_bytes_and_floats_are_the_same_video(vae):
    frames = (VIDEO * 255).round().to(torch.uint8)
    assert torch.equal(encode_video(vae, frames), encode_video(vae, frames.float() / 255))


@torch.no_grad()
def test_sampling_the_posterior_takes_a_generator_and_nothing_else(vae):
    drawn = [encode_video(vae, VIDEO, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], encode_video(vae, VIDEO))


@torch.no_grad()
def test_decoding_is_the_pipelines(parts):
    pipeline = CogVideoXPipeline(parts.tokenizer, None, parts.vae, parts.transformer, parts.scheduler)
    latents = torch.randn(1, 3, 8, 6, 10, generator=torch.Generator().manual_seed(3))
    theirs = pipeline.video_processor.postprocess_video(pipeline.decode_latents(latents), output_type="pt")
    video = decode_latents(parts.vae, latents)
    assert video.shape == (1, 9, 3, 24, 40) and video.min() >= 0 and video.max() <= 1
    torch.testing.assert_close(video, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 5, 9, 13, 17])
def test_every_4k_plus_1_comes_back_with_its_own_count(num_frames, vae):
    video = torch.rand(1, num_frames, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    latents = encode_video(vae, video)
    assert latents.shape[1] == (num_frames - 1) // 4 + 1
    assert decode_latents(vae, latents).shape == video.shape


@torch.no_grad()
def test_even_counts_decode_as_the_beginning_of_a_longer_clip(vae):
    """Two latent frames are the beginning of three: but for the norms, which see the whole of the three."""
    latents = 0.3 * torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(2))
    latents[:, 2] = latents[:, 1]
    short, long = decode_latents(vae, latents[:, :2]), decode_latents(vae, latents)
    assert torch.equal(short, long[:, :5])


@torch.no_grad()
def test_half_precision_autoencoder_gives_float32(tiny_model):
    vae = load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.bfloat16).vae
    latents = encode_video(vae, VIDEO[:1])
    assert latents.dtype == decode_latents(vae, latents).dtype == torch.float32


@torch.no_grad()
def test_channels_last_is_the_same_up_to_rounding(tiny_model):
    plain, ordered = (
        load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32).vae for _ in "ab"
    )
    order_channels_last(ordered)
    weights = [module.weight for module in ordered.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d)]
    assert {weight.ndim for weight in weights} == {4, 5}
    for weight in weights:
        assert weight.is_contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.channels_last_3d)
    latents = encode_video(plain, VIDEO)
    torch.testing.assert_close(encode_video(ordered, VIDEO), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_latents(ordered, latents), decode_latents(plain, latents), rtol=1e-5, atol=1e-5)


def test_frames_are_rounded_not_cut():
    video = torch.tensor([0.0, 0.9 / 255, 1.0]).view(1, 3, 1, 1, 1)
    frames = quantize(video)
    assert frames.dtype == torch.uint8 and frames.shape == video.shape
    assert frames.flatten().tolist() == [0, 1, 255]


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [17, 25, 29])
def test_a_long_video_passes_in_pieces_as_diffusers_passes_it(num_frames, vae):
    video = torch.rand(1, num_frames, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    latents = encode_video(vae, video)
    theirs = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode() * 0.7
    assert torch.equal(latents, theirs.transpose(1, 2))
    if latents.shape[1] % 2:  # diffusers makes more frames of an even number
        pieces = list(stream_decoded(vae, latents))
        assert [piece.shape[1] for piece in pieces] == [9, *[8] * (num_frames // 8 - 1)]
        decoded = vae.decode((latents / 0.7).transpose(1, 2)).sample.transpose(1, 2)
        assert torch.equal(torch.cat(pieces, dim=1), (decoded / 2 + 0.5).clamp(0, 1))
