from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from ddim_lightning.data.dataset import ShardSampler, VideoDataset
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Clip, FrameSelection, UnreadableClip
from tests.data.messages import make_pattern

LIMITS = VideoLimits(num_frames=9, height=32, width=48, multiple=16, temporal=4)


def test_a_clip_carries_what_was_asked_for(carphone):
    request = ClipRequest(carphone, "phone", ("a robot", "a bear"), "a man", "blur", start=20, num_frames=5, seed=7)
    clip = VideoDataset([request], limits=LIMITS, stride=2, height=64, fit="pad")[0]
    frames = clip.frames
    clip.frames = torch.zeros(0)
    assert clip == Clip(
        id="phone",
        frames=clip.frames,
        fps=Fraction(15000, 1001),
        prompts=("a robot", "a bear"),
        source_prompt="a man",
        negative_prompt="blur",
        seed=7,
        selection=FrameSelection(start=20, stride=2, count=5, dropped=90),
        source=str(carphone),
        warnings=("frames 30..119 of 120 were not used (num_frames=5)",),
    )
    wanted, _, _ = read_clip(carphone, limits=LIMITS, start=20, num_frames=5, stride=2, height=64, fit="pad")
    assert frames.shape == (5, 3, 64, 48)
    assert torch.equal(frames, wanted)


def test_a_bad_file_does_not_stop_its_neighbors(tmp_path, carphone):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    requests = [
        ClipRequest(text, "text", ("a robot",)),
        ClipRequest(carphone, "late", start=118),
        ClipRequest(tmp_path / "gone.mp4", "gone"),
        ClipRequest(carphone, "good"),
    ]
    dataset = VideoDataset(requests, limits=LIMITS)
    *bad, good = (dataset[i] for i in range(len(dataset)))
    reasons = (
        f"{text} … not a video",
        f"{carphone}: too few frames: 2 of 120 … start=118",
        f"…{tmp_path / 'gone.mp4'}",
    )
    names = (("text", text, ("a robot",)), ("late", carphone, ()), ("gone", tmp_path / "gone.mp4", ()))
    for clip, reason, (name, source, prompts) in zip(bad, reasons, names, strict=True):
        assert re.match(make_pattern(reason), clip.reason)
        assert clip == UnreadableClip(name, str(source), clip.reason, prompts)
    assert isinstance(good, Clip)
    assert good.frames.shape == (9, 3, 32, 48)


def test_a_mask_is_cut_as_its_clip_and_a_bad_one_makes_a_bad_clip(tmp_path, carphone):
    for name, box in {"right": (100, 0, 176, 144), "edge": (0, 0, 176, 6), "none": (0, 0, 0, 0)}.items():
        image = Image.new("L", (176, 144))
        image.paste(255, box)
        image.save(tmp_path / f"{name}.png")
    requests = [ClipRequest(carphone, name, mask=tmp_path / f"{name}.png") for name in ("right", "edge", "none")]
    right, edge, none = VideoDataset(requests, limits=LIMITS)
    assert isinstance(right, Clip)
    assert right.mask.shape == right.frames[:, 0].shape
    # column 100 of 176, of 48
    assert not right.mask[:, :, :27].any()
    assert right.mask[:, :, 28:].all()
    for bad, name in ((edge, "edge"), (none, "none")):  # a crop cuts the upper edge away
        assert re.match(make_pattern(f"mask: {tmp_path}/{name}.png … white … 32 x 48 … got black"), bad.reason)
        assert bad == UnreadableClip(name, str(carphone), bad.reason)
    assert VideoDataset([ClipRequest(carphone, "all")], limits=LIMITS)[0].mask is None


def test_a_reason_is_one_line_whatever_the_file_is_called(tmp_path):
    path = tmp_path / "two\nlines.mp4"
    path.touch()
    clip = VideoDataset([ClipRequest(path, "two")], limits=LIMITS)[0]
    assert isinstance(clip, UnreadableClip)
    assert re.match(make_pattern(f"{tmp_path}/two lines.mp4 … empty"), clip.reason) and "\n" not in clip.reason
    assert clip.source == str(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100}, "^width .*multiple of 16.*got 100"),
        ({"stride": 0}, "^stride .*>= 1.*got 0"),
    ],
)
def test_wrong_settings_are_raised_before_a_file_is_opened(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        VideoDataset([ClipRequest(tmp_path / "gone.mp4", "gone")], limits=LIMITS, **settings)


@pytest.mark.parametrize(("origin", "prefix"), [("", ""), ("clips.csv row 3", "clips.csv row 3: ")])
def test_a_wrong_count_names_its_row(tmp_path, origin, prefix):
    requests = [ClipRequest(tmp_path / "gone.mp4", "gone", num_frames=8, origin=origin)]
    with pytest.raises(ValueError, match=rf"^{prefix}num_frames .*4k \+ 1.*got 8"):
        VideoDataset(requests, limits=LIMITS)


@pytest.mark.parametrize(("clips", "world"), [(5, 2), (1, 2), (7, 3), (6, 3), (4, 1), (2, 5)])
def test_shards_cover_everything_once_in_order(clips, world):
    dataset = VideoDataset([ClipRequest()] * clips, limits=LIMITS)
    shards = [ShardSampler(dataset, rank, world) for rank in range(world)]
    assert all(isinstance(shard, DistributedSampler) for shard in shards)  # what makes Lightning leave it alone
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]
    assert sorted(index for shard in shards for index in shard) == list(range(clips))
    assert all(list(shard) == sorted(shard) for shard in shards)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_what_is_lost_in_space_and_color_travels_with_the_clip(tmp_path, carphone):
    tall = tmp_path / "tall"
    tall.mkdir()
    for number in range(9):
        Image.new("RGBA", (36, 64), (200, 100, 50, 128)).save(tall / f"{number}.png")
    dataset = VideoDataset([ClipRequest(tall, "tall", fps=12.5), ClipRequest(tall, "rate")], limits=LIMITS)
    clip = dataset[0]
    assert clip.fps == Fraction(25, 2)
    assert clip.selection.cropped == pytest.approx(1 - 24 / 64)
    assert any("62%" in sentence for sentence in clip.warnings)
    assert any("alpha" in sentence for sentence in clip.warnings)
    assert dataset[1].fps == 8
    padded = VideoDataset([ClipRequest(tall, "tall")], limits=LIMITS, fit="pad")[0]
    assert padded.selection.cropped == 0
    assert not any("picture" in sentence for sentence in padded.warnings)
