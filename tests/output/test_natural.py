"""Who gives the bundled model natural video is told what it knows."""

from __future__ import annotations

import json

import pytest

from ddim_lightning.cli.main import main
from ddim_lightning.output.folder import RunFolder
from ddim_lightning.output.natural import warn_of_natural
from tests.clip_results import make_small_result


@pytest.fixture
def made(tmp_path):
    """What a run of the bundled model made of no file, and of that in turn."""
    run = RunFolder(tmp_path, sheets=False)
    run.begin()
    run.write(make_small_result("shapes"))
    second = make_small_result("again")
    second.clip.source = str(tmp_path / "shapes" / "source.mp4")
    run.write(second)
    run.end(alone=True)
    return tmp_path


@pytest.mark.parametrize("clip", ["shapes", "again"])
def test_moving_shapes_are_known(made, clip, capsys):
    warn_of_natural("tiny", [made / clip / "source.mp4"])
    assert capsys.readouterr().err == ""


def test_anything_else_is_not(made, real_clip, capsys):
    path = made / "again" / "result.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**record, "files": {**record["files"], "input": str(real_clip)}}), "utf-8")
    for videos in ([real_clip], [made / "again" / "source.mp4"], [real_clip, made / "shapes" / "source.mp4"]):
        warn_of_natural("tiny", videos)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: tiny ")
        assert "--model zai-org/CogVideoX-5b" in line
    assert "1 of 2 clips" in line
    warn_of_natural("tiny", [real_clip, made / "again" / "source.mp4"])
    assert "the 2 clips" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["./gone", "zai-org/CogVideoX-5b"])
def test_other_models_are_not_spoken_of(real_clip, model, capsys):
    warn_of_natural(model, [real_clip])
    assert capsys.readouterr().err == ""


def test_the_first_line_of_predict_says_so(carphone, tmp_path, capsys):
    words = ["--data.videos", str(carphone), "--data.prompts", "a clip", "--model.schedule.num_inference_steps", "1"]
    size = ["--data.num_frames", "5", "--data.height", "16", "--data.width", "16", "--trainer.accelerator", "cpu"]
    assert main(["predict", *words, *size, "--writer.output_dir", str(tmp_path / "out")]) == 0
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: tiny ")
    assert len([line for line in others if line.startswith("warning: tiny ")]) == 0
