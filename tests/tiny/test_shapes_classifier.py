"""The classifier reads pixels and admits what it does not see."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.tiny.shapes import BACKGROUNDS, COLORS, DIRECTIONS, NUM_FRAMES, SIZE, Scene, render, sample_scene
from ddim_lightning.tiny.shapes_classifier import Labels, classify

SCENE = Scene("circle", "red", "blue", "right", radius=13.0, speed=2.5, x=30.0, y=34.0)


def make_scenes(count, seed, *, held_out=False):
    generator = torch.Generator().manual_seed(seed)
    return [sample_scene(generator, held_out=held_out) for _ in range(count)]


def make_blob(scene, sigma):
    """The scene with a Gaussian blob for an object."""
    axis = torch.arange(SIZE) + 0.5
    dx, dy = DIRECTIONS[scene.direction]
    travelled = scene.speed * (torch.arange(NUM_FRAMES) - NUM_FRAMES // 2)
    x, y = (scene.x + dx * travelled)[:, None, None], (scene.y + dy * travelled)[:, None, None]
    weight = torch.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2))[:, None]
    color, background = (
        torch.tensor(rgb, dtype=torch.float32)[:, None, None]
        for rgb in (COLORS[scene.color], BACKGROUNDS[scene.background])
    )
    return (background + weight * (color - background)).round().to(torch.uint8)


def make_labels(scene):
    return Labels(scene.shape, scene.color, scene.background, scene.direction)


@pytest.mark.parametrize("held_out", [False, True])
def test_classifier_reads_real_renders(held_out):
    scenes = make_scenes(120, seed=8, held_out=held_out)
    right = [classify(render(scene)) == make_labels(scene) for scene in scenes]
    assert sum(right) >= 0.97 * len(right)


def test_classifier_reads_the_pixels_under_noise():
    generator = torch.Generator().manual_seed(9)
    right = []
    for scene in make_scenes(60, seed=10):
        noise = 8 * torch.randn(9, 3, 64, 64, generator=generator)
        labels = classify((render(scene) + noise).round().clamp(0, 255).to(torch.uint8))
        right.append(labels == make_labels(scene))
    assert sum(right) >= 0.95 * len(right)


@pytest.mark.parametrize("sigma", [6.0, 8.0, 10.0])
def test_classifier_sees_no_shape_in_blobs(sigma):
    shapes = [classify(make_blob(scene, sigma)).shape for scene in make_scenes(60, seed=11)]
    assert shapes.count(None) >= 0.9 * len(shapes)


def test_classifier_sees_nothing_in_noise():
    generator = torch.Generator().manual_seed(12)
    clips = [torch.randint(0, 256, (9, 3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(20)]
    assert [classify(clip) for clip in clips] == [Labels(None, None, None, None)] * 20


def test_classifier_sees_no_object_and_no_direction_where_there_is_none():
    empty = (
        torch.zeros(9, 3, 64, 64, dtype=torch.uint8)
        + torch.tensor(BACKGROUNDS["teal"], dtype=torch.uint8)[:, None, None]
    )
    assert classify(empty) == Labels(None, None, "teal", None)
    still = render(SCENE)[4:5].repeat(9, 1, 1, 1)
    assert classify(still) == Labels("circle", "red", "blue", None)


def test_classifier_answers_none_for_colours_of_no_name():
    swapped = render(SCENE).flip(1)  # red on blue becomes blue on red: neither palette has it
    assert classify(swapped) == Labels("circle", None, None, "right")


def test_classifier_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"frames must be \(f >= 2, 3, 64, 64\), got \(9, 3, 64, 32\)"):
        classify(torch.zeros(9, 3, 64, 32, dtype=torch.uint8))
