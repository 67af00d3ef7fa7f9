from __future__ import annotations

import random
from pathlib import Path

import pytest

from ddim_lightning.data.examples import CaptionedClip, Example
from ddim_lightning.data.splits import divide


def example(name, *, source=None, split=None, root="/data"):
    one = None if source is None else CaptionedClip(Path(root, source))
    return Example(CaptionedClip(Path(root, name)), one, split, f"row of {name}")


def names(examples):
    return [one.clip.video.name for one in examples]


def test_a_share_is_drawn_whatever_the_order_and_the_place():
    clips = [example(f"{i}.mp4") for i in range(40)]
    divided = divide(clips, val_share=0.25, seed=3)
    assert len(divided["val"]) == 10
    assert sorted(names(divided["train"]) + names(divided["val"])) == sorted(names(clips))
    random.Random(0).shuffle(clips)
    assert set(names(divide(clips, val_share=0.25, seed=3)["val"])) == set(names(divided["val"]))
    moved = divide([example(f"{i}.mp4", root="/else/where") for i in range(40)], val_share=0.25, seed=3)
    assert names(moved["val"]) == names(divided["val"])
    assert set(names(divide(clips, val_share=0.25, seed=4)["val"])) != set(names(divided["val"]))
    assert len(divide(clips, val_share=0.001)["val"]) == 1


def test_examples_that_share_a_clip_stay_together():
    # A removal's target is the source of an addition, as in a set that uses its pairs in both directions.
    pairs = [example(f"e{i}-{k}", source=f"s{i}") for i in range(30) for k in range(3)]
    pairs += [example(f"s{i}", source=f"e{i}-0") for i in range(30)]
    divided = divide(pairs, val_share=0.2)
    sides = [{video for one in divided[split] for video in one.videos} for split in ("train", "val")]
    assert sides[1] and not sides[0] & sides[1]
    assert len(divided["val"]) == 24


def test_rows_or_a_second_table_name_what_validates():
    divided = divide([example("a"), example("b", split="val"), example("c", split="train")])
    assert (names(divided["train"]), names(divided["val"])) == (["a", "c"], ["b"])
    assert names(divide([example("a")], [example("b")])["val"]) == ["b"]


@pytest.mark.parametrize(
    ("examples", "options", "named"),
    [
        ([example("a"), example("a", split="val")], {}, "row of a: .*trains, too"),
        ([example("a")], {"val": [example("a")]}, "row of a: .*trains, too"),
        ([example("a", split="val"), example("b")], {"val_share": 0.5}, "val_share: .*got 0.5"),
        ([example("a")], {"val_share": 0.5, "val": [example("b")]}, "val_share: .*got 0.5"),
        ([example("a", split="val"), example("b")], {"val": [example("c")]}, "must not name splits"),
        ([example("a")], {"val_share": 0.5}, "all of 1 examples validate"),
    ],
)
def test_no_clip_does_both(examples, options, named):
    with pytest.raises(ValueError, match=named):
        divide(examples, **options)
