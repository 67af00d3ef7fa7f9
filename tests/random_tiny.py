"""A CogVideoX pipeline folder with random weights, of the very classes of the real one, small enough for tests."""

from __future__ import annotations

import shutil

import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel

from benchmarks.random_weights import make_random
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from ddim_lightning.models.source import BUNDLED
from ddim_lightning.tiny.training import make_tokenizer, write_pipeline

VAE = {
    "block_out_channels": (8, 12, 16),  # three blocks: 4x in space, as the bundled model
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "layers_per_block": 1,  # full-resolution convolutions are what costs time on a CPU
    "norm_num_groups": 4,  # has to divide every number of channels
    "latent_channels": 8,  # as the bundled model
    "temporal_compression_ratio": 4,  # as CogVideoX: 9 frames become 3
    "sample_height": 64,
    "sample_width": 64,
    "scaling_factor": 0.7,  # as CogVideoX-5B; not 1, so that leaving it out shows
}

TRANSFORMER = {
    "num_layers": 3,  # a first, a middle and a last
    "num_attention_heads": 3,  # not the number of frames' or of rows' usual 2
    "attention_head_dim": 16,  # the smallest whose split over time, height and width (4, 6, 6) is even
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 20,  # not the width, 48
    "text_embed_dim": 24,  # not the width either
    "max_text_seq_length": 16,  # a caption has 10 words and an end
    "patch_size": 2,  # as CogVideoX: 3 x 8 x 8 tokens
    "sample_frames": 9,
    "sample_height": 16,  # in latents: 64 pixels
    "sample_width": 16,
    "temporal_compression_ratio": 4,
}

TEXT_ENCODER = {
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,  # not 4 x 24, so that gate and output cannot be confused
    "num_layers": 2,
    "num_heads": 4,  # 4 x 8 is not 24: heads and width are told apart
    "feed_forward_proj": "gated-gelu",  # as T5-XXL v1.1
    "dropout_rate": 0.0,
}


def write_random_tiny(
    folder,
    *,
    seed=0,
    rotary=True,
    snr_shift_scale=1.0,
    scheduler="CogVideoXDDIMScheduler",
    transformer=None,
    vae=None,
    max_shard_size="5GB",
):
    """Write a CogVideoX pipeline folder with random weights, small enough for one CPU thread.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        seed: Seed of all weights; the global random state is not touched.
        rotary: Whether the transformer has rotary position embeddings, as 5B, or sines and cosines, as 2B.
        snr_shift_scale: 1 as 5B, 3 as 2B.
        scheduler: The scheduler the folder names, ``CogVideoXDDIMScheduler`` or ``CogVideoXDPMScheduler``.
        transformer: Arguments of `CogVideoXTransformer3DModel` that replace those of `TRANSFORMER`.
        vae: Arguments of `AutoencoderKLCogVideoX` that replace those of `VAE`.
        max_shard_size: Weights above it are split into several files with an index.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer()
    sizes = {**TRANSFORMER, "use_rotary_positional_embeddings": rotary, **(transformer or {})}
    text = T5Config(vocab_size=len(tokenizer), **TEXT_ENCODER)
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": make_random(lambda: T5EncoderModel(text), seed=seed, **where),
        "transformer": make_random(lambda: CogVideoXTransformer3DModel(**sizes), seed=seed + 1, **where),
        "vae": make_random(lambda: AutoencoderKLCogVideoX(**{**VAE, **(vae or {})}), seed=seed + 2, **where),
        "scheduler": getattr(diffusers, scheduler)(**{**COGVIDEOX_5B_SCHEDULER, "snr_shift_scale": snr_shift_scale}),
    }
    write_pipeline(folder, parts, max_shard_size)
    shutil.copy(BUNDLED / "recommended.yaml", folder)
    return folder
