"""The model that is shipped: small, of the sizes its training config makes, and a VAE that keeps what is in a clip."""

from __future__ import annotations

import importlib.util
import re

import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.engine.shipped import get_config_path
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.source import BUNDLED
from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.tiny.shapes_classifier import Labels, classify
from ddim_lightning.tiny.training import TRANSFORMER


def test_it_is_small():
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*.safetensors")) <= 12e6


def test_its_card_names_commands_that_are_there():
    card = (BUNDLED / "README.md").read_text("utf-8")
    modules, configs = re.findall(r"python -m ([\w.]+)", card), re.findall(r"--config (\w+)", card)
    assert all(importlib.util.find_spec(name) for name in modules) and modules
    assert all(get_config_path(name).is_file() for name in configs) and configs


def test_clips_survive_its_vae_and_it_is_what_the_training_makes():
    parts = load_components("tiny", device=torch.device("cpu"), dtype=torch.float32)
    assert {name: parts.transformer.config[name] for name in TRANSFORMER} == TRANSFORMER
    scenes = [sample_scene(make_generator(1, "test", i)) for i in range(3)]
    frames = torch.stack([render(scene) for scene in scenes])
    with torch.inference_mode():
        video = decode_latents(parts.vae, encode_video(parts.vae, frames))
    for scene, truth, decoded in zip(scenes, frames, video, strict=True):
        assert psnr(decoded, truth / 255) > 28
        expected = Labels(scene.shape, scene.color, scene.background, scene.direction)
        assert classify((decoded * 255).round().to(torch.uint8)) == expected
