"""Batches of an epoch: each of one bucket, all clips once, the same under any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddim_lightning.data.batches import Batches, CaptionedBatches, PairBatches, ReadyExample
from ddim_lightning.data.bucket_sampler import BucketSampler
from ddim_lightning.data.clip_frames import ClipFrames
from ddim_lightning.data.examples import CaptionedClip, Example

SIZES = [(9, 32, 48)] * 7 + [(9, 48, 32)] * 4


def make_data(seed=0):
    examples = [
        ReadyExample(Example(CaptionedClip(Path(f"{i}"), f"{i}")), size, (ClipFrames(Path(f"{i}"), size),))
        for i, size in enumerate(SIZES)
    ]
    return CaptionedBatches(examples, Batches(seed=seed))


def list_epoch(epoch=0, *, data=None, rank=0, world=1, done=0, batch_size=2):
    sampler = BucketSampler(data or make_data(), batch_size, rank=rank, world=world, get_done=lambda: done)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_has_every_clip_once_and_a_batch_one_bucket():
    for epoch in range(3):
        keys = list_epoch(epoch)
        assert sorted(item for key in keys for item in key.items) == list(range(11))
        assert all(len({SIZES[item] for item in key.items}) == 1 for key in keys)
        assert [len(key.items) for key in keys].count(1) == 1  # 7 and 4 clips in batches of 2
    assert list_epoch(0) == list_epoch(0)
    assert list_epoch(0) != list_epoch(1)
    assert list_epoch(0) != list_epoch(0, data=make_data(seed=1))


def test_processes_share_the_batches_of_one():
    alone = list_epoch(5)
    one, two = (list_epoch(5, rank=rank, world=2) for rank in range(2))
    assert [key for both in zip(one, two, strict=True) for key in both] == alone
    first, second, third, fourth = (list_epoch(5, rank=rank, world=4) for rank in range(4))
    assert [*first, *second, *third, *fourth] == alone[:4]  # each the same number; the others have to wait
    assert list_epoch(5, rank=1, world=2, done=2) == two[2:]
    with pytest.raises(ValueError, match=r"^batch_size: .* 7 processes, got 2 and 11"):
        list_epoch(world=7)


def test_validation_is_whole_and_in_order_and_draws_nothing():
    keys = list(BucketSampler(make_data(), 2))
    assert [item for key in keys for item in key.items] == list(range(11))
    assert {key.draw for key in keys} == {None}
    shares = [list(BucketSampler(make_data(), 2, rank=rank, world=4)) for rank in range(4)]
    assert [len(share) for share in shares] == [2] * 4
    assert {key for share in shares for key in share} == set(keys)


def test_the_targets_of_a_source_are_one_item_of_a_bucket():
    source, other = CaptionedClip(Path("s")), CaptionedClip(Path("o"))
    examples = [
        ReadyExample(Example(CaptionedClip(Path(f"{i}")), one), size, ())
        for i, (one, size) in enumerate(
            [(source, SIZES[0]), (other, SIZES[0]), (source, SIZES[0]), (source, SIZES[-1])]
        )
    ]
    items = PairBatches(examples, Batches(), targets=2).items
    assert [[one.example.clip.video.name for one in item] for item in items] == [["0", "2"], ["1"], ["3"]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"val_share": 1.0}, "val_share"),
        ({"on_error": "stop"}, "on_error"),
        ({"vae": "vae"}, "vae"),
    ],
)
def test_options_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        Batches(**options)
