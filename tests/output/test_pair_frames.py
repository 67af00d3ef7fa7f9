"""Frames of two videos and a mask are read together."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ddim_lightning.output.pair_frames import FrameRule, read_pieces
from tests.output.pictures import make_frames, write_frames


def read_all(*arguments, **options):
    pieces = list(read_pieces(*arguments, **options))
    masks = [piece.mask for piece in pieces if piece.mask is not None]
    return (
        torch.cat([piece.video for piece in pieces]),
        torch.cat([piece.reference for piece in pieces]),
        torch.cat(masks) if masks else None,
        [len(piece.video) for piece in pieces],
    )


def test_frames_come_a_few_at_a_time_in_order(tmp_path):
    frames, others = make_frames(0, f=19), make_frames(1, f=19)
    paths = [write_frames(tmp_path / name, one) for name, one in (("a", frames), ("b", others))]
    video, reference, mask, lengths = read_all(*paths)
    assert torch.equal(reference, frames) and torch.equal(video, others) and mask is None
    assert lengths == [8, 8, 3]


def test_masks_by_frame_or_one_for_all(tmp_path):
    frames = make_frames(0)
    a, b = (write_frames(tmp_path / name, frames) for name in "ab")
    masks = torch.rand(4, 24, 32, generator=torch.Generator().manual_seed(2)) > 0.5
    moving = write_frames(tmp_path / "masks", masks)
    assert torch.equal(read_all(a, b, moving)[2], masks)
    assert torch.equal(read_all(a, b, moving / "00002.png")[2], masks[2:3].expand(4, -1, -1))
    assert torch.equal(read_all(a, b, moving, FrameRule(stride=3))[2], masks[::3])


def test_numbers_of_frames_must_agree_unless_the_first_are_taken(tmp_path):
    frames = make_frames(0, f=5)
    a, b = write_frames(tmp_path / "a", frames), write_frames(tmp_path / "b", frames[:4])
    with pytest.raises(ValueError, match=r"5 frames of .*a and 4 frames of .*b"):
        read_all(a, b)
    assert torch.equal(read_all(a, b, rule=FrameRule(num_frames=4))[1], frames[:4])
    assert torch.equal(read_all(a, b, rule=FrameRule(num_frames=4, stride=2))[0], frames[[0, 2]])
    with pytest.raises(ValueError, match=r"num_frames: must be at most 4, .*b, got 5"):
        read_all(a, b, rule=FrameRule(num_frames=5))
    with pytest.raises(ValueError, match=r"masks: .* 4 or 5 frames as the videos, got 3"):
        read_all(a, b, write_frames(tmp_path / "masks", frames[:3, 0] > 100), FrameRule(num_frames=4))


def test_sizes_must_agree_unless_the_reference_is_fitted(tmp_path):
    frames = make_frames(0, h=24, w=32)
    a, b = write_frames(tmp_path / "a", frames.repeat(1, 1, 2, 2)), write_frames(tmp_path / "b", frames)
    with pytest.raises(ValueError, match=r"64 x 48 pixels of .*a and 32 x 24 pixels of .*b; fit"):
        read_all(a, b)
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[:24, :32] = True
    Image.fromarray(mask.numpy()).convert("L").save(tmp_path / "mask.png")
    video, reference, fitted, _ = read_all(a, b, tmp_path / "mask.png", FrameRule(fit="stretch"))
    assert torch.equal(video, frames) and reference.shape == frames.shape
    assert fitted[0].sum() == 12 * 16 and fitted[0, :12, :16].all()
    Image.new("L", (10, 10)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="masks: must have 32 x 24 pixels as the video, got 10 x 10"):
        read_all(a, b, tmp_path / "mask.png", FrameRule(fit="stretch"))
