from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ddim_lightning.data.listing import find_videos, name_some
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits
from tests.data.test_frame_folder import write_frames

LIMITS = VideoLimits(num_frames=9, height=48, width=64, multiple=16, temporal=4)


def find(path):
    """The names of the clips in a folder or behind a glob, and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        names = [request.video.name for request in find_clips(path, ClipRequest())]
    return names, [str(warning.message) for warning in told]


def fill(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_of_videos_names_what_it_leaves_out(tmp_path):
    folder = fill(tmp_path / "clips", "b.mp4", "a.MXF", "c.qt", "d.vob", "list.txt", "meta.json", "x.csv", ".b.mp4")
    assert find(folder) == (["a.MXF", "b.mp4", "c.qt", "d.vob"], [])
    fill(folder, "song.wav", "e.webp", "f.braw", "0001.png")
    (folder / "more").mkdir()
    names, (told,) = find(folder)
    assert names == ["a.MXF", "b.mp4", "c.qt", "d.vob"]
    assert all(name in told for name in ("song.wav", "e.webp", "f.braw", "0001.png", "more/"))
    assert not any(name in told for name in ("list.txt", "meta.json", "x.csv", ".b.mp4"))
    assert find(str(folder / "*"))[0] == names
    assert find(str(folder / "[a-c].*")) == (["a.MXF", "b.mp4", "c.qt"], [])


def test_a_folder_of_frames_is_a_clip_and_a_folder_of_such_is_a_list(tmp_path):
    write_frames(tmp_path / "bear", range(9))
    write_frames(tmp_path / "cat", range(9))
    assert find(tmp_path / "bear") == (["bear"], [])
    assert find(tmp_path) == (["bear", "cat"], [])
    assert find([tmp_path / "cat", str(tmp_path / "bear")]) == (["cat", "bear"], [])
    assert find(str(tmp_path / "**")) == (["bear", "cat"], [])
    fill(tmp_path, "dog.mp4", "poster.png", "readme.txt")
    names, (told,) = find(tmp_path)
    assert names == ["bear", "cat", "dog.mp4"]
    assert "poster.png" in told
    assert "readme" not in told


def test_where_nothing_is_found_what_is_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no video.*only song\.wav"):
        find(fill(tmp_path / "songs", "song.wav", "notes.txt"))
    with pytest.raises(IsADirectoryError, match=r"songs"):
        find([tmp_path / "songs"])


def test_many_names_are_shortened():
    assert name_some("abc") == "a, b, c"
    assert name_some(range(9)) == "0, 1, 2, 3, 4 and 4 more"
    assert find_videos([Path("a.mp4"), Path("a.mp4")]) == ([Path("a.mp4")], [])


@pytest.mark.parametrize(
    ("name", "codec", "container", "pix_fmt"),
    [
        ("a.mxf", "mpeg2video", None, "yuv420p"),
        ("a.vob", "mpeg2video", None, "yuv420p"),
        ("a.qt", "libx264", "mov", "yuv420p"),
        ("a.mpv", "mpeg2video", "mpeg2video", "yuv420p"),
        ("a.m2v", "mpeg2video", None, "yuv420p"),
        ("a.ogg", "libvpx", "ogg", "yuv420p"),
        ("a.3g2", "libx264", None, "yuv420p"),
        ("a.asf", "wmv2", None, "yuv420p"),
        ("a.f4v", "libx264", None, "yuv420p"),
        ("a.divx", "mpeg4", "avi", "yuv420p"),
        ("a.apng", "apng", "apng", "rgb24"),
        ("a.avif", "libsvtav1", "avif", "yuv420p"),
        ("a.ivf", "libvpx", "ivf", "yuv420p"),
        ("a.h265", "libx265", "hevc", "yuv420p"),
        ("a.m2t", "libx264", "mpegts", "yuv420p"),
        ("a.mjpg", "mjpeg", "mjpeg", "yuvj420p"),
    ],
)
def test_uncommon_suffixes_are_read(tmp_path, name, codec, container, pix_fmt):
    with av.open(str(tmp_path / name), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        for i in range(9):
            image = np.full((96, 128, 3), 20 * i + 20, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)))
        output.mux(stream.encode())
    assert find(tmp_path) == ([name], [])
    frames, _, _ = read_clip(tmp_path / name, limits=LIMITS)
    assert frames.float().mean((1, 2, 3)).tolist() == pytest.approx([20 * i + 20 for i in range(9)], abs=3)


def test_a_still_picture_is_a_mask_and_no_clip(tmp_path):
    Image.new("L", (64, 48), 255).save(tmp_path / "mask.webp")
    with pytest.raises(ValueError, match=r"mask\.webp"):
        find(tmp_path)
