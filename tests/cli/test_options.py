"""Flags: where they come from, how they may be spelled, and what becomes of them."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import yaml

from ddim_lightning import DDIMInversionModule, VideoDataModule
from ddim_lightning.cli.main import main
from ddim_lightning.cli.options import Frames, Method
from ddim_lightning.cli.parser import make_parser, read_options
from ddim_lightning.engine.config import Outputs, Runtime, Schedule
from ddim_lightning.engine.recommended import read_recommended

EDIT = ["clip.mp4", "--prompt", "a red circle", "--output", "out"]


def read(*words):
    """Every option of `edit` by its name."""
    groups = read_options("edit", [*EDIT, *words])
    return {name: value for group in groups.values() for name, value in vars(group).items()}


def test_every_option_is_a_flag_of_edit_with_its_default_and_its_help():
    actions = {action.dest: action for action in make_parser("edit")._actions}
    for kind in (Schedule, Runtime, Outputs):
        for field in dataclasses.fields(kind):
            if field.name == "on_error":  # of one clip there is nothing to skip
                assert field.name not in actions
                continue
            action = actions[field.name]
            assert f"--{field.name.replace('_', '-')}" in action.option_strings
            assert action.default == field.default
            assert action.help, field.name


@pytest.mark.parametrize(("kind", "face"), [(Method, DDIMInversionModule), (Frames, VideoDataModule)])
def test_options_of_the_module_and_the_data_module_are_theirs(kind, face):
    taken = inspect.signature(face).parameters
    actions = {action.dest: action for action in make_parser("edit")._actions}
    for field in dataclasses.fields(kind):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else tuple(made())
        assert default == taken[field.name].default
        assert actions[field.name].help, field.name


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--num-inference-steps", "7"], "num_inference_steps", 7),
        (["--num_inference_steps=7"], "num_inference_steps", 7),
        (["--steps", "7"], "num_inference_steps", 7),
        (["--device", "cpu"], "accelerator", "cpu"),
        (["--guidance-scale", "2"], "guidance_scale", 2.0),
        (["--inversion-prompt", "null"], "inversion_prompt", None),
        (["--inversion_prompt=a_b"], "inversion_prompt", "a_b"),
        (["--stride", "spread"], "stride", "spread"),
        (["--stride", "2"], "stride", 2),
        (["--fast"], "fast", True),
        (["--no-reconstruct"], "reconstruct", False),
        (["--no_reconstruct"], "reconstruct", False),
        (["--reconstruct", "false"], "reconstruct", False),
        (["--reconstruct=false"], "reconstruct", False),
        (["--reconstruct"], "reconstruct", True),
        (["--no-require-rotary"], "require_rotary", False),
        (["--compile"], "compile", True),
        (["--compile", "max-autotune-no-cudagraphs"], "compile", "max-autotune-no-cudagraphs"),
        (["--compile=false"], "compile", False),
        (["--channels-last"], "channels_last", True),
        (["--no-channels-last"], "channels_last", False),
        (["--editor", "mine.Editor"], "editor", "mine.Editor"),
        (
            ["--editor", '{"class_path": "no.such.Editor", "init_args": {"kv_scale": 0.5}}'],
            "editor",
            {"class_path": "no.such.Editor", "init_args": {"kv_scale": 0.5}},
        ),
        (["--negative-prompt", "12"], "negative_prompt", "12"),
        (["--source-prompt", "a: b"], "source_prompt", "a: b"),
    ],
)
def test_a_flag_is_read_in_any_spelling(words, name, value):
    assert read(*words)[name] == value


def test_a_switch_leaves_the_video_its_place():
    assert read_options("edit", ["--save-trajectory", *EDIT])["video"].video == "clip.mp4"


def test_prompts_are_texts_whatever_they_look_like():
    strange = ["[moody, dark]", "null", "12", '{"a": 1}', "a: b", "--"[:1]]
    words = [word for prompt in strange for word in ("--prompt", prompt)]
    assert read(*words, "--prompt=a = b")["prompt"] == ["a red circle", *strange, "a = b"]


def test_export_takes_the_options_of_a_graph():
    groups = read_options("export", ["--output", "out", "--num-frames", "9", "--dtype", "float32", "--format", "aoti"])
    assert (groups["frames"].num_frames, groups["runtime"].dtype) == (9, "float32")
    flags = {action.dest for action in make_parser("export")._actions}
    assert not flags & {"video", "prompt", "offload", "save_trajectory", "mask", "seed"}


def test_print_config_shows_what_is_recommended_and_is_read_again(tmp_path, capsys):
    assert main(["edit", *EDIT, "--steps", "3", "--fast", "--prompt", "b", "--print-config"]) == 0
    shown = capsys.readouterr().out
    config = yaml.safe_load(shown)
    for name in ("guidance_scale", "inverter", "editor"):
        assert config[name] == read_recommended("tiny")[name]
    (tmp_path / "edit.yaml").write_text(shown)
    again = read_options("edit", ["--config", str(tmp_path / "edit.yaml"), "--steps", "4"])
    assert again["video"].prompt == ["a red circle", "b"]
    assert again["schedule"] == Schedule(num_inference_steps=4, fast=True)
    assert again["method"].editor == config["editor"]


def test_print_config_shows_the_recommendations_of_the_model_that_is_named(capsys):
    assert main(["edit", "--print_config", "--model", "zai-org/CogVideoX-5b", "--editor", "Mine"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["guidance_scale"] == read_recommended("zai-org/CogVideoX-5b")["guidance_scale"]
    assert config["editor"] == "Mine"


def test_predict_shows_the_recommendations_and_takes_the_same_names(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {init_args: {schedule: {num_inference_steps: 7}}}")
    words = ["--config", str(tmp_path / "mine.yaml"), "--model.runtime.offload", "model", "--model.guidance_scale=3"]
    assert main(["predict", *words, "--print_config"]) == 0
    module = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert module["schedule"]["num_inference_steps"] == 7
    assert module["runtime"]["offload"] == "model"
    assert module["guidance_scale"] == 3
    assert module["editor"] == read_recommended("tiny")["editor"]


def test_shipped_configs_are_found_by_name(capsys, tmp_path):
    for spelling in (["--config", "tiny_cpu"], ["-c=tiny_cpu"], ["--config=tiny_cpu.yaml"]):
        words = [*spelling, "--model.schedule.num-inference-steps=3", "--print-config"]
        assert main(["predict", *words]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["init_args"]["schedule"]["num_inference_steps"] == 3
        assert config["trainer"]["accelerator"] == "cpu"
    # a file of one's own goes before a shipped config of its name
    (tmp_path / "tiny_cpu").write_text("writer: {sheets: false}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["predict", "--config", "tiny_cpu", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["writer"]["sheets"] is False


def test_env_is_printed_for_people_and_for_machines(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for name, version in report["versions"].items():
        assert f"{name:<16}{version or 'none'}" in shown
    assert report["platform"] in shown


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ([], []),
        (["--lora", "a:0.8", "--lora=b"], ["a:0.8", "b"]),
        (["--lora", '["a:0.8", "b"]'], ["a:0.8", "b"]),
    ],
)
def test_every_lora_that_is_given_counts(words, files):
    assert read_options("edit", [*EDIT, *words])["method"].lora == files
