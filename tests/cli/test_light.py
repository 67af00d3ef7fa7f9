"""What a person asks for at once, and every mistake that needs no model to be found, waits for no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from ddim_lightning.data.video import write_video

CODE = """
import json, sys
from ddim_lightning.cli.main import main
for words in json.load(sys.stdin):
    print("@@")
    print("status", main(words))
    print("heavy", *sorted({"torch", "lightning", "diffusers", "transformers"} & set(sys.modules)))
    print("parser", "jsonargparse" in sys.modules)
"""


def run(cwd, *commands):
    """Run commands in one process; what each printed, with its status and what was imported, and all of stderr."""
    words = json.dumps(commands)
    ended = subprocess.run(
        [sys.executable, "-c", CODE], input=words, capture_output=True, text=True, check=True, cwd=cwd
    )
    return ended.stdout.split("@@\n")[1:], ended.stderr.splitlines()


def test_help_and_version_are_light(tmp_path):
    commands = [["--version"], ["--help"], ["benchmark"], ["edit", "--help"], ["demo", "--help"], ["export", "--help"]]
    commands += [["benchmark", "five", "--help"], ["check", "--help"], ["report", "--help"], ["metrics", "--help"]]
    shown, errors = run(tmp_path, *commands)
    assert errors == []
    assert all("status 0\nheavy\n" in one for one in shown)
    assert all("parser False" in one for one in shown[:3])
    assert "--negative-prompt" in shown[3]
    assert "--save-trajectory" in shown[3]


MISTAKES = [
    ([], 2, "edit"),
    (["edti"], 2, "did you mean edit?"),
    (["edit", "clip.mp4", "--output", "out"], 2, "required: prompt"),
    (["edit", "clip.mp4", "--prompt", "x"], 2, "required: output"),
    (["edit", "--prompt", "x", "--output", "out"], 2, "required: video"),
    (["edit", "clip.mp4", "--prompt", "--output", "out"], 2, "--prompt"),
    (["edit", "clip.mp4", "--prompt", " ", "--output", "out"], 2, "prompt: must not be blank"),
    (["demo"], 2, "required: output"),
    (["demo", "--output", "file/out"], 1, "output: must be a folder that can be written to, got 'file/out'"),
    (["env", "--jsn"], 2, "--jsn"),
    (["benchmark", "memry"], 2, "did you mean memory?"),
    (["benchmark", "five", "gone", "--output", "out"], 1, "folder: must be the folder of FiVE-Bench, got 'gone'"),
    (["benchmark", "five", "empty", "--output", "out"], 1, "folder: must hold the tables of FiVE-Bench"),
    (["benchmark", "five", "empty"], 2, "required: output"),
    (["benchmark", "five", "empty", "--output", "out", "--devices", "0"], 2, "devices: must be at least 1, got 0"),
    (["benchmark", "measure.yaml", "empty", "--output", "out"], 1, "measure.yaml, key numbers, entry 1, key measure: "),
    (["benchmark", "value.yaml", "empty", "--output", "out"], 1, "value.yaml, key title: must be given"),
    (["predict", "--config", "nope"], 1, "config: must be a file or one of the shipped "),
    (["predict", "--config", "edti"], 1, "got 'edti' (did you mean edit?)"),
    (["predict", "--config=./nope.yaml"], 1, "config: ./nope.yaml does not exist"),
    *(
        (["edit", "clip.mp4", "--prompt", "x", "--output", "out", "--quiet", *words], 1, said)
        for words, said in (
            (["--model", "./gone"], "model: no folder './gone'"),
            (["--model", "file"], "model: must be a pipeline folder or a hub id, got the file file"),
            (["--model", "empty"], "model: empty is no pipeline folder"),
            (["--model", "someone/no-model"], "model: no folder 'someone/no-model' here"),
            (["--num-frames", "8"], "num_frames must be 4k + 1 and at least 5, got 8"),
            (
                ["--lora", "gone.safetensors:0.5"],
                "lora: must be a safetensors file or a folder with one, got 'gone.saf",
            ),
            (["--start", "5"], "too few frames: 4 of 9 can be used (start=5)"),
            (["--num-frames", "13"], "num_frames must be at most 9, what the clip of 9 frames holds"),
            (["--height", "63"], "height must be a positive multiple of 8 pixels, got 63"),
        )
    ),
    (["report"], 2, "required: run"),
    (["report", "empty"], 1, "run: must be the output folder of a run, with its results.jsonl, got 'empty'"),
    (["metrics", "clip.mp4"], 2, "required: videos"),
    (["metrics", "clip.mp4", "clip.mp4", "--metrics", "fid"], 2, "metrics: must be of psnr, "),
    (["metrics", "clip.mp4", "empty"], 1, "videos must name at least one file, but empty holds no video"),
    (["check"], 2, "required: model"),
    (["check", "empty"], 1, "model: empty is no pipeline folder"),
    (["check", "tiny", "--revision", "v1"], 1, "revision: must be unset for a model in a folder, got 'v1'"),
    (["check", "tiny", "--width", "9"], 1, "width must be a positive multiple of 8 pixels"),
    (["edit", "clip.mp4", "--prompt", "x", "--output", "out", "--quiet", "--transformer", "file"], 1, "transformer: "),
    (["edit", "clip.mp4", "--prompt", "x", "--output", "out", "--subfolder", "../a"], 2, "subfolder: must be a folder"),
    (["export", "--output", "out", "--quiet", "--width", "9"], 1, "width must be a positive multiple of 8 pixels"),
    *(
        (["edit", "clip.mp4", "--prompt", "x", "--output", "out", *words], status, said)
        for words, status, said in (
            (["--promt", "y"], 2, "did you mean --prompt?"),
            (["--num-inference-stepz", "3"], 2, "did you mean --num-inference-steps?"),
            (["--num_inference_stepz=3"], 2, "did you mean --num-inference-steps?"),
            (["--config", "key.yaml"], 2, "did you mean num_inference_steps?"),
            (["--config", "value.yaml"], 2, "num_inference_steps: must be an integer of at least 1, got 0"),
            (["--config", "none.yaml"], 2, "none.yaml"),
            (["--steps", "many"], 2, "num_inference_steps: must be int or null, got 'many'"),
            (["--steps", "0"], 2, "num_inference_steps: must be an integer of at least 1, got 0"),
            (["--dtype", "f32"], 2, "dtype: must be 'auto', 'bfloat16', 'float16', 'float32', got 'f32'"),
            (["--accelerator", "abacus"], 2, "accelerator: must be 'auto', "),
            (["--guidance-scale=-1"], 2, "guidance_scale: must be finite and not negative, got -1.0"),
            (["--stride", "two"], 2, "stride: must be int or float or 'spread', got 'two'"),
            (["--stride", "0.5"], 2, "stride: must be at least 1, got 0.5"),
            (["--height", "0"], 2, "height: must be at least 1, got 0"),
            (["--offload", "model", "--exported", "empty"], 2, "offload: artifacts hold weights of their own"),
            (["--editor", "FlowEdt"], 2, "KVInjection, got 'FlowEdt' (did you mean FlowEdit?)"),
            (["--editor", "{oops"], 2, "editor: must be a class path or of Denoise, "),
            (["--inversion-prompt", "null"], 2, "inversion_prompt: null takes the source_prompt"),
            (["--trajectory-dir", "./out"], 2, "trajectory_dir: must not be output without save_trajectory"),
            (["--trajectory-dir", "empty"], 1, "empty/clip/trajectory.safetensors"),
            (["--mask", "gone.png"], 1, "mask gone.png does not exist"),
            (["--exported", "gone"], 1, "exported: must be a folder that export wrote, got 'gone'"),
            (["--attention", "flsh"], 2, "attention: must be auto, sdpa, "),
            (["--output", "file/out"], 1, "output: must be a folder that can be written to, got 'file/out'"),
        )
    ),
    (["edit", "nope.mp4", "--prompt", "x", "--output", "out"], 1, "video nope.mp4 does not exist"),
    (["edit", "empty", "--prompt", "x", "--output", "out"], 1, "video empty is a folder, not a file"),
    (["edit", "zero.mp4", "--prompt", "x", "--output", "out", "--quiet"], 1, "zero.mp4 is empty"),
    (["edit", "text.mp4", "--prompt", "x", "--output", "out", "--quiet"], 1, "text.mp4 is not a video"),
    (["edit", "clip.mp4", "--prompt", "x", "--output", "mine"], 1, "mine/clip"),
]


def test_a_mistake_is_one_line_with_its_status_before_anything_heavy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_video(tmp_path / "clip.mp4", torch.zeros(9, 3, 16, 16, dtype=torch.uint8), Fraction(8))
    (tmp_path / "mine" / "clip").mkdir(parents=True)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "key.yaml").write_text("num_inference_stepz: 3\n")
    numbers = "numbers: [{number: a, title: b, measure: psnrr}]"
    (tmp_path / "measure.yaml").write_text(f"title: x\nedits: '*'\ncolumns: {{video: a}}\n{numbers}\n")
    (tmp_path / "value.yaml").write_text("num_inference_steps: 0\n")
    shown, errors = run(tmp_path, *(words for words, _, _ in MISTAKES))
    errors = [line for line in errors if not line.startswith("warning: tiny ")]  # which is told before the rest
    assert len(errors) == len(MISTAKES)
    for (words, status, said), told, line in zip(MISTAKES, shown, errors, strict=True):
        assert f"status {status}\nheavy\n" in told, (words, line)
        assert line.startswith("error: "), words
        assert said in line, words
        assert line.count("did you mean") <= 1
        assert len(line) < 350  # the hub takes many words
    assert not (tmp_path / "out").exists()


def test_the_first_line_comes_before_torch(tmp_path):
    write_video(tmp_path / "clip.mp4", torch.zeros(9, 3, 16, 16, dtype=torch.uint8), Fraction(8))
    code = """
import sys
from ddim_lightning.cli.main import main
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
print(main(sys.argv[1:]))
"""
    words = ["edit", "clip.mp4", "--prompt", "x", "--output", "out"]
    for quiet, first in (([], ["loading tiny ..."]), (["--quiet"], [])):
        ended = subprocess.run(
            [sys.executable, "-c", code, *words, *quiet], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert ended.stdout == "130\n"
        warned, *others = ended.stderr.splitlines()
        assert warned.startswith("warning: tiny ")
        assert others == [*first, "error: interrupted"]


@pytest.mark.parametrize("arguments", [["edit"], ["predict", "--config", "nope"]])
def test_the_package_runs_as_a_module(arguments):
    ended = subprocess.run(
        [sys.executable, "-m", "ddim_lightning", *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode in (1, 2)
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
