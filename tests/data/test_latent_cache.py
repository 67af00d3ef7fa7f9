from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from ddim_lightning.data.clip_frames import ClipFrames
from ddim_lightning.data.latent_cache import EncodedClip, open_cache
from ddim_lightning.data.video import read_info, write_video


@pytest.fixture
def clip(tmp_path):
    frames = torch.randint(0, 256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_video(tmp_path / "clip.mp4", frames.repeat_interleave(8, 2).repeat_interleave(8, 3), Fraction(8))
    return tmp_path / "clip.mp4"


def test_latents_are_drawn_from_the_posterior_that_was_written(tmp_path):
    mean, std = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(1)), torch.full((3, 2, 4, 6), 0.5)
    file = EncodedClip(tmp_path / "deep" / "x.safetensors")
    assert not file.is_whole((3, 4, 6))
    file.write(mean, std, 0.7)
    assert file.is_whole((3, 4, 6)) and not file.is_whole((3, 6, 4))
    torch.testing.assert_close(file.load(), 0.7 * mean, rtol=1e-3, atol=1e-3)
    one, two = (file.load(torch.Generator().manual_seed(seed)) for seed in (2, 2))
    assert torch.equal(one, two) and one.dtype == torch.float32
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(one, 0.7 * (mean + 0.5 * noise), rtol=1e-3, atol=1e-3)
    assert [path.name for path in file.file.parent.iterdir()] == ["x.safetensors"]


def test_a_damaged_file_is_not_whole_and_says_so(tmp_path):
    file = EncodedClip(tmp_path / "x.safetensors")
    file.write(torch.zeros(3, 2, 4, 6), torch.zeros(3, 2, 4, 6), 1.0)
    whole = file.file.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\xff" * 99):
        file.file.write_bytes(damaged)
        assert not file.is_whole((3, 4, 6))
        with pytest.raises(ValueError, match=r"^cache: .*x\.safetensors"):
            file.load()


def test_the_name_of_a_file_is_of_content_frames_and_vae(tmp_path, clip):
    cache = open_cache(tmp_path / "cache")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    one, two = cache.read_info(clip), cache.read_info(copy)
    assert one.digest == two.digest and one.info == replace(read_info(clip), notes=())
    frames = ClipFrames(clip, (5, 32, 48))
    others = [replace(frames, size=(5, 48, 32)), replace(frames, start=1), replace(frames, stride=2)]
    files = [cache.find(one, other, "vae") for other in (*others, replace(frames, fit="pad"))]
    assert len({cache.find(one, frames, "vae"), cache.find(one, frames, "other"), *files}) == 6
    assert cache.find(two, replace(frames, video=copy), "vae") == cache.find(one, frames, "vae")


def test_what_is_known_of_a_video_is_not_read_again_until_it_changes(tmp_path, clip):
    cache = open_cache(tmp_path / "cache")
    known = cache.read_info(clip)
    cache.keep(known)
    (record,) = (tmp_path / "cache" / "clips").iterdir()
    changed = json.loads(record.read_text()) | {"digest": "of the record"}
    record.write_text(json.dumps(changed))
    assert cache.read_info(clip) == replace(known, digest="of the record")
    record.write_text(json.dumps(changed)[:-9])  # damaged
    assert cache.read_info(clip) == known
    record.write_text(json.dumps(changed))
    with clip.open("ab") as file:
        file.write(b"\0")
    assert cache.read_info(clip).digest not in (known.digest, "of the record")


def test_a_folder_of_frames_has_a_content_too(tmp_path):
    from PIL import Image

    for name, color in (("one", 3), ("two", 3), ("three", 4)):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (48, 32), (color,) * 3).save(tmp_path / name / f"{i}.png")
    cache = open_cache(tmp_path / "cache")
    one, two, three = (cache.read_info(tmp_path / name).digest for name in ("one", "two", "three"))
    assert one == two != three
