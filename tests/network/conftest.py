"""Small transformers with weights that make every part matter."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel


def make_transformer(rotary=True, seed=0, in_channels=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,  # the smallest that the 3D rotary schedule can split
            in_channels=in_channels,
            out_channels=4,
            time_embed_dim=10,
            text_embed_dim=14,
            num_layers=3,  # a first, a middle and a last one
            sample_width=12,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=7,
            use_rotary_positional_embeddings=rotary,
        )
        for parameter in transformer.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return transformer.eval().requires_grad_(False)


@pytest.fixture
def transformer():
    return make_transformer()


@pytest.fixture
def flat_transformer():
    """Without rotary embeddings, as CogVideoX-2B."""
    return make_transformer(rotary=False)


@pytest.fixture
def latents():
    return torch.randn(4, 3, 4, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def embeds():
    generator = torch.Generator().manual_seed(2)
    return {prompt: torch.randn(1, 7, 14, generator=generator) for prompt in ("", "cat", "dog", "bird")}
