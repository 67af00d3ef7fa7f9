"""The benchmark of the tiny model, at the size of a test, on random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.tiny_model import count_right, draw_scenes, main
from ddim_lightning.models.vae import quantize
from ddim_lightning.tiny.shapes import WORDS, edit, render
from ddim_lightning.tiny.shapes_classifier import classify


def test_all_is_measured_and_written(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "folder"
    threads = torch.get_num_threads()
    sizes = ["--clips", "3", "--prompts", "2", "--steps", "2", "--seed", "5", "--threads", str(threads)]
    assert main(["--model", str(tiny_model), *sizes, "--commit", "abc", "--output", str(output)]) == 0
    result = json.loads((output / "result.json").read_text("utf-8"))
    assert result["environment"]["commit"] == "abc"
    vae, samples, speed = (result[name] for name in ("vae", "samples", "speed"))
    assert len(vae["psnr_db"]) == vae["clips"] == 3
    assert vae["psnr_db_worst"] == min(vae["psnr_db"]) <= vae["psnr_db_mean"]
    assert 3 < vae["psnr_db_mean"] < 20  # random weights
    assert set(vae["right"]) == set(samples["right"]) == set(WORDS)
    assert [clip["prompt"] for clip in samples["clips"]] == [scene.caption for scene in draw_scenes(2, 5)]
    for name in ("row_ms", "decode_ms", "encode_ms"):
        assert 0 < speed[name]["fastest"] <= speed[name]["median"] <= max(speed[name]["samples"])
    assert speed["threads"] == threads
    with Image.open(output / "sheet.png") as sheet:
        assert sheet.width > 1500
    summary = (output / "README.md").read_text("utf-8")
    assert summary == capsys.readouterr().out
    assert f"{vae['psnr_db_mean']:.2f} dB in the mean" in summary
    assert "2 steps, guidance 2, seed 5" in summary


def test_rendered_clips_are_right_and_edited_ones_are_not():
    scenes = draw_scenes(4, 0)
    assert len(set(scenes)) == 4
    assert count_right(scenes, [classify(render(scene)) for scene in scenes]) == dict.fromkeys(WORDS, 4)
    moved = [edit(scene, direction="up" if scene.direction != "up" else "left") for scene in scenes]
    seen = [classify(render(scene)) for scene in moved]
    assert count_right(scenes, seen) == {"shape": 4, "color": 4, "background": 4, "direction": 0}


def test_frames_are_rounded_not_cut():
    video = torch.tensor([0.0, 0.9 / 255, 1.0]).view(1, 3, 1, 1, 1)
    assert quantize(video).flatten().tolist() == [0, 1, 255]
