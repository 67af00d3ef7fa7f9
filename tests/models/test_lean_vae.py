"""The lean passes through the VAE give the bytes of diffusers', and stand aside where somebody has changed it."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.random_weights import make_random
from ddim_lightning.models.lean_vae import LeanCoder, _convolve, make_coder
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.vae import decode_latents, encode_video, order_channels_last
from ddim_lightning.runtime.compile import apply_vae_compile
from tests.random_tiny import VAE

CPU = torch.device("cpu")
EIGHTFOLD = {"block_out_channels": (8, 12, 12, 16)} | {
    f"{way}_block_types": (f"CogVideoX{kind}Block3D",) * 4 for way, kind in (("down", "Down"), ("up", "Up"))
}
VARIANTS = {
    "4x": {},
    "8x": EIGHTFOLD,
    "half the frames": {"temporal_compression_ratio": 2},
    "two layers": {"layers_per_block": 2, "norm_num_groups": 2},
}
SIZES = [(1, 4, 6), (2, 5, 3), (3, 5, 7), (4, 6, 3), (5, 8, 8), (7, 4, 9)]


def make_vae(dtype=torch.float32, **config):
    return make_random(lambda: AutoencoderKLCogVideoX(**{**VAE, **config}), seed=1, device=CPU, dtype=dtype)


def decode_by_diffusers(vae, latents):
    latents = (latents / vae.config.scaling_factor).to(vae.dtype).transpose(1, 2)
    return (vae.decode(latents).sample.transpose(1, 2).float() / 2 + 0.5).clamp(0, 1)


def encode_by_diffusers(vae, video):
    posterior = vae.encode((video * 2 - 1).to(vae.dtype).transpose(1, 2)).latent_dist
    return posterior.mode().transpose(1, 2).float() * vae.config.scaling_factor


def check_same_bytes(vae, frames, height, width, rows=1):
    """Encode and decode clips of so many latent frames and pixels of latents by both."""
    config = vae.config
    generator = torch.Generator().manual_seed(frames)
    latents = torch.randn(rows, frames, config.latent_channels, height, width, generator=generator)
    scale, length = 2 ** (len(config.block_out_channels) - 1), (frames - 1) * config.temporal_compression_ratio + 1
    video = torch.rand(rows, length, 3, scale * height, scale * width, generator=generator)
    assert torch.equal(encode_video(vae, video), encode_by_diffusers(vae, video))
    # An even number is decoded with one more latent frame: see `stream_decoded`.
    odd = latents if frames % 2 else torch.cat([latents, latents[:, -1:]], dim=1)
    assert torch.equal(decode_latents(vae, latents), decode_by_diffusers(vae, odd)[:, :length])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_are_those_of_diffusers(variant, dtype):
    vae = make_vae(dtype, **VARIANTS[variant])
    assert isinstance(make_coder(vae.decoder, torch.empty(0)), LeanCoder)
    for size in SIZES:
        check_same_bytes(vae, *size)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_several_rows_and_slices_and_with_channels_last_and_of_the_bundled_model(dtype):
    vae = make_vae(dtype)
    check_same_bytes(vae, 3, 5, 4, rows=2)
    vae.enable_slicing()
    check_same_bytes(vae, 5, 5, 4, rows=2)
    vae.disable_slicing()
    order_channels_last(vae)
    check_same_bytes(vae, 3, 5, 4, rows=2)
    check_same_bytes(vae, 5, 4, 6)
    check_same_bytes(load_components("tiny", device=CPU, dtype=dtype).vae, 3, 8, 6)


@torch.no_grad()
def test_convolutions_around_the_coders_act():
    """diffusers' own post_quant_conv wants as many latent channels as there are colors."""
    vae = make_vae(latent_channels=3, use_quant_conv=True, use_post_quant_conv=True)
    check_same_bytes(vae, 3, 4, 5)
    vae.post_quant_conv.weight.zero_()
    constant = decode_latents(vae, torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(constant, decode_latents(vae, torch.zeros(1, 1, 3, 4, 5)))


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("frames", [10, 270])
def test_large_inputs_are_divided_as_diffusers_divides_them(kernel, frames, monkeypatch):
    """On shapes without values: these have several billions."""
    seen, forward = [], nn.Conv3d.forward
    monkeypatch.setattr(nn.Conv3d, "forward", lambda conv, x: seen.append(x.shape) or forward(conv, x))
    with torch.device("meta"):
        conv = CogVideoXSafeConv3d(4, 3, kernel, padding=(0, kernel // 2, kernel // 2))
        x = torch.empty(1, 4, frames, 1024, 3072)
    shapes = [conv(x).shape, *seen]
    seen.clear()
    assert [_convolve(conv, x).shape, *seen] == shapes
    assert (len(seen) > 1) == (frames > 10)


def hook(vae):
    vae.decoder.up_blocks[1].resnets[0].register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))


def hook_before(vae):
    vae.decoder.conv_out.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def subclass(vae):
    class Doubled(nn.GroupNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    vae.decoder.mid_block.resnets[1].norm1.norm_layer.__class__ = Doubled


def replace_forward(vae):
    norm = vae.decoder.norm_out
    norm.forward = lambda f, zq, conv_cache=None, theirs=norm.forward: (f, theirs(f, zq, conv_cache)[1])


def replace_activation(vae):
    vae.decoder.up_blocks[0].resnets[0].nonlinearity = nn.ReLU()


def parametrize(vae):
    parametrizations.weight_norm(vae.decoder.conv_in.conv)
    vae.decoder.conv_in.conv.parametrizations.weight.original0.data *= 2


def drop(vae):
    for module in vae.modules():
        if isinstance(module, nn.Dropout):
            module.train().p = 1.0


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [hook, hook_before, subclass, replace_forward, replace_activation, parametrize, drop],
    ids=lambda f: f.__name__,
)
def test_what_others_change_acts(change):
    vae, latents = make_vae(), torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(2))
    before = decode_latents(vae, latents)
    change(vae)
    assert not torch.equal(decode_latents(vae, latents), before)
    assert torch.equal(decode_latents(vae, latents), decode_by_diffusers(vae, latents))


def test_compiled_coders_are_called(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    vae, called = make_vae(), []
    theirs = vae.decoder.forward
    vae.decoder.forward = lambda *args, **named: called.append(1) or theirs(*args, **named)
    apply_vae_compile(vae)
    with torch.no_grad():
        decode_latents(vae, torch.zeros(1, 5, 8, 4, 6))
    assert called == [1, 1]


def test_gradients_and_autocast_are_diffusers_own():
    vae, video = make_vae(), torch.rand(1, 5, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    latents = encode_video(vae, video).requires_grad_()
    (gradient,) = torch.autograd.grad(decode_latents(vae, latents).square().sum(), latents)
    theirs = latents.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(
        decode_by_diffusers(vae, torch.cat([theirs, theirs[:, -1:]], 1))[:, :5].square().sum(), theirs
    )
    assert torch.equal(gradient, wanted) and gradient.abs().max() > 0
    vae.requires_grad_(True)
    encode_video(vae, video).sum().backward()
    assert vae.encoder.conv_in.conv.weight.grad.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_video(vae, video), encode_by_diffusers(vae, video))
    with torch.no_grad():
        assert isinstance(make_coder(vae.encoder, video), LeanCoder)
