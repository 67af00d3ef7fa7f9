"""What tests on the emulated device share."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning import Clip
from tests.random_tiny import write_random_tiny


@pytest.fixture(scope="session")
def smallest_model(tmp_path_factory):
    """Two blocks, and a VAE of the fewest channels: what is asked of a device does not grow with a model."""
    return write_random_tiny(
        tmp_path_factory.mktemp("models") / "smallest",
        transformer={"num_layers": 2},
        vae={"block_out_channels": (4, 4, 8)},
    )


@pytest.fixture
def clip():
    """The smallest clip that has more than one latent frame."""
    frames = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    return Clip("clip", frames, prompts=("a red circle",), source_prompt="a red square")
