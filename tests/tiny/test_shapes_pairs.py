"""Pairs of the world of shapes: batches hold what the VAE says of scenes that differ in what an edit changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from ddim_lightning.models.source import BUNDLED
from ddim_lightning.models.vae import encode_video
from ddim_lightning.tiny.shapes import WORDS, render
from ddim_lightning.tiny.shapes_pairs import KINDS, ShapesPairs, name_changes


def make_data(model, folder, **options):
    settings = {"groups": 3, "val_groups": 2, "sources": 2, "targets": 3, "dtype": "float32"} | options
    return ShapesPairs(str(model / "vae"), str(folder / "pairs.safetensors"), **settings)


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    made = tmp_path_factory.mktemp("cache")
    make_data(tiny_model, made).prepare_data()
    return made


@pytest.fixture
def data(tiny_model, folder):
    made = make_data(tiny_model, folder)
    made.prepare_data()
    made.setup("fit")
    return made


def test_a_group_is_a_scene_and_an_edit_of_each_kind_that_is_trained_on(data):
    for index in range(20):
        scene, *edits = data.list_scenes("train", index)
        assert not any(one.held_out for one in (scene, *edits))
        for names, edited in zip(KINDS.values(), edits, strict=True):
            assert {name for name in WORDS if getattr(edited, name) != getattr(scene, name)} == set(names)
            assert set(name_changes(scene, edited).split()) == {getattr(edited, name) for name in names}
    assert data.list_scenes("train", 0) != data.list_scenes("val", 0)


def test_validation_reads_the_scene_and_has_all_its_edits(data, tiny_model):
    (batch,) = data.val_dataloader()
    groups = [data.list_scenes("val", index) for index in range(2)]
    assert batch["source_prompts"] == [group[0].caption for group in groups]
    assert batch["target_prompts"] == [scene.caption for group in groups for scene in group[1:]]
    assert batch["reads"].tolist() == [0] * 5 + [1] * 5
    vae = AutoencoderKLCogVideoX.from_pretrained(tiny_model / "vae")
    with torch.no_grad():
        expected = encode_video(vae, torch.stack([render(scene) for scene in groups[1]]))
    torch.testing.assert_close(batch["target"][5:], expected[1:], rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(batch["source"][1:], expected[:1], rtol=5e-3, atol=5e-3)


def test_train_batches_are_reproducible_and_pair_scenes_of_one_group(data):
    batches = list(itertools.islice(data.train_dataloader(), 12))
    groups = [{scene.caption for scene in data.list_scenes("train", index)} for index in range(3)]
    for index, batch in enumerate(batches):
        again = data.make_train_batch(index)
        assert torch.equal(batch["target"], again["target"]) and batch["target_prompts"] == again["target_prompts"]
        assert batch["reads"].tolist() == [0, 0, 0, 1, 1, 1] and batch["source"].shape == (2, 3, 8, 16, 16)
        for read, prompt in zip(batch["reads"], batch["target_prompts"], strict=True):
            assert any({batch["source_prompts"][read], prompt} <= group for group in groups)
    assert len({prompt for batch in batches for prompt in batch["source_prompts"]}) > 6


def test_the_share_of_identity_pairs_has_the_very_source_and_that_of_changed_words_no_captions(tiny_model, folder):
    for share in (0.0, 1.0):
        data = make_data(tiny_model, folder, identity=share, changed_words=1.0)
        data.setup("fit")
        for index in range(5):
            batch = data.make_train_batch(index)
            same = [
                torch.equal(one, batch["source"][k]) for one, k in zip(batch["target"], batch["reads"], strict=True)
            ]
            assert same == [bool(share)] * 6
            prompts = zip(batch["target_prompts"], batch["reads"], strict=True)
            assert all((prompt == batch["source_prompts"][k]) == bool(share) for prompt, k in prompts)
            assert all(prompt.startswith("a ") == bool(share) for prompt in batch["target_prompts"])


def test_a_cache_of_another_world_is_refused(tiny_model, folder):
    for options in ({"groups": 4}, {"seed": 1}):
        other = make_data(tiny_model, folder, **options)
        other.prepare_data()
        with pytest.raises(ValueError, match="cache must hold"):
            other.setup("fit")
    for options in ({"groups": 0}, {"identity": 1.5}, {"changed_words": -0.1}, {"targets": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
            make_data(tiny_model, folder, **options)


def test_the_vae_of_the_bundled_model_has_a_name(tmp_path):
    assert ShapesPairs("tiny", str(tmp_path / "latents.safetensors")).vae == str(BUNDLED / "vae")
