"""The command line: defaults, spellings of flags, and one clear line for every mistake."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image

import ddim_lightning.cli.main
import ddim_lightning.engine.build
from ddim_lightning import DDIMInversionModule, VideoDataModule
from ddim_lightning.cli.main import main, make_parser

EDIT = ["edit", "clip.mp4", "--prompt", "a red circle", "--output", "out"]


def parse(*words: str) -> dict[str, Any]:
    return vars(make_parser().parse_args([*EDIT, *words]))


def test_defaults_are_those_of_the_module_and_the_data_module():
    args = parse()
    renamed = {"videos": "video", "prompts": "prompt", "reconstruct": None, "on_error": None}
    compared = set()
    for face in (DDIMInversionModule, VideoDataModule):
        for name, parameter in inspect.signature(face).parameters.items():
            flag = renamed.get(name, name)
            if flag in args and parameter.default is not inspect.Parameter.empty and name != "prompts":
                assert args[flag] == parameter.default, name
                compared.add(name)
    assert len(compared) >= 22
    assert args["no_reconstruct"] is False


def test_flags_reach_the_parser_under_either_spelling(capsys: pytest.CaptureFixture[str]):
    with_dashes = parse("--num-inference-steps=7", "--guidance-scale", "2.5", "--stride", "spread", "--compile")
    assert (with_dashes["num_inference_steps"], with_dashes["guidance_scale"]) == (7, 2.5)
    assert (with_dashes["stride"], with_dashes["compile"]) == ("spread", True)
    assert parse("--steps", "7", "--stride", "2")["num_inference_steps"] == 7
    # underscores, also with a value that has some: the mistake is found behind the parser
    words = ["edit", "no_such_clip.mp4", "--prompt=a_b", "--num_inference_steps=7", "--output", "out"]
    assert main(words) == 1
    assert capsys.readouterr().err == "error: video no_such_clip.mp4 does not exist\n"


def test_prompts_and_specs():
    assert parse("--prompt", "another")["prompt"] == ["a red circle", "another"]
    assert parse("--inverter", "DDIM", "--editor", "mine.Editor")["editor"] == "mine.Editor"
    spec = {"class_path": "KVInjection", "init_args": {"kv_scale": 0.5}}
    assert parse("--editor", json.dumps(spec))["editor"] == spec
    assert parse("--compile", "max-autotune")["compile"] == "max-autotune"


def test_what_cannot_work_together_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    for words, said in {
        (
            "--inversion-prompt",
            "x",
            "--invert-under-source",
        ): "argument --invert-under-source: not allowed with argument "
        "--inversion-prompt (see ddim-lightning edit --help)",
        ("--invert-under-source",): "argument --invert-under-source: needs a --source-prompt, got None",
        ("--trajectory_dir", "./out"): "argument --trajectory_dir: must not be the folder of --output without "
        "--save-trajectory, got './out'",
        ("--timestep-spacing", "even"): "argument --timestep-spacing: invalid choice: 'even' (choose from 'trailing', "
        "'angle') (see ddim-lightning edit --help)",
    }.items():
        assert main([*EDIT, *words]) == 2
        assert capsys.readouterr().err == f"error: {said}\n"


def test_env_is_printed_for_people_and_for_machines(capsys: pytest.CaptureFixture[str]):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for name, version in report["versions"].items():
        assert f"{name:<16}{version}" in shown
    assert report["platform"] in shown


def test_shipped_configs_are_found_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for spelling in (["--config", "tiny_cpu"], ["-c=tiny_cpu"], ["--config=tiny_cpu.yaml"]):
        assert main(["predict", *spelling, "--model.num-inference-steps=3", "--print-config"]) == 0
        shown = capsys.readouterr().out
        assert "num_inference_steps: 3" in shown
        assert "accelerator: cpu" in shown
    assert main(["predict", "--config", "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: config: must be one of the shipped cogvideox_5b, edit, ")
    # a file of one's own goes before a shipped config of its name
    (tmp_path / "tiny_cpu").write_text("writer: {sheets: false}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["predict", "--config", "tiny_cpu", "--writer.output_dir=o", "--data.videos=v"]) == 1
    assert capsys.readouterr().err == "error: video v does not exist\n"


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with everything that is no video, and a model of an unknown scheduler."""
    shutil.copytree(tiny_model, tmp_path / "euler")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        config = tmp_path / "euler" / name
        config.write_text(config.read_text().replace("CogVideoXDDIMScheduler", "EulerDiscreteScheduler"))
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    Image.new("L", (24, 16)).save(tmp_path / "black.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "key.yaml").write_text("model: {init_args: {num_inference_stepz: 3}}\n")
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


PREDICT = ["predict", "--writer.output_dir=out", "--data.videos"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["edit", "nope.mp4"], 1, "video nope.mp4 does not exist"),
        (["edit", "text.mp4"], 1, "text.mp4 is not a video that can be read"),
        (["edit", "zero.mp4"], 1, "zero.mp4 is empty"),
        (["edit", "folder.mp4"], 1, "video: must be a file, got the folder 'folder.mp4'"),
        (["edit", "short.mp4"], 1, "error: short.mp4: too few frames: 4 of 4 can be used"),
        (["edit", "good.mp4", "--width", "25"], 1, "width must be a positive multiple of 8 pixels, got 25"),
        (["edit", "good.mp4", "--guidance-scale=-1"], 1, "guidance_scale: must be finite and not negative, got -1.0"),
        (["edit", "good.mp4", "--prompt", " "], 1, "prompt: must not be blank, got ['a red circle', ' ']"),
        (["edit", "good.mp4", "--model", "./missing"], 1, "'./missing'"),
        (["edit", "good.mp4", "--model", "empty"], 1, "model: empty is no pipeline folder"),
        (["edit", "good.mp4", "--model", "euler"], 1, "scheduler: must be one of CogVideoXDDIMScheduler, CogVideoXDPM"),
        (["edit", "good.mp4", "--output", "/proc/x/y"], 1, "output_dir: must be a folder that can be written to"),
        (["edit", "good.mp4", "--output", "file/out"], 1, "output_dir: must be a folder that can be written to"),
        (["edit", "good.mp4", "--mask", "gone.png"], 1, "error: mask gone.png does not exist"),
        (["edit", "good.mp4", "--mask", "text.mp4"], 1, "error: mask: text.mp4 is not a video that can be read"),
        (["edit", "good.mp4", "--mask", "short.mp4"], 1, "have as many frames as good.mp4, 5, got 4"),
        (
            ["edit", "good.mp4", "--mask", "black.png"],
            1,
            "error: mask: black.png must be white somewhere within 64 x 64 pixels",
        ),
        (
            ["edit", "good.mp4", "--trajectory_dir", "empty"],
            1,
            "trajectory_dir: empty/good must hold the trajectory of a",
        ),
        (["edit", "good.mp4", "--inverter", "Nope"], 1, "inverter: 'Nope' could not be found"),
        (["edit", "good.mp4", "--inverter", "{oops"], 2, "argument --inverter: must be a name, a class path, or JSON"),
        (["edit", "good.mp4", "--stride", "two"], 2, "argument --stride: must be a number or 'spread', got 'two'"),
        (["edit", "good.mp4", "--accelerator", "gpu"], 1, "accelerator: must be one that is here, got 'gpu': No supp"),
        (["edit", "good.mp4", "--accelerator", "abacus"], 1, "must be one that is here, got 'abacus': You"),
        ([*PREDICT, "nope.mp4"], 1, "video nope.mp4 does not exist"),
        ([*PREDICT, "good.mp4", "--config", "key.yaml"], 2, "Option 'num_inference_stepz' is not accepted"),
        ([*PREDICT, "good.mp4", "--config", "top.yaml"], 2, "does not accept option 'network.init_args"),
        ([*PREDICT, "good.mp4", "--config", "x/y.yaml"], 2, "File does not exist"),
        (
            [*PREDICT, "good.mp4", "--model.guidance_scale", "-1"],
            1,
            "guidance_scale: must be finite and not negative, got -1.0",
        ),
        ([*PREDICT, "good.mp4", "--model.guidance_scale", "x"], 2, "Expected a <class 'float'>. Got value: x"),
        ([*PREDICT, "good.mp4", "--trainer.max_stepz", "3"], 2, "unrecognized arguments: --trainer.max_stepz 3"),
        (["predict", "--data.videos", "good.mp4"], 2, "the following arguments are required: predict.writer.output"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(
    words: list[str],
    status: int,
    said: str,
    here: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    if "gpu" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if words[0] == "edit":
        words = [*words[:2], "--prompt", "a red circle", "--output", "out", "--model", str(tiny_model), *words[2:]]
    elif "--config" not in words:
        words = [*words, "--model.model", str(tiny_model)]
    assert main(words) == status
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert len(line) < 250
    assert told.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text.mp4"], "text.mp4 is not a video that can be read"),
        (["zero.mp4"], "zero.mp4 is empty"),
        (["short.mp4"], "short.mp4: too few frames"),
        (["good.mp4", "--start", "1"], "good.mp4: too few frames: 4 of 5"),
        (["good.mp4", "--width", "25"], "width must be a positive multiple of 8 pixels, got 25"),
        (["good.mp4", "--mask", "short.mp4"], "mask: short.mp4 must be an image or have as many frames as good.mp4"),
        (["good.mp4", "--trajectory_dir", "empty"], "trajectory_dir: empty/good must hold the trajectory"),
        (["good.mp4"], "RuntimeError: the weights are loaded"),
    ],
)
def test_a_file_that_will_not_do_is_found_out_before_the_weights_are_loaded(
    words: list[str],
    said: str,
    here: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("the weights are loaded")

    monkeypatch.setattr(ddim_lightning.engine.build, "load_components", load)
    words = [*words, "--model", str(tiny_model), "--prompt", "a red circle", "--output", "out", "--quiet"]
    assert main(["edit", *words]) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_debug_shows_the_traceback(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    words = ["edit", "nope.mp4", "--prompt", "x", "--output", "out"]
    assert main([*words, "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("DDIM_LIGHTNING_DEBUG", "1")
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: video nope.mp4 does not exist\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            RuntimeError("CUDA out\n of memory"),
            1,
            "error: RuntimeError: CUDA out of memory (DDIM_LIGHTNING_DEBUG=1 shows",
        ),
        (argparse.ArgumentError(None, "no such flag"), 2, "error: no such flag\n"),
        (
            RuntimeError(
                "-- Process 0 terminated\nTraceback (most recent call last):\n  File\nValueError: no frames\n"
            ),
            1,
            "error: ValueError: no frames\n",
        ),
    ],
)
def test_what_escapes_is_said_in_one_line(
    error: BaseException,
    status: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(ddim_lightning.cli.main, "_dispatch", fail)
    assert main([]) == status
    assert capsys.readouterr().err.startswith(line)
