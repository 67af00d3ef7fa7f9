"""What stands for a clip in a batch is read, or refused by the name of its field."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ddim_lightning.engine.batch_forms import Item
from ddim_lightning.engine.clips import find_id, make_clip
from tests.modules import make_module

VIDEO = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def engine(tiny_model):
    module = make_module(str(tiny_model))
    module.load("cpu")
    return module.engine


def make(engine, value, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make_clip(Item("rank-0-batch-7", value), engine, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_the_frames_they_came_from(dtype, engine):
    """Under half precision Lightning rounds what a batch holds; 256 values survive that."""
    every = torch.arange(256, dtype=torch.uint8).repeat(5 * 3 * 2).view(5, 3, 16, 32)
    clip = make(engine, (every.double() / 255.0).to(dtype))
    assert torch.equal(clip.frames, every)


def test_every_key_is_read(engine):
    mask = torch.zeros(5, 1, 16, 24)
    mask[2] = 1.0
    values = {"frames": VIDEO, "prompt": "a", "source_prompt": "b", "negative_prompt": "c", "name": "d"}
    clip = make(engine, values | {"fps": torch.tensor(29.97), "mask": mask, "seed": torch.tensor(3)})
    assert torch.equal(clip.frames, VIDEO) and clip.mask.dtype == torch.bool
    assert (clip.prompts, clip.source_prompt, clip.negative_prompt) == (("a",), "b", "c")
    assert (clip.id, clip.fps, clip.seed) == ("d", Fraction(2997, 100), 3)
    assert torch.equal(clip.mask, mask[:, 0] > 0)
    picture = make(engine, {"video": VIDEO, "first_frame": VIDEO[1] / 255.0, "num_frames": 5}).first_frame
    assert torch.equal(picture, VIDEO[1])
    plain = make(engine, {"video": VIDEO, "prompts": None, "mask": None})
    assert (plain.id, plain.prompts, plain.fps, plain.mask) == ("rank-0-batch-7", (), Fraction(8), None)


def test_a_number_of_frames_is_that_of_the_frames(engine):
    with pytest.raises(ValueError, match=r"^num_frames: must .* 5, got 9"):
        make(engine, {"video": VIDEO, "num_frames": 9})


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"id": 7, "path": "x"}, "7"), ({"path": Path("clips/a fox.mp4")}, "a fox"), ({"name": torch.tensor(4)}, "4")],
)
def test_ids(values, expected):
    assert find_id(Item("batch", values)) == expected


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"video": VIDEO.transpose(0, 1)}, ValueError, r"video: .*\(3, 5, 16, 24\), whose first axis"),
        ({"video": VIDEO.permute(0, 2, 3, 1)}, ValueError, r"video: .*whose last axis"),
        ({"video": VIDEO[:, :1]}, ValueError, r"video: .*got \(5, 1, 16, 24\)$"),
        ({"video": VIDEO / 127.5 - 1.0}, ValueError, r"video: floats must lie in 0 .. 1, got -1 .. 1; "),
        ({"video": VIDEO.float()}, ValueError, r"video: floats must lie in 0 .. 1, got 0 .. 255$"),
        ({"video": VIDEO * torch.nan}, ValueError, "video: floats must lie"),
        ({"video": VIDEO.long()}, TypeError, "video: must be uint8 .*int64"),
        ({"video": "clip.mp4"}, TypeError, "video: must be a Tensor, got str"),
        ({"video": VIDEO, "frames": VIDEO}, ValueError, "video: must be unset beside frames"),
        ({"video": VIDEO, "prompt": "a", "prompts": ["a"]}, ValueError, "prompt: must be unset beside prompts"),
        ({"video": VIDEO, "prompt": 7}, TypeError, "prompts: "),
        ({"video": VIDEO, "fps": 0}, ValueError, "fps: .*got 0"),
        ({"video": VIDEO, "fps": "8"}, TypeError, "fps: must be a number, got str"),
        ({"video": VIDEO, "seed": True}, TypeError, "seed: must be a number, got bool"),
        ({"video": VIDEO, "seed": 0.5}, TypeError, "seed: must be int"),
        ({"video": VIDEO, "id": 0.5}, TypeError, "id: must be text or an integer, got float"),
        ({"video": VIDEO, "mask": torch.full((5, 16, 24), 255)}, ValueError, "mask: .*got a value of 255"),
        ({"video": VIDEO, "mask": "white"}, TypeError, "mask: must be Tensor"),
        ({"latents": torch.zeros(8, 2, 4, 6)}, ValueError, "latents: .*whose axis 1 has the channels"),
        ({"latents": torch.zeros(2, 8, 4, 6, dtype=torch.int64)}, ValueError, "latents: must be floats"),
        ({"video": VIDEO, "guidance_scale": 3.0}, TypeError, "guidance_scale: is an option of the module"),
        ({"caption": "a"}, TypeError, "batch: must be a Clip, .*dict of caption"),
    ],
)
def test_what_will_not_do_is_named(values, error, said, engine):
    with pytest.raises(error, match=f"^{said}"):
        make(engine, values, options={"guidance_scale", "seed"})


def test_scalars_of_a_table_are_numbers(engine):
    row = {"id": np.int64(7), "seed": np.int64(3), "fps": np.float32(12.5)}
    clip = make(engine, {"video": VIDEO, **row})
    assert (clip.id, clip.seed, clip.fps) == ("7", 3, Fraction(25, 2))


def test_what_has_no_effect_is_named(engine):
    """Where a clip comes from is no option of the module, though that has a source, too; None is a missing key."""
    values = {"video": VIDEO, "index": 3, "id": "a", "path": "a.mp4", "source": "camera", 5: None, "lora": None}
    with pytest.warns(UserWarning, match="index, path, source has no effect") as told:
        make_clip(Item("batch", values), engine, options={"source", "lora"})
    assert len(told) == 1
