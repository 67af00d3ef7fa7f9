"""Latents encoded once: what batches hold is what the VAE says of the scenes, and the cache is checked."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from ddim_lightning.data.streams import make_generator
from ddim_lightning.models.vae import encode_video
from ddim_lightning.tiny.latents_datamodule import ShapesLatentsDataModule
from ddim_lightning.tiny.shapes import render, sample_scene


def make_data(model, cache, *, seed=0, scenes=10):
    return ShapesLatentsDataModule(
        str(model / "vae"), str(cache), scenes=scenes, val_scenes=5, batch_size=3, dtype="float32", seed=seed
    )


@pytest.fixture
def data(tiny_model, tmp_path):
    made = make_data(tiny_model, tmp_path / "cache" / "latents.safetensors")
    made.prepare_data()
    made.setup("fit")
    return made


def test_validation_holds_the_scaled_means_of_its_scenes_in_order(data, tiny_model):
    batches = list(data.val_dataloader())
    assert [len(batch["prompts"]) for batch in batches] == [3, 2]
    scenes = [sample_scene(make_generator(0, "val", i)) for i in range(5)]
    assert [prompt for batch in batches for prompt in batch["prompts"]] == [scene.caption for scene in scenes]
    vae = AutoencoderKLCogVideoX.from_pretrained(tiny_model / "vae")
    with torch.no_grad():
        expected = encode_video(vae, torch.stack([render(scene) for scene in scenes]))
    torch.testing.assert_close(torch.cat([batch["latents"] for batch in batches]), expected, rtol=2e-3, atol=2e-3)


def test_train_batches_are_reproducible_and_sample_the_posterior_anew(data):
    batches = list(itertools.islice(data.train_dataloader(), 40))
    again = data.make_train_batch(7)
    assert torch.equal(batches[7]["latents"], again["latents"]) and batches[7]["prompts"] == again["prompts"]
    drawn = {}
    for batch in batches:
        for latent, prompt in zip(batch["latents"], batch["prompts"], strict=True):
            drawn.setdefault(prompt, []).append(latent)
    assert set(drawn) == {sample_scene(make_generator(0, "train", i)).caption for i in range(10)}
    assert all(not torch.equal(one, two) for many in drawn.values() for one, two in itertools.pairwise(many))


def test_cache_is_used_again_and_refused_for_another_world(data, tiny_model, tmp_path):
    written = data.cache.stat().st_mtime_ns
    same = make_data(tiny_model, data.cache)
    same.prepare_data()
    same.setup("fit")
    assert data.cache.stat().st_mtime_ns == written
    for other in (make_data(tiny_model, data.cache, scenes=11), make_data(tiny_model, data.cache, seed=1)):
        other.prepare_data()
        with pytest.raises(ValueError, match="cache must hold"):
            other.setup("fit")
