"""What cannot be found before the model's classes are there is one line, too, and has its status."""

from __future__ import annotations

import argparse
import shutil

import av
import pytest
import torch
from PIL import Image

import ddim_lightning.cli.main
import ddim_lightning.engine.build
from ddim_lightning.cli.main import main
from ddim_lightning.report.mistakes import explain


@pytest.fixture
def here(tmp_path, tiny_model, monkeypatch):
    """A working directory with everything that is no video, and a model of an unknown scheduler."""
    shutil.copytree(tiny_model, tmp_path / "euler")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        config = tmp_path / "euler" / name
        config.write_text(config.read_text().replace("CogVideoXDDIMScheduler", "EulerDiscreteScheduler"))
    (tmp_path / "text.mp4").write_text("hello")
    Image.new("L", (24, 16)).save(tmp_path / "black.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "key.yaml").write_text("model: {init_args: {schedule: {num_inference_stepz: 3}}}\n")
    (tmp_path / "flat.yaml").write_text("model: {init_args: {num_inference_steps: 3}}\n")
    (tmp_path / "top.yaml").write_text("network: {init_args: {num_inference_steps: 3}}\n")
    for name, count in {"short.mp4": 4, "good.mp4": 5}.items():
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame(24, 16, "yuv420p")))
            container.mux(stream.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text.mp4"], "text.mp4 is not a video that can be read"),
        (["short.mp4"], "too few frames: 4 of 4 can be used"),
        (["good.mp4", "--start", "1"], "too few frames: 4 of 5 can be used"),
        (["good.mp4", "--width", "25"], "width must be a positive multiple of 8 pixels, got 25"),
        (["good.mp4", "--mask", "text.mp4"], "mask: text.mp4 is not a video that can be read"),
        (["good.mp4", "--mask", "short.mp4"], "mask: short.mp4 must be an image or have as many frames as good.mp4"),
        (["good.mp4", "--mask", "black.png"], "mask: black.png must be white somewhere within 64 x 64 pixels"),
        (["good.mp4", "--model", "empty"], "model: empty is no pipeline folder"),
        (["good.mp4", "--model", "no/such model"], "'no/such model'"),
        (["good.mp4", "--inverter", "no.Pe"], "inverter: 'no.Pe' could not be found"),
        (["good.mp4", "--editor", '{"init_args": {}}'], "editor: must be "),
        (["good.mp4", "--accelerator", "gpu"], "accelerator: must be one that is here, got 'gpu': No supp"),
        (["good.mp4"], "RuntimeError: the weights are loaded"),
    ],
)
def test_what_will_not_do_is_found_out_before_the_weights_are_loaded(
    words,
    said,
    here,
    tiny_model,
    capsys,
    monkeypatch,
):
    if "gpu" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")

    def load(*_, **__):
        raise RuntimeError("the weights are loaded")

    monkeypatch.setattr(ddim_lightning.engine.build, "load_components", load)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["--model", str(tiny_model), "--prompt", "a red circle", "--output", "out", *words]
    assert main(["edit", *words]) == 1
    told = capsys.readouterr()
    first, line = told.err.splitlines()
    assert first.startswith("loading ")
    assert line.startswith("error: ")
    assert said in line
    assert len(line) < 250
    assert told.out == ""


def test_a_model_of_an_unknown_scheduler_is_refused(here, capsys):
    words = ["good.mp4", "--model", "euler", "--prompt", "a red circle", "--output", "out", "--quiet"]
    assert main(["edit", *words]) == 1
    assert "scheduler: must be one of CogVideoXDDIMScheduler, CogVideoXDPM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nope.mp4"], 1, "video nope.mp4 does not exist"),
        (["good.mp4", "--config", "key.yaml"], 2, "did you mean schedule.num_inference_steps?"),
        (["good.mp4", "--config", "flat.yaml"], 2, "did you mean schedule.num_inference_steps?"),
        (["good.mp4", "--config", "top.yaml"], 2, "does not accept option 'network.init_args"),
        (["good.mp4", "--model.schedule.num-inference-stepz", "3"], 2, "did you mean --schedule.num_inference_steps?"),
        (["good.mp4", "--model.guidence_scale", "3"], 2, "did you mean guidance_scale?"),
        (["good.mp4", "--trainer.max_stepz", "3"], 2, "did you mean --trainer.max_steps?"),
        (["good.mp4", "--data.num_framez", "9"], 2, "did you mean num_frames?"),
        (["good.mp4", "--model.guidance_scale", "x"], 2, "guidance_scale: must be float or null, got 'x'"),
        (
            ["good.mp4", "--model.runtime.offload", "x"],
            2,
            "offload: must be 'none', 'model', 'blocks' or null, got 'x'",
        ),
        (["good.mp4", "--model.guidance_scale", "-1"], 1, "guidance_scale: must be finite and not negative, got -1.0"),
        (["good.mp4", "--model.schedule.num_inference_steps=0"], 1, "num_inference_steps: must be an integer of at"),
    ],
)
def test_a_mistake_of_predict_is_one_line_with_the_nearest_name(words, status, said, here, tiny_model, capsys):
    words = ["--writer.output_dir=out", "--model.model", str(tiny_model), "--data.videos", *words]
    assert main(["predict", *words]) == status
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.count("did you mean") <= 1
    assert len(line) < 250
    assert told.out == ""


def test_predict_needs_a_folder_for_its_results(here, capsys):
    assert main(["predict", "--data.videos", "good.mp4"]) == 2
    assert "writer.output_dir" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--debug", "DDIM_LIGHTNING_DEBUG"])
def test_debug_shows_the_traceback(way, capsys, monkeypatch):
    words = ["edit", "nope.mp4", "--prompt", "x", "--output", "out"]
    if way == "--debug":
        words.append(way)
    else:
        monkeypatch.setenv(way, "1")
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: video nope.mp4 does not exist\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (RuntimeError("CUDA out\n of memory"), 1, "error: RuntimeError: CUDA out of memory ("),
        (argparse.ArgumentError(None, "no such flag"), 2, "error: no such flag\n"),
    ],
)
def test_what_escapes_is_said_in_one_line(
    error,
    status,
    line,
    capsys,
    monkeypatch,
):
    def fail(words):
        raise error

    monkeypatch.setattr(ddim_lightning.cli.main, "_read", fail)
    assert main([]) == status
    assert capsys.readouterr().err.startswith(line)


def test_what_another_process_raised_is_its_last_line():
    message = "-- Process 0 terminated\nTraceback (most recent call last):\n  File\nValueError: no frames\n"
    assert explain(RuntimeError(message)) == "ValueError: no frames"
