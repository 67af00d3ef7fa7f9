"""Batches are taken apart: what belongs to which clip, and what cannot be told."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import default_collate

from ddim_lightning import Clip
from ddim_lightning.engine.batch_forms import is_one_clip, split_batch

VIDEO = torch.zeros(5, 3, 16, 24, dtype=torch.uint8)


def split(batch):
    return [item.value for item in split_batch(batch, "batch")]


def split_prompts(prompts, size, key="prompts"):
    return [value[key] for value in split({"video": VIDEO.expand(size, *VIDEO.shape), key: prompts})]


@pytest.mark.parametrize("key", ["prompt", "prompts"])
@pytest.mark.parametrize(
    ("prompts", "size", "expected"),
    [
        ("a", 2, ["a", "a"]),
        (["a", "b"], 2, ["a", "b"]),
        ([["a", "b"], ["c"]], 2, [["a", "b"], ["c"]]),
        (["a", "b"], 1, [["a", "b"]]),
        # As torch collates two samples with three prompts each, and one sample with two.
        (default_collate([["a", "b", "c"], ["d", "e", "f"]]), 2, [("a", "b", "c"), ("d", "e", "f")]),
        (default_collate([["a", "b"]]), 1, [("a", "b")]),
    ],
)
def test_prompts_find_their_clips(prompts, size, expected, key):
    assert split_prompts(prompts, size, key) == expected


@pytest.mark.parametrize("prompts", [[("a", "b"), ("c", "d")], ["a", "b", "c"], [["a"]]])
def test_prompts_that_could_belong_to_any_clip_are_refused(prompts):
    (error,) = split({"video": VIDEO.expand(2, *VIDEO.shape), "prompts": prompts})
    assert isinstance(error, ValueError) and str(error).startswith("prompts: ")


def test_values_are_shared_or_handed_out():
    batch = {
        "frames": [VIDEO, VIDEO],
        "latents": None,
        "id": torch.tensor([3, 4]),
        "fps": 8.0,
        "seed": [1, 2],
        "index": [7],
    }
    first, second = split(batch)
    assert (int(first["id"]), int(second["id"])) == (3, 4)
    assert (first["fps"], second["fps"], first["seed"], second["seed"]) == (8.0, 8.0, 1, 2)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"id": "a"}, "id"),
        ({"fps": [8.0]}, "fps"),
        ({"mask": torch.ones(5, 16, 24)}, "mask"),
        ({"latents": torch.zeros(2, 8, 4, 6)}, "batch"),
    ],
)
def test_columns_of_another_length_are_refused(fields, name):
    (error,) = split({"video": torch.stack([VIDEO, VIDEO]), **fields})
    assert isinstance(error, ValueError) and str(error).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("batch", "one", "count"),
    [
        (Clip("a", VIDEO), True, 1),
        ({"video": VIDEO}, True, 1),
        ({"video": VIDEO, "latents": torch.zeros(1, 2, 8, 4, 6)}, True, 1),
        ({"video": VIDEO[None], "latents": torch.zeros(1, 2, 8, 4, 6)}, False, 1),
        ((VIDEO, "a"), True, 1),
        ((VIDEO, ["a", "b"]), True, 1),
        (VIDEO[None], False, 1),
        ([VIDEO], False, 1),
        ([VIDEO, VIDEO], False, 2),
        ([VIDEO[None].repeat(3, 1, 1, 1, 1), (VIDEO, "a"), Clip("a", VIDEO)], False, 5),
        ([], False, 1),
        ("clip.mp4", True, 1),
    ],
)
def test_a_list_or_a_batch_axis_is_several_clips(batch, one, count):
    items = split_batch(batch, "batch")
    assert (is_one_clip(batch), len(items)) == (one, count)
    assert len({item.name for item in items}) == count


@pytest.mark.parametrize(
    ("names", "expected"),
    [({"name": ["a", "b"]}, ["a", "b"]), ({"path": ["x/a.mp4", "b.mp4"]}, ["a", "b"]), ({}, ["batch"])],
)
def test_what_cannot_be_taken_apart_is_told_of_each_clip_that_has_a_name(names, expected):
    batch = {"video": VIDEO.expand(2, *VIDEO.shape), "prompts": [("a", "b"), ("c", "d")], **names}
    items = split_batch(batch, "batch")
    assert [item.name for item in items] == expected
    assert all("two ways" in str(item.value) for item in items)
