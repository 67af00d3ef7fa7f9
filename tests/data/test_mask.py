from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from PIL import Image

from ddim_lightning.data.frames import FrameChoice, choose_frames
from ddim_lightning.data.mask import read_mask
from ddim_lightning.data.video import read_clip, read_info, write_video
from ddim_lightning.limits import VideoLimits
from tests.data.messages import make_pattern

LIMITS = VideoLimits(num_frames=9, height=32, width=48, multiple=16, temporal=4)


def make_blocks(f, h, w, side=8, seed=0):
    """Frames (f, h, w) bool of blocks, each white with a probability of a half."""
    blocks = torch.rand(f, h // side, w // side, generator=torch.Generator().manual_seed(seed)) > 0.5
    return blocks.repeat_interleave(side, 1).repeat_interleave(side, 2)


def write_masks(path, mask):
    """Write (f, h, w) bool as a video, or as an image where f is 1."""
    if path.suffix == ".mp4":
        write_video(path, (mask[:, None] * torch.tensor(255, dtype=torch.uint8)).expand(-1, 3, -1, -1), Fraction(8))
    else:
        Image.fromarray(mask[0].numpy()).convert("L").save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """23 frames of 40 x 72 whose blocks change with every frame."""
    return write_masks(tmp_path_factory.mktemp("clip") / "clip.mp4", make_blocks(23, 40, 72))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("start", "stride"), [(0, 1), (3, 2), (2, "spread"), (1, 1.5)])
def test_frames_and_pixels_are_those_of_the_clip(clip, fit, start, stride):
    # The clip is its own mask: where it is white as the model sees it, and nowhere else, it may change.
    size = {"height": 48, "width": 64, "fit": fit}
    frames, _, choice = read_clip(clip, limits=LIMITS, start=start, stride=stride, **size)
    mask = read_mask(clip, read_info(clip), choice, **size)
    assert (mask.shape, mask.dtype) == ((9, 48, 64), torch.bool)
    luma = frames.float().mean(1)
    clear = (luma - 127.5).abs() > 20  # between blocks the clip is gray
    assert clear.float().mean() > 0.8
    assert torch.equal(mask[clear], (luma > 127.5)[clear])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("scale", [1, 2, Fraction(1, 8)])
def test_an_image_of_any_resolution_holds_for_all_frames(tmp_path, clip, suffix, scale):
    wanted = make_blocks(1, 40, 72, seed=1)
    drawn = make_blocks(1, int(40 * scale), int(72 * scale), side=int(8 * scale), seed=1)
    path = write_masks(tmp_path / f"mask{suffix}", drawn)
    mask = read_mask(path, read_info(clip), choose_frames(23, LIMITS), height=40, width=72)
    assert torch.equal(mask, wanted.expand(9, 40, 72))


@pytest.mark.parametrize("size", [(5, 9), (4, 7), (4, 9), (40, 73), (72, 40), (480, 480)])
def test_a_mask_of_any_shape_covers_the_whole_frame(tmp_path, clip, size):
    halves = torch.zeros(1, *size, dtype=torch.bool)
    halves[:, : size[0] // 2] = True
    path = write_masks(tmp_path / "mask.png", halves)
    mask = read_mask(path, read_info(clip), choose_frames(23, LIMITS), height=40, width=72)
    edge = round(40 * (size[0] // 2) / size[0])
    assert mask[:, :edge].all()
    assert not mask[:, edge + 1 :].any()


def test_white_is_a_luma_above_half(tmp_path, clip):
    colors = [(127, 127, 127), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255)]
    image = Image.new("RGB", (72, 40))
    for i, color in enumerate(colors):
        image.paste(color, (12 * i, 0, 12 * (i + 1), 40))
    image.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", read_info(clip), choose_frames(23, LIMITS), height=40, width=72)
    assert mask[0, 0, 6::12].tolist() == [False, True, False, True, False, True]


def test_bars_are_not_editable_and_pixels_have_the_aspect_of_the_clips(tmp_path, carphone):
    # 176 x 144 pixels of 128:117 are shown at 4:3 almost: 43 of 48 columns, where square ones would take 39.
    path = write_masks(tmp_path / "mask.png", torch.ones(1, 144, 176, dtype=torch.bool))
    mask = read_mask(path, read_info(carphone), choose_frames(120, LIMITS), height=32, width=48, fit="pad")
    assert mask[:, :, 2:45].all()
    assert not mask[:, :, :2].any()
    assert not mask[:, :, 45:].any()


@pytest.mark.parametrize(
    ("frames", "height", "width", "white", "message"),
    [
        (22, 40, 72, "all", "… as many frames as {clip}, 23, got 22"),
        (23, 40, 72, "none", "… white … 32 x 48 … got black"),
        (23, 40, 72, "margin", "… white … 32 x 48 … got black"),
        (23, 40, 72, "late", "… white … 32 x 48 … got black"),
    ],
)
def test_a_mask_that_does_not_fit_says_why(tmp_path, clip, frames, height, width, white, message):
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    chosen = {"all": ..., "none": slice(0), "margin": (..., slice(0, 5)), "late": slice(12, None)}[white]
    mask[chosen] = True  # the crop is of 60 columns, and of the first 9 frames
    path = write_masks(tmp_path / "mask.mp4", mask)
    with pytest.raises(ValueError, match=make_pattern(f"mask: {path} {message.format(clip=clip)}")):
        read_mask(path, read_info(clip), choose_frames(23, LIMITS), height=32, width=48)


def test_what_is_no_picture_names_the_mask(tmp_path, clip):
    (tmp_path / "mask.png").write_text("not a picture")
    choice = FrameChoice(23, 0, Fraction(1), 9, "")
    with pytest.raises(ValueError, match=r"^mask: .*mask\.png is damaged: 0 of 1 frames"):
        read_mask(tmp_path / "mask.png", read_info(clip), choice, height=32, width=48)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_mask(tmp_path / "gone.png", read_info(clip), choice, height=32, width=48)


def test_objects_of_a_palette_are_white_above_a_threshold_of_0(tmp_path, clip):
    blocks = make_blocks(1, 40, 72)[0]
    picture = Image.fromarray(blocks.to(torch.uint8).numpy(), mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0])  # as DAVIS colors its first object: darker than half
    picture.save(tmp_path / "mask.png")
    size = {"height": 40, "width": 72, "fit": "stretch"}
    choice = choose_frames(23, LIMITS)
    mask = read_mask(tmp_path / "mask.png", read_info(clip), choice, **size, threshold=0)
    assert torch.equal(mask, blocks.expand(choice.count, -1, -1))
    with pytest.raises(ValueError, match="got black everywhere"):
        read_mask(tmp_path / "mask.png", read_info(clip), choice, **size)
