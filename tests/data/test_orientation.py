from __future__ import annotations

import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ddim_lightning.data.video import read_clip, read_frames, read_info
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=5, height=32, width=64, multiple=16, temporal=4)
COLORS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "Y": (255, 255, 0)}
# a, b, c, d of FFmpeg's display.h, and how a player shows red, green / blue, yellow.
MATRICES = [
    ((1, 0, 0, 1), "RGBY"),
    ((-1, 0, 0, 1), "GRYB"),  # mirrored left to right: a selfie
    ((1, 0, 0, -1), "BYRG"),
    ((-1, 0, 0, -1), "YBGR"),  # half a turn
    ((0, 1, -1, 0), "BRYG"),  # a quarter turn clockwise: a phone held upright
    ((0, -1, 1, 0), "GYRB"),
    ((0, 1, 1, 0), "RBGY"),  # transposed
    ((0, -1, -1, 0), "YGBR"),
]


def write_quadrants(path, matrix):
    """Write five frames of four colored quadrants, 64 x 32, with a display matrix put into the file's header."""
    image = np.zeros((32, 64, 3), np.uint8)
    for name, rows, columns in (("R", 0, 0), ("G", 0, 32), ("B", 16, 0), ("Y", 16, 32)):
        image[rows : rows + 16, columns : columns + 32] = COLORS[name]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p"
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    at = content.find(b"tkhd") + 4 + 40  # version 0
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize(("matrix", "wanted"), MATRICES, ids=[name for _, name in MATRICES])
def test_turns_and_mirrors_are_what_players_show(tmp_path, matrix, wanted):
    write_quadrants(tmp_path / "clip.mp4", matrix)
    is_upright = matrix[0] == 0
    info = read_info(tmp_path / "clip.mp4")
    assert (info.height, info.width) == ((64, 32) if is_upright else (32, 64))
    frames, _, choice = read_clip(tmp_path / "clip.mp4", limits=LIMITS, height=info.height, width=info.width)
    quarters = [frames[0, :, y, x] for y in (8, info.height - 8) for x in (8, info.width - 8)]
    names = {tuple(value > 128 for value in color): name for name, color in COLORS.items()}
    assert "".join(names[tuple((quarter > 128).tolist())] for quarter in quarters) == wanted
    assert choice.warnings == ()


@pytest.mark.parametrize("exif", range(1, 9))
def test_a_photo_is_shown_as_its_exif_says(tmp_path, exif):
    image = Image.new("RGB", (64, 32))
    for name, at in (("R", (0, 0)), ("G", (32, 0)), ("B", (0, 16)), ("Y", (32, 16))):
        image.paste(COLORS[name], (*at, at[0] + 32, at[1] + 16))
    tags = Image.Exif()
    tags[0x0112] = exif
    image.save(tmp_path / "photo.jpg", exif=tags, quality=95, subsampling=0)
    with Image.open(tmp_path / "photo.jpg") as photo:
        wanted = torch.from_numpy(np.array(ImageOps.exif_transpose(photo))).permute(2, 0, 1)
    (frame,) = read_frames(tmp_path / "photo.jpg", [0])
    assert frame.shape == wanted.shape
    assert (frame.int() - wanted.int()).abs().float().mean() < 3
