"""HDR and wide gamut, against a chart that is made here by the formulas of the ITU, in the other direction."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorPrimaries, ColorTrc

from ddim_lightning.data.color import to_sdr
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits

LIMITS = VideoLimits(num_frames=5, height=64, width=96, multiple=16, temporal=4)
CHART = np.array(
    [
        [(255, 255, 255), (235, 235, 235), (128, 128, 128), (20, 20, 20), (0, 0, 0), (200, 150, 120)],
        [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30), (30, 220, 220), (220, 30, 220)],
    ]
)
"""Two rows of six patches, SDR."""
# BT.2087 table 1, rounded as printed there.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
HLG, PQ, SDR = ColorTrc.ARIB_STD_B67, ColorTrc.SMPTE2084, ColorTrc.BT2020_10


def encode_light(light, transfer):
    """Codes 0 .. 1 of linear light, 1 being SDR white: BT.2100's OETF of HLG, its inverse EOTF of PQ, or BT.1886."""
    if transfer == HLG:
        scene = light * 0.26496256042100724  # what HLG calls 75 %
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    if transfer == PQ:
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return light ** (1 / 2.4)


def write_chart(path, transfer, *, scale=1.0, size=(64, 96)):
    """Write five frames of the chart, as 10 bit Y'CbCr of BT.2020."""
    light = scale * (CHART / 255) ** 2.4 @ TO_BT2020.T
    codes = encode_light(light, transfer).repeat(size[0] // 2, 0).repeat(size[1] // 6, 1)
    red, green, blue = np.moveaxis(codes, -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    planes = [64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": "8", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = int(transfer), int(ColorPrimaries.BT2020), 9
        context.color_range = 1
        for _ in range(5):
            frame = av.VideoFrame(size[1], size[0], "yuv444p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((size[0], plane.line_size // 2), "<u2")
                rows[:, : size[1]] = values.round()
                plane.update(rows.tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def read_patches(path):
    frames, _, choice = read_clip(path, limits=LIMITS)
    return frames[2, :, 16::32, 8::16].permute(1, 2, 0).numpy().astype(int), choice


@pytest.mark.parametrize("transfer", [HLG, PQ, SDR], ids=["HLG", "PQ", "BT.2020"])
def test_a_chart_comes_back_in_its_sdr_colors(tmp_path, transfer):
    write_chart(tmp_path / "chart.mp4", transfer)
    patches, choice = read_patches(tmp_path / "chart.mp4")
    assert np.abs(patches - CHART).max() <= 8  # white is rolled off by 5, and the codec moves dark channels
    (note,) = choice.notes
    assert ("HDR" in note) == (transfer != SDR)
    assert {HLG: "HLG", PQ: "PQ", SDR: "BT.2020"}[transfer] in note
    assert note in choice.warnings


@pytest.mark.parametrize("transfer", [HLG, PQ], ids=["HLG", "PQ"])
def test_light_above_white_stays_apart_and_keeps_its_color(tmp_path, transfer):
    write_chart(tmp_path / "bright.mp4", transfer, scale=3.0)
    patches, _ = read_patches(tmp_path / "bright.mp4")
    white, light, gray = patches[0, :3, 0]
    assert 245 <= light <= white <= 255
    assert gray == pytest.approx(255 * (3 * (128 / 255) ** 2.4) ** (1 / 2.4), abs=4)  # below white: as bright as it is
    red, green, blue = patches[1, 0]
    assert red >= 245
    assert max(green, blue) < 60


def test_every_brightness_is_in_order():
    codes = np.linspace(0, 65535, 4096).round().astype(np.uint16)[None, :, None].repeat(3, 2)
    for transfer in (HLG, PQ, SDR):
        gray = to_sdr(codes, int(transfer), int(ColorPrimaries.BT2020))
        assert gray.shape == (3, 1, 4096)
        assert (gray.int().diff(dim=2) >= 0).all()
        assert (gray.int().amax(0) - gray.int().amin(0)).max() <= 1  # gray stays gray
        assert (int(gray[0, 0, 0]), int(gray[0, 0, -1])) == (0, 255)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("ffv1", "yuv420p"),
        ("ffv1", "yuv422p"),
        ("ffv1", "yuv444p"),
        ("ffv1", "yuv420p10le"),
        ("ffv1", "yuv422p10le"),
        ("ffv1", "yuv444p12le"),
        ("ffv1", "gbrp10le"),
        ("ffv1", "bgr0"),
        ("rawvideo", "nv12"),
        ("rawvideo", "rgb24"),
        ("mjpeg", "yuvj420p"),
    ],
)
def test_sdr_of_any_pixel_format_is_within_one(tmp_path, codec, pix_fmt):
    chart = CHART.astype(np.uint8).repeat(32, 0).repeat(16, 1)
    with av.open(str(tmp_path / "chart.nut"), "w") as output:
        stream = output.add_stream(codec, rate=8, options={"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(chart, format="rgb24")
            flags = 4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
            output.mux(stream.encode(frame.reformat(format=pix_fmt, interpolation=flags)))
        output.mux(stream.encode())
    patches, choice = read_patches(tmp_path / "chart.nut")
    assert np.abs(patches - CHART).max() <= (3 if codec == "mjpeg" else 1)
    assert choice.warnings == ()


def test_wide_gamut_outside_of_sdr_is_clipped():
    green = np.array([[[0, 65535, 0]]], np.uint16)  # of BT.2020: no SDR screen can show it
    shown = to_sdr(green, int(SDR), int(ColorPrimaries.BT2020))
    assert torch.equal(shown.flatten(), torch.tensor([0, 255, 0], dtype=torch.uint8))
