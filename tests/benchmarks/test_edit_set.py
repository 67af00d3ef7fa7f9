"""The set of edits: fixed, split in two, and of trained words."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.edit_set import KINDS, make_edit_set
from ddim_lightning.tiny.shapes import WORDS, render


def test_it_is_fixed():
    edits = [*make_edit_set("dev", 80), *make_edit_set("test", 80)]
    captions = "\n".join(f"{edit.id}: {edit.source.caption} -> {edit.target.caption}" for edit in edits)
    assert captions.splitlines()[82] == (
        "test-both-00: a cyan square moving down on a brown background -> "
        "a magenta cross moving down on a brown background"
    )
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "337882aa73e4b0e2"
    assert edits[82].source.radius == pytest.approx(13.736646975043739, abs=1e-9)


def test_every_kind_has_16_and_the_kinds_take_turns():
    edits = make_edit_set("test", 80)
    assert Counter(edit.kind for edit in edits) == dict.fromkeys(KINDS, 16)
    assert [edit.kind for edit in edits[5:10]] == list(KINDS)
    assert make_edit_set("test", 7) == edits[:7]


def test_splits_share_no_scene():
    scenes = {
        split: {edit.source for edit in make_edit_set(split, 80)} | {edit.target for edit in make_edit_set(split, 80)}
        for split in ("dev", "test")
    }
    assert not scenes["dev"] & scenes["test"]
    assert len(scenes["dev"]) == len(scenes["test"]) == 160


def test_an_edit_changes_its_words_alone_and_is_of_trained_combinations():
    for edit in make_edit_set("dev", 80):
        assert not edit.source.held_out and not edit.target.held_out
        assert {word for word in WORDS if getattr(edit.source, word) != getattr(edit.target, word)} == set(edit.changed)
        assert set(edit.changed) | set(edit.kept) == set(WORDS)
        assert replace(edit.target, **{word: getattr(edit.source, word) for word in edit.changed}) == edit.source


def test_directions_keep_the_middle_frame():
    edit = make_edit_set("test", 5)[4]
    assert edit.kind == "direction"
    same = [torch.equal(*frames) for frames in zip(render(edit.source), edit.truth, strict=True)]
    assert same == [i == 4 for i in range(9)]


def test_what_there_is_not():
    with pytest.raises(ValueError, match="split: must be one of dev, test, got 'train'"):
        make_edit_set("train", 5)
    with pytest.raises(ValueError, match="count: must be at least 1, got 0"):
        make_edit_set("dev", 0)
