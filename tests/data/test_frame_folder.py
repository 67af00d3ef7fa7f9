from __future__ import annotations

import errno
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ddim_lightning.data.frames import choose_frames
from ddim_lightning.data.mask import read_mask
from ddim_lightning.data.video import read_clip, read_frames, read_info, write_video
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=9, height=32, width=64, multiple=16, temporal=4)


def write_frames(folder, numbers, *, name="{:05d}.png", size=(64, 32)):
    """Write gray images whose level is five times their number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, (5 * number,) * 3).save(folder / name.format(number))
    return folder


def levels(frames):
    return (frames.float().mean((1, 2, 3)) / 5).round().int().tolist()


@pytest.mark.parametrize(
    "name", ["{:05d}.png", "{}.png", "frame-{}.jpg", "take2_{:03d}.JPEG", "f{}_left.bmp", "{}.tif"]
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path, name):
    folder = write_frames(tmp_path / "clip", range(12), name=name)
    info = read_info(folder, fps=12.5)
    assert (info.num_frames, info.fps, info.height, info.width) == (12, Fraction(25, 2), 32, 64)
    assert (info.has_audio, info.duration_s) == (False, 0.96)
    frames, fps, choice = read_clip(folder, limits=LIMITS, start=1, num_frames=5, stride=2, fps=12.5)
    assert levels(frames) == [1, 3, 5, 7, 9]
    assert fps == Fraction(25, 4)
    assert read_clip(folder, limits=LIMITS)[1] == 8
    assert choice.notes == ()
    assert [int(frame.float().mean() / 5 + 0.5) for frame in read_frames(folder, [2, 11])] == [2, 11]


def test_missing_numbers_are_named_and_a_regular_distance_is_none(tmp_path):
    folder = write_frames(tmp_path / "gaps", [0, 1, 2, 4, 5, 9, 10])
    _, _, choice = read_clip(folder, limits=LIMITS)
    assert any("3, 6..8" in sentence for sentence in choice.warnings)
    folder = write_frames(tmp_path / "sampled", range(0, 50, 5))
    frames, _, choice = read_clip(folder, limits=LIMITS)
    assert levels(frames) == list(range(0, 45, 5))
    assert choice.notes == ()


def test_what_is_no_frame_is_named_unless_it_is_no_media(tmp_path):
    folder = write_frames(tmp_path / "clip", range(9))
    for name in ("cover.png", "sound.wav", "notes.txt", "meta.json", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    (note,) = read_clip(folder, limits=LIMITS)[2].notes
    assert "cover.png" in note
    assert "sound.wav" in note
    assert not any(name in note for name in ("notes.txt", "meta.json", "DS_Store", "Thumbs.db", "00003.png"))


def test_mistakes_name_the_files(tmp_path):
    folder = write_frames(tmp_path / "sizes", range(9))
    Image.new("RGB", (64, 48)).save(folder / "00006.png")
    with pytest.raises(ValueError, match=r"00000\.png \(64 x 32\) and 00006\.png \(64 x 48\)"):
        read_clip(folder, limits=LIMITS)
    assert len(read_clip(folder, limits=LIMITS, num_frames=5)[0]) == 5  # not among these
    folder = write_frames(write_frames(tmp_path / "two", range(9), name="a{}.png"), range(7), name="b{}.png")
    with pytest.raises(ValueError, match=r"a\*\.png \(9\), b\*\.png \(7\)"):
        read_info(folder)
    folder = write_frames(write_frames(tmp_path / "twice", range(9)), [3], name="{}.png")
    with pytest.raises(ValueError, match=r"00003\.png"):
        read_info(folder)
    folder = write_frames(tmp_path / "broken", range(9))
    (folder / "00004.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"00004\.png"):
        read_clip(folder, limits=LIMITS)
    folder = write_frames(tmp_path / "short", range(4))
    with pytest.raises(ValueError, match="4 of 4"):
        read_clip(folder, limits=LIMITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        read_info(tmp_path / "empty")
    assert caught.value.errno == errno.EISDIR


def test_frames_are_upright_and_opaque(tmp_path):
    """A photo knows how the camera was held, and a drawing what is transparent."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for number in range(5):
        image = Image.new("RGB", (64, 32), (255, 0, 0))
        image.paste((0, 0, 255), (32, 0, 64, 32))
        image.save(folder / f"{number}.jpg", exif=exif, quality=95)
    assert (read_info(folder).height, read_info(folder).width) == (64, 32)
    frames, _, _ = read_clip(folder, limits=LIMITS, height=64, width=32)
    assert frames[0, :, 8, 16].tolist() == pytest.approx([255, 0, 0], abs=4)
    folder = tmp_path / "drawings"
    folder.mkdir()
    for number in range(5):
        Image.new("RGBA", (64, 32), (200, 100, 50, 0)).save(folder / f"{number}.png")
    frames, _, choice = read_clip(folder, limits=LIMITS)
    assert not frames.any()
    assert any("alpha" in sentence for sentence in choice.warnings)


def test_a_folder_is_a_mask(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_video(clip, torch.zeros(12, 3, 32, 64, dtype=torch.uint8), Fraction(8))
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(12):
        image = np.zeros((16, 48), np.uint8)
        image[:, 4 * number : 4 * number + 4] = 255
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    choice = choose_frames(12, LIMITS, start=3)
    mask = read_mask(folder, read_info(clip), choice, height=32, width=64)
    columns = ((torch.arange(64) + 0.5) * 48 / 64).int() // 4
    assert torch.equal(mask, (columns[None] == torch.arange(3, 12)[:, None])[:, None].expand(9, 32, 64))
    (folder / "0011.png").unlink()
    with pytest.raises(ValueError, match=r"^mask: .* 12, got 11"):
        read_mask(folder, read_info(clip), choice, height=32, width=64)


def test_a_folder_has_no_sound(tmp_path):
    folder = write_frames(tmp_path / "clip", range(5))
    write_video(tmp_path / "out.mp4", read_clip(folder, limits=LIMITS)[0], Fraction(8), audio_from=folder)
    assert not read_info(tmp_path / "out.mp4").has_audio


def test_a_frame_that_is_damaged_or_no_regular_file_is_told(tmp_path):
    folder = tmp_path / "clip"
    for name in ("{}.jpg", "{}.png", "{}.bmp", "{}.tif"):
        frame = write_frames(folder, [3], name=name, size=(640, 320)) / name.format(3)
        content = frame.read_bytes()
        frame.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match=frame.name):
            list(read_frames(folder, [0]))
        frame.unlink()
    os.mkfifo(folder / "3.png")
    with pytest.raises(ValueError, match=r"3\.png must be a regular file"):
        list(read_frames(folder, [0]))
