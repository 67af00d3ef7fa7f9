"""Round trips of videos of one's own, on random weights and in few steps."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from benchmarks import coming_back, round_trip
from benchmarks.check import list_faults
from benchmarks.emulated_cuda import emulate_cuda
from benchmarks.loading import load_engine
from benchmarks.round_trip import main, make_methods
from benchmarks.round_trip_report import WASHOUT, make_markdown, name_video
from ddim_lightning.data.streams import make_generator
from ddim_lightning.data.video import read_clip, write_video
from ddim_lightning.diffusion.inverters import BDIA, DDIM, FixedPoint, UniInv
from ddim_lightning.tiny.shapes import render, sample_scene

SIZE = ("--height", "32", "--width", "48", "--frames", "5")
METHODS = ["DDIM, 5 steps", "DDIM, 12 steps", "UniInv", "FixedPoint", "BDIA"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of another shape than the model's, one in frames, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(2):
        write_video(folder / f"clip {index}.mp4", render(sample_scene(make_generator(0, "mine", index))), Fraction(8))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def run(model: Path, videos: Path, output: Path, *flags: str) -> int:
    words = ["--model", str(model), "--videos", str(videos), "--quick", *SIZE, "--commit", "abc"]
    return main([*words, "--output", str(output), *flags])


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tiny_model: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, in one go."""
    output = tmp_path_factory.mktemp("benchmark") / "new"
    assert run(tiny_model, videos, output) == 3  # for one is broken
    return output


def test_its_result_can_be_submitted(folder, result, is_drawn):
    assert list_faults(folder) == []
    assert (folder / "README.md").read_text("utf-8") == make_markdown(result)
    assert is_drawn(folder / WASHOUT)
    assert "left_out" not in result


def test_every_clip_goes_there_and_back_by_every_method(folder, result, is_drawn):
    assert [clip["id"] for clip in result["by_clip"]] == ["clip_0", "clip_1"]
    for clip in result["by_clip"]:
        assert clip["frames"] == 5
        assert list(dict.fromkeys(row["name"] for row in clip["rows"])) == METHODS
        place = folder / "clips" / clip["id"]
        assert {path.stem for path in place.glob("*.mp4")} == {
            name_video(name) for name in ("source", "VAE round trip", *METHODS)
        }
        assert is_drawn(place / WASHOUT)
    rows = [(row["name"], row["residual"], row["clips"]) for row in result["rows"]]
    assert rows == [(name, kept, 2) for name in METHODS for kept in (False, True) if not kept or name in METHODS[2:4]]


def test_the_methods_are_the_ones_that_are_named():
    first, small_steps, *others = make_methods(50, 250)
    assert (first.inverter, first.steps, small_steps.inverter, small_steps.steps) == (DDIM(), 50, DDIM(), 250)
    assert [type(method.inverter) for method in others] == [UniInv, FixedPoint, BDIA]
    for method in (first, small_steps, *others):
        assert (method.spacing, method.source_prompt, method.guidance_scales) == ("trailing", False, (1.0,))


@torch.inference_mode()
def test_errors_are_those_of_a_round_trip_by_hand(tiny_model, videos, result):
    engine = replace(load_engine(str(tiny_model), 5), inverter=DDIM())
    size = {"num_frames": 5, "height": 32, "width": 48}
    frames, _, _ = read_clip(videos / "clip 1.mp4", limits=engine.components.limits, **size)
    latents = engine.encode(frames)
    vae = engine.decode(latents)[0].double()
    back = engine.decode(engine.reconstruct(engine.invert(latents)))[0].double()
    clip = result["by_clip"][1]
    row = clip["rows"][0]
    assert (row["name"], row["inversion_nfe"], row["reconstruction_nfe"]) == (METHODS[0], 5, 5)
    assert clip["vae_error"] == pytest.approx(float((vae - frames.double() / 255).square().mean()), rel=1e-5)
    assert row["error"] == pytest.approx(float((back - vae).square().mean()), rel=1e-5)
    assert row["error_to_source"] == pytest.approx(float((back - frames.double() / 255).square().mean()), rel=1e-5)


def test_a_pooled_row_is_of_the_clips_own(result):
    clips = result["by_clip"]
    for row in result["rows"]:
        own = [
            one
            for clip in clips
            for one in clip["rows"]
            if (one["name"], one["residual"]) == (row["name"], row["residual"])
        ]
        errors = [one["error"] for one in own]
        assert row["to_vae"]["db"] == pytest.approx(-10 * math.log10(sum(errors) / 2))
        assert row["to_vae"]["worst"] == pytest.approx(-10 * math.log10(max(errors)))
        assert row["to_vae"]["mean"] == pytest.approx(sum(-10 * math.log10(error) for error in errors) / 2)
        assert row["gib"] is None or row["gib"] > 0


def test_one_that_cannot_be_read_is_listed_with_its_reason(folder, result):
    (skipped,) = result["skipped"]
    assert skipped["id"] == "broken" and "broken.mp4" in skipped["reason"]
    assert skipped["reason"].split("/")[-1].split(" is ")[1] in (folder / "README.md").read_text("utf-8")


def test_it_goes_on_where_it_was_cut_off(tiny_model, videos, folder, tmp_path, capsys):
    shutil.copy(folder / "records-0.jsonl", tmp_path)
    lines = (tmp_path / "records-0.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "clip_1" not in line or "BDIA" not in line]
    assert len(kept) == len(lines) - 1
    (tmp_path / "records-0.jsonl").write_text("".join(kept) + lines[-1][:40], "utf-8")
    capsys.readouterr()
    assert run(tiny_model, videos, tmp_path) == 3
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("clip_")] == ["clip_1: BDIA"]
    first, second = read(folder), read(tmp_path)
    assert [row["to_vae"] for row in first["rows"]] == [row["to_vae"] for row in second["rows"]]


def test_another_video_of_the_same_name_is_measured_anew(tiny_model, videos, folder, tmp_path, capsys):
    shutil.copy(folder / "records-0.jsonl", tmp_path)
    own = tmp_path / "videos"
    own.mkdir()
    shutil.copy(videos / "clip 0.mp4", own / "clip 1.mp4")
    assert run(tiny_model, own, tmp_path) == 0
    assert capsys.readouterr().out.count("clip_1: ") == len(METHODS)
    with pytest.raises(ValueError, match="fit is 'crop' there, got 'pad'"):
        run(tiny_model, own, tmp_path, "--fit", "pad")


def test_a_budget_leaves_the_dear_ones_out_and_says_so(tiny_model, videos, tmp_path):
    assert run(tiny_model, videos, tmp_path, "--budget", "0.001") == 3
    result = read(tmp_path)
    assert [(row["name"], row["clips"]) for row in result["rows"]] == [(METHODS[0], 1)]
    assert len(result["left_out"]) == 2 * len(METHODS) - 1 and "clip_0 by FixedPoint" in result["left_out"]
    assert list_faults(tmp_path) == []


def test_a_method_that_fails_on_a_clip_loses_nothing_of_the_others(tiny_model, videos, tmp_path, monkeypatch):
    invert_step = DDIM.invert_step

    def fail(self, velocity_fn, state, schedule, i):
        if len(schedule) == 12 and i == 3:
            raise torch.OutOfMemoryError("no memory\nis left")
        return invert_step(self, velocity_fn, state, schedule, i)

    monkeypatch.setattr(DDIM, "invert_step", fail)
    assert run(tiny_model, videos / "clip 0.mp4", tmp_path) == 3
    result = read(tmp_path)
    assert {row["name"] for row in result["by_clip"][0]["rows"]} == {*METHODS} - {METHODS[1]}
    assert result["skipped"] == [{"id": "clip_0", "reason": "DDIM, 12 steps: no memory is left"}]
    assert list_faults(tmp_path) == []


def test_a_clip_of_which_nothing_can_be_made_is_listed(tiny_model, videos, tmp_path, monkeypatch):
    def fail(self, engine, frames, caption=""):
        raise ValueError("nothing can be made of it")

    monkeypatch.setattr(coming_back.Clip, "__init__", fail)
    assert run(tiny_model, videos / "clip 0.mp4", tmp_path) == 3
    assert {row["reason"] for row in read(tmp_path)["skipped"]} == {
        f"{name}: nothing can be made of it" for name in METHODS
    }
    assert list_faults(tmp_path) == []


def test_an_emulated_gpu_tells_the_peak_of_each_method(tiny_model, videos, tmp_path):
    with emulate_cuda():
        assert run(tiny_model, videos / "clip 0.mp4", tmp_path, "--device", "cuda", "--dtype", "bfloat16") == 0
    result = read(tmp_path)
    gib = {row["name"]: row["gib"] for row in result["rows"]}
    assert 0 < gib[METHODS[0]] < gib[METHODS[1]]  # every level is kept
    assert result["settings"]["clock"] == "wall"


def test_what_is_equal_has_no_decibels(result):
    result["rows"][-1]["to_vae"] = dict.fromkeys(result["rows"][-1]["to_vae"])
    assert "| equal (equal .. equal) | equal | equal |" in make_markdown(result)


def test_it_needs_videos_and_a_folder(capsys):
    with pytest.raises(SystemExit):
        round_trip.main(["--quick"])
    assert "--videos, --output" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^many_steps: .*got 50$"):
        round_trip.main(["--videos", "gone", "--output", "out", "--many-steps", "50"])
    with pytest.raises(FileNotFoundError, match="gone"):
        round_trip.main(["--videos", "gone", "--output", "out", "--model", "gone too"])
