"""CogVideoX-5B on the meta device, against a list written down from the published architecture."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from benchmarks.published import make_random_5b, make_random_components, make_random_t5_xxl
from benchmarks.random_weights import make_random
from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from tests.random_tiny import TEXT_ENCODER, TRANSFORMER, VAE

Shapes = dict[str, tuple[int, ...]]


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published():
    return make_random_5b(device=torch.device("meta"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def published_text_encoder():
    return make_random_t5_xxl(device=torch.device("meta"), dtype=torch.bfloat16)


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def list_transformer():
    """42 blocks of width 3072, 48 heads of 64, latents of 16 channels in patches of 2 x 2, text of width 4096."""
    width, time, head, layers = 3072, 512, 64, 42
    shapes = {"patch_embed.proj.weight": (width, 16, 2, 2), "patch_embed.proj.bias": (width,)}
    shapes |= linear("patch_embed.text_proj", 4096, width)
    shapes |= linear("time_embedding.linear_1", width, time) | linear("time_embedding.linear_2", time, time)
    for layer in range(layers):
        block = f"transformer_blocks.{layer}"
        for part in ("norm1", "norm2"):  # AdaLN: shift, scale and gate, for video and for text
            shapes |= linear(f"{block}.{part}.linear", time, 6 * width) | norm(f"{block}.{part}.norm", width)
        for part in ("norm_q", "norm_k"):  # one normalization for all heads
            shapes |= norm(f"{block}.attn1.{part}", head)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{block}.attn1.{part}", width, width)
        shapes |= linear(f"{block}.ff.net.0.proj", width, 4 * width) | linear(f"{block}.ff.net.2", 4 * width, width)
    shapes |= norm("norm_final", width) | norm("norm_out.norm", width)
    shapes |= linear("norm_out.linear", time, 2 * width)  # shift and scale
    return shapes | linear("proj_out", width, 2 * 2 * 16)


def list_text_encoder():
    """The encoder of T5 v1.1 XXL: 24 layers of width 4096, 64 heads of 64, gated GELU of 10240, no biases."""
    shapes = {"shared.weight": (32128, 4096), "encoder.embed_tokens.weight": (32128, 4096)}
    for layer in range(24):
        attention, feed_forward = (f"encoder.block.{layer}.layer.{i}" for i in (0, 1))
        shapes |= {f"{attention}.SelfAttention.{part}.weight": (4096, 4096) for part in "qkvo"}
        shapes |= {f"{feed_forward}.DenseReluDense.{part}.weight": (10240, 4096) for part in ("wi_0", "wi_1")}
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (4096, 10240)
        shapes |= {f"{part}.layer_norm.weight": (4096,) for part in (attention, feed_forward)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 64)
    return shapes | {"encoder.final_layer_norm.weight": (4096,)}


def test_the_transformer_has_the_published_names_and_shapes(published):
    assert shapes_of(published.transformer) == list_transformer()


def test_the_transformer_has_5_57_billion_parameters(published):
    by_hand = sum(math.prod(shape) for shape in list_transformer().values())
    assert sum(p.numel() for p in published.transformer.parameters()) == by_hand == 5_570_283_072


def test_the_text_encoder_has_the_published_names_and_shapes(published_text_encoder):
    assert shapes_of(published_text_encoder) == list_text_encoder()


def test_the_vae_compresses_8_8_4_into_16_channels(published):
    shapes = shapes_of(published.vae)
    assert shapes["encoder.conv_in.conv.weight"] == (128, 3, 3, 3, 3)
    assert shapes["encoder.conv_out.conv.weight"] == (2 * 16, 512, 3, 3, 3)
    assert shapes["decoder.conv_in.conv.weight"] == (512, 16, 3, 3, 3)
    assert shapes["decoder.conv_out.conv.weight"] == (3, 128, 3, 3, 3)
    video = torch.empty(1, 3, 9, 64, 96, device="meta", dtype=torch.bfloat16)
    latents = published.vae.encode(video).latent_dist.parameters
    assert latents.shape == (1, 2 * 16, 3, 8, 12)
    assert sum(p.numel() for p in published.vae.parameters()) == 215_583_907


def test_everything_of_it_is_frozen_and_without_values(published, published_text_encoder):
    for module in (published.transformer, published.vae, published_text_encoder):
        assert not module.training
        assert {(p.device.type, p.dtype, p.requires_grad) for p in module.parameters()} == {
            ("meta", torch.bfloat16, False)
        }
        assert list(module.buffers()) == []  # nothing that to_empty would leave without values


def test_its_limits_are_49_frames_of_480_by_720(published):
    assert published.limits == VideoLimits(num_frames=49, height=480, width=720, multiple=16, temporal=4)


def make_small(seed=0, dtype=torch.float32):
    rotary = {**TRANSFORMER, "use_rotary_positional_embeddings": True}
    return make_random_components(rotary, VAE, COGVIDEOX_5B_SCHEDULER, device=CPU, dtype=dtype, seed=seed)


def make_small_text_encoder(dtype=torch.float32):
    text = T5Config(vocab_size=40, **TEXT_ENCODER)
    return make_random(lambda: T5EncoderModel(text), device=CPU, dtype=dtype, seed=0)


def test_random_weights_follow_their_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    first, again, other = (make_small(seed).transformer.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_random_weights_keep_their_inputs_variance():
    parts = make_small()
    weights = dict(parts.transformer.named_parameters())
    assert weights["transformer_blocks.0.ff.net.2.weight"].std().item() == pytest.approx((4 * 48) ** -0.5, rel=0.05)
    assert weights["norm_final.weight"].mean().item() == pytest.approx(1, abs=0.05)
    assert weights["norm_final.bias"].mean().item() == pytest.approx(0, abs=0.05)
    assert all(weight.std() > 0.02 for weight in weights.values())  # no weight is constant
    encoder = make_small_text_encoder()
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_random_components_turn_a_prompt_into_a_finite_velocity_in_bfloat16():
    parts = make_small(dtype=torch.bfloat16)
    ids = parts.tokenizer("a red circle", padding="max_length", max_length=16, return_tensors="pt").input_ids
    latents = torch.zeros(1, 3, 8, 16, 16, dtype=torch.bfloat16)
    cos = torch.ones(3 * 8 * 8, 16)
    velocity = parts.transformer(
        latents,
        make_small_text_encoder(torch.bfloat16)(ids)[0],
        torch.tensor([999]),
        image_rotary_emb=(cos, torch.zeros_like(cos)),
    ).sample
    assert velocity.shape == latents.shape
    assert velocity.isfinite().all()
    assert velocity.float().std() > 0.1
