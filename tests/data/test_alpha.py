from __future__ import annotations

import av
import numpy as np
import pytest

from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=5, height=32, width=64, multiple=16, temporal=4)


def write_alpha(path, codec, pix_fmt, alpha):
    """Write five frames: red on the left, opaque; and green on the right, as transparent as ``alpha`` says."""
    image = np.zeros((32, 64, 4), np.uint8)
    image[:, :32], image[:, 32:] = (220, 30, 30, 255), (30, 220, 30, alpha)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8, options={"auto-alt-ref": "0", "lossless": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgba").reformat(format=pix_fmt)))
        output.mux(stream.encode())


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.apng", "apng", "rgba"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
        ("a.mkv", "ffv1", "yuva420p"),
    ],
)
def test_what_is_transparent_is_put_on_black_and_said(tmp_path, name, codec, pix_fmt, alpha):
    write_alpha(tmp_path / name, codec, pix_fmt, alpha)
    frames, _, choice = read_clip(tmp_path / name, limits=LIMITS)
    assert frames[2, :, 16, 12].tolist() == pytest.approx([220, 30, 30], abs=8)
    assert frames[2, :, 16, 52].tolist() == pytest.approx(
        [30 * alpha / 255, 220 * alpha / 255, 30 * alpha / 255], abs=8
    )
    assert any("alpha" in sentence for sentence in choice.warnings) == (alpha < 255)
