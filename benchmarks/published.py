"""The published architecture of CogVideoX-5B is made at random weights, for benchmarks.

Source: the config files of ``zai-org/CogVideoX-5b``; Yang et al. 2024, "CogVideoX: Text-to-video diffusion models with
an expert transformer", arXiv:2408.06072.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel

from benchmarks.random_weights import make_random
from ddim_lightning.models.checkpoint import make_limits
from ddim_lightning.models.loading import Components
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_schedulers
from ddim_lightning.tiny.training import make_tokenizer

COGVIDEOX_5B_TRANSFORMER: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "num_attention_heads": 48,
    "num_layers": 42,
    "out_channels": 16,
    "patch_size": 2,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": True,
}

COGVIDEOX_5B_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
    "temporal_compression_ratio": 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
}

T5_XXL: dict[str, Any] = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}


def make_random_5b(*, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Components:
    """Make CogVideoX-5B's exact architecture at random weights; see `make_random_components`."""
    return make_random_components(
        COGVIDEOX_5B_TRANSFORMER,
        COGVIDEOX_5B_VAE,
        COGVIDEOX_5B_SCHEDULER,
        device=device,
        dtype=dtype,
        seed=seed,
    )


def make_random_t5_xxl(*, device: torch.device, dtype: torch.dtype, seed: int = 0) -> T5EncoderModel:
    """Make the text encoder of CogVideoX-5B, T5-XXL, at random weights drawn where it will run."""
    encoder: T5EncoderModel = make_random(
        lambda: T5EncoderModel(T5Config(**T5_XXL)), device=device, dtype=dtype, seed=seed + 2
    )
    return encoder


def make_random_components(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> Components:
    """Make components at random weights, drawn where they will run.

    The tokenizer knows the words of the tiny model only: prompts become valid embeddings, and mean nothing.

    Args:
        transformer: Arguments of `CogVideoXTransformer3DModel`.
        vae: Arguments of `AutoencoderKLCogVideoX`.
        scheduler: Config of a CogVideoX scheduler.
        device: Where the weights are drawn; on the meta device they have shapes but no values.
        dtype: Of all weights.
        seed: Seed of all weights.

    Raises:
        ValueError: A scheduler config that cannot be inverted.
    """
    forward, inverse = make_schedulers(scheduler)
    draw: dict[str, Any] = {"device": device, "dtype": dtype}
    return Components(
        transformer=make_random(lambda: CogVideoXTransformer3DModel(**transformer), seed=seed, **draw),
        vae=make_random(lambda: AutoencoderKLCogVideoX(**vae), seed=seed + 1, **draw),
        tokenizer=make_tokenizer(),
        scheduler=forward,
        inverse_scheduler=inverse,
        limits=make_limits(transformer, vae),
    )
