"""The world of shapes: exact truths, and a classifier that reads pixels and admits what it does not see."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.tiny.shapes import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    HELD_OUT_COLOR,
    HELD_OUT_PAIRS,
    NUM_FRAMES,
    SHAPES,
    VOCABULARY,
    WORDS,
    Scene,
    edit,
    mask,
    render,
    sample_edit,
    sample_scene,
)

SCENE = Scene("circle", "red", "blue", "right", radius=13.0, speed=2.5, x=30.0, y=34.0)


def make_scenes(count, seed, *, held_out=False):
    generator = torch.Generator().manual_seed(seed)
    return [sample_scene(generator, held_out=held_out) for _ in range(count)]


def test_world_is_rich_enough():
    trained = [color for color in COLORS if color != HELD_OUT_COLOR]
    assert len(SHAPES) >= 4 and len(trained) >= 6 and len(DIRECTIONS) == 4 and len(BACKGROUNDS) >= 6
    assert {color for color, _ in HELD_OUT_PAIRS} <= set(trained)
    assert {shape for _, shape in HELD_OUT_PAIRS} <= set(SHAPES)


def test_caption_reads_as_english_and_vocabulary_covers_it():
    assert SCENE.caption == "a red circle moving right on a blue background"
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 4 + 4 + 7 + 6 + 4
    for scene in make_scenes(50, seed=1):
        assert set(scene.caption.split()) <= set(VOCABULARY)


def test_unknown_word_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"shape must be one of circle, square, triangle, cross, got 'star'"):
        edit(SCENE, shape="star")


def test_render_shows_the_colours_and_the_object_where_the_parameters_say():
    frames = render(SCENE)
    assert frames.shape == (9, 3, 64, 64) and frames.dtype == torch.uint8
    for f in range(NUM_FRAMES):
        x = 30.0 + 2.5 * (f - 4)
        assert tuple(frames[f, :, 34, int(x)].tolist()) == COLORS["red"]
        assert tuple(frames[f, :, 2, 60].tolist()) == BACKGROUNDS["blue"]
    area = mask(SCENE).sum((1, 2)).float()
    torch.testing.assert_close(area, torch.full_like(area, torch.pi * (0.95 * 13) ** 2), rtol=0.02, atol=0)


def test_shade_brightens_along_its_axis_only():
    frames = render(Scene("square", "white", "gray", "up", 12.0, 2.0, 32.0, 32.0, shade_x=12.0, shade_y=-6.0))
    assert int(frames[0, 0, 2, 63]) - int(frames[0, 0, 2, 0]) == pytest.approx(12, abs=1)  # rounded to gray levels
    assert int(frames[0, 0, 63, 2]) - int(frames[0, 0, 0, 2]) == pytest.approx(-6, abs=1)


@pytest.mark.parametrize(("word", "axis", "sign"), [("right", 2, 1), ("left", 2, -1), ("down", 1, 1), ("up", 1, -1)])
def test_direction_moves_the_mask_along_its_axis(word, axis, sign):
    where = [mask(edit(SCENE, direction=word))[f].nonzero().float().mean(0) for f in (0, 8)]
    moved = (where[1] - where[0])[axis - 1]
    assert float(moved) == pytest.approx(sign * 8 * 2.5, abs=0.3)
    assert float((where[1] - where[0])[2 - axis]) == pytest.approx(0, abs=0.01)


def test_samples_stay_in_the_frame_whatever_their_direction():
    for scene in make_scenes(60, seed=2):
        for direction in DIRECTIONS:
            seen = mask(edit(scene, direction=direction))
            assert not (seen[:, 0].any() or seen[:, -1].any() or seen[:, :, 0].any() or seen[:, :, -1].any())


def test_samples_are_reproducible_and_cover_all_words_trained_on():
    scenes = make_scenes(300, seed=3)
    assert scenes == make_scenes(300, seed=3)
    assert scenes != make_scenes(300, seed=4)
    seen = {(scene.color, scene.shape) for scene in scenes}
    trained = {(c, s) for c in COLORS for s in SHAPES if c != HELD_OUT_COLOR and (c, s) not in HELD_OUT_PAIRS}
    assert seen == trained
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.direction for scene in scenes} == set(DIRECTIONS)


def test_held_out_samples_are_those_never_trained_on():
    scenes = make_scenes(100, seed=5, held_out=True)
    assert all(scene.color == HELD_OUT_COLOR or (scene.color, scene.shape) in HELD_OUT_PAIRS for scene in scenes)
    assert {scene.color for scene in scenes} == {HELD_OUT_COLOR, *(color for color, _ in HELD_OUT_PAIRS)}


def test_edit_changes_what_it_names_and_nothing_else():
    source = render(SCENE)
    outside = ~mask(SCENE)
    recoloured = render(edit(SCENE, color="yellow"))
    far = outside & ~torch.nn.functional.max_pool2d(mask(SCENE).float(), 3, 1, 1).bool()
    assert torch.equal(source.permute(0, 2, 3, 1)[far], recoloured.permute(0, 2, 3, 1)[far])
    assert torch.equal(mask(edit(SCENE, color="yellow", background="teal")), mask(SCENE))
    assert edit(SCENE) == SCENE


def test_direction_edit_keeps_the_middle_frame():
    for direction in ("left", "up", "down"):
        frames = render(edit(SCENE, direction=direction))
        assert torch.equal(frames[NUM_FRAMES // 2], render(SCENE)[NUM_FRAMES // 2])
        assert not torch.equal(frames[0], render(SCENE)[0])


def test_sampled_edit_changes_every_named_word_and_stays_in_the_trained_world():
    generator = torch.Generator().manual_seed(6)
    for scene in make_scenes(60, seed=7):
        edited = sample_edit(scene, ("shape", "direction"), generator)
        assert edited.shape != scene.shape and edited.direction != scene.direction
        assert (edited.color, edited.background, edited.x) == (scene.color, scene.background, scene.x)
        assert not edited.held_out


def test_words_are_the_fields_of_a_scene():
    for name, words in WORDS.items():
        assert getattr(SCENE, name) in words
