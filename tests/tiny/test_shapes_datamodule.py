"""Clips of the world of shapes: reproducible by index, resumable, and never held out where they train."""

from __future__ import annotations

import itertools

import pytest
import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.tiny.shapes import edit, mask, render, sample_scene
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule, sample_crop
from ddim_lightning.types import Clip


def test_a_sample_depends_on_seed_split_and_index_alone():
    first = sample_scene(make_generator(3, "train", 5))
    sample_scene(make_generator(3, "train", 6))
    assert sample_scene(make_generator(3, "train", 5)) == first
    others = [make_generator(4, "train", 5), make_generator(3, "val", 5), make_generator(3, "train", 6)]
    assert all(sample_scene(generator) != first for generator in others)


def test_train_batches_are_crops_and_every_third_is_whole():
    batches = itertools.islice(ShapesDataModule(batch_size=8, crop=32, full_every=3).train_dataloader(), 5)
    shapes = [(tuple(batch["frames"].shape), len(batch["prompts"])) for batch in batches]
    whole, crops = ((2, 9, 3, 64, 64), 2), ((8, 9, 3, 32, 32), 8)
    assert shapes == [whole, crops, crops, whole, crops]


def test_train_stream_is_the_same_twice_and_workers_do_not_change_it():
    streams = [
        itertools.islice(ShapesDataModule(batch_size=2, num_workers=workers).train_dataloader(), 4)
        for workers in (0, 0, 2)
    ]
    for one, two, three in zip(*streams, strict=True):
        assert torch.equal(one["frames"], two["frames"]) and torch.equal(one["frames"], three["frames"])
        assert one["prompts"] == two["prompts"] == three["prompts"]


def test_crops_are_aligned_windows_that_the_object_passes_through():
    for i in range(30):
        generator = make_generator(0, "crops", i)
        scene = sample_scene(generator)
        frames, seen = render(scene), mask(scene).any(0)
        crop = sample_crop(scene, frames, 24, generator)
        windows = [
            (top, left)
            for top, left in itertools.product(range(0, 41, 8), repeat=2)
            if torch.equal(frames[..., top : top + 24, left : left + 24], crop)
        ]
        assert windows
        assert any(bool(seen[top : top + 24, left : left + 24].any()) for top, left in windows)


def test_validation_is_fixed_and_whole():
    one, two = (list(ShapesDataModule(val_clips=11).val_dataloader()) for _ in range(2))
    assert [tuple(batch["frames"].shape) for batch in one] == [(8, 9, 3, 64, 64), (3, 9, 3, 64, 64)]
    assert all(torch.equal(a["frames"], b["frames"]) for a, b in zip(one, two, strict=True))


def test_predicted_clips_carry_their_edits_as_prompts_and_the_truth_behind_them():
    data = ShapesDataModule(predict_clips=5, edits=("color", "shape+direction"))
    clips = list(data.predict_dataloader())
    assert [clip.id for clip in clips] == [f"shapes-{i:03d}" for i in range(5)]
    for clip, (scene, wanted) in zip(clips, data.predict_scenes(), strict=True):
        assert isinstance(clip, Clip)
        assert torch.equal(clip.frames, render(scene))
        assert clip.source_prompt == scene.caption
        recoloured, reshaped = wanted
        assert clip.prompts == (recoloured.caption, reshaped.caption)
        assert recoloured == edit(scene, color=recoloured.color) != scene
        assert reshaped == edit(scene, shape=reshaped.shape, direction=reshaped.direction)
        assert not (scene.held_out or recoloured.held_out or reshaped.held_out)
        assert classify(render(reshaped)).shape == reshaped.shape


def test_a_crop_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="crop must be a multiple of 8 up to 64, got 30"):
        ShapesDataModule(crop=30)


def test_an_unknown_edit_is_refused():
    with pytest.raises(ValueError, match="edits must be of shape, color, background, direction, got size"):
        ShapesDataModule(edits=("color+size",))
