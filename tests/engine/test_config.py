"""The groups of options: their rules, and that each field goes everywhere by itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from ddim_lightning import DDIMInversionModule
from ddim_lightning.cli.parser import make_parser
from ddim_lightning.engine.config import (
    Lora,
    Outputs,
    Runtime,
    Schedule,
    Source,
    Training,
    check_options,
    make_loras,
    make_options,
)
from tests.modules import GROUPS


@pytest.fixture(scope="module")
def described(tiny_model):
    module = DDIMInversionModule(str(tiny_model))
    module.load("cpu")
    return module.describe()


@pytest.fixture(scope="module")
def actions():
    """What a command line takes, by its name."""
    return {action.dest: action for action in make_parser("edit")._actions}


@pytest.mark.parametrize(
    ("group", "field"), [(name, field) for name, kind in GROUPS.items() for field in dataclasses.fields(kind)]
)
def test_a_field_reaches_checkpoints_records_and_the_command_line(group, field, described, actions):
    """A field is told of in its class alone, so an option that is added there is an option everywhere."""
    taken = 50 if field.name == "num_inference_steps" else field.default  # which is what is recommended
    assert DDIMInversionModule().hparams[group][field.name] == taken
    if field.name != "dtype":  # where the record says what was taken
        assert described[group][field.name] == taken
    if field.name != "on_error":  # of one clip there is nothing to skip
        assert actions[field.name].default == field.default
        assert actions[field.name].help


def test_an_option_in_one_place_changes_the_module(tiny_model):
    module = DDIMInversionModule(str(tiny_model), outputs={"reconstruct": False}, runtime=Runtime(dtype="float32"))
    assert module.outputs == Outputs(reconstruct=False)
    again = DDIMInversionModule(**module.hparams)
    assert (again.schedule, again.runtime, again.outputs) == (module.schedule, module.runtime, module.outputs)
    moved = DDIMInversionModule(str(tiny_model.parent), source=Source(subfolder=tiny_model.name))
    assert DDIMInversionModule(**moved.hparams).source == moved.source


def test_options_need_no_torch():
    code = "import sys, ddim_lightning.engine.config; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", [Schedule, Source, Runtime, Outputs, Training])
def test_options_are_frozen_and_come_from_themselves_or_from_a_mapping(kind):
    options = kind()
    assert make_options(kind, options) is options
    assert make_options(kind, dataclasses.asdict(options)) == options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.speed = 2


def test_lists_of_a_config_become_tuples():
    assert make_options(Training, {"parts": ["transformer"], "betas": [0.9, 0.95]}) == Training(betas=(0.9, 0.95))


@pytest.mark.parametrize("value", [{"step": 3}, 3, None])
def test_a_field_that_is_not_there_is_refused_with_those_that_are(value):
    with pytest.raises(ValueError, match=r"schedule: must be a Schedule or a mapping of num_inference_steps, .*, got"):
        make_options(Schedule, value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Schedule, {"num_inference_steps": True}, "num_inference_steps: must be an integer of at least 1, got True"),
        (
            Schedule,
            {"timestep_spacing": "linspace"},
            "timestep_spacing: must be one of trailing, angle, got 'linspace'",
        ),
        (Runtime, {"compile": "false"}, "compile: must be true, false or one of default, .*, got 'false'"),
        (Runtime, {"offload": "disk"}, "offload: must be one of none, model, blocks, got 'disk'"),
        (Runtime, {"precision": "int8"}, "precision: must be one of none, fp8, got 'int8'"),
        (Runtime, {"quantize_inversion": True}, "quantize_inversion: must be false with a precision of none, got True"),
        (Runtime, {"exported": "graphs", "compile": True}, "exported: .* must be unset with compile, got 'graphs'"),
        (Runtime, {"rows_per_pass": 0}, "rows_per_pass: must be an integer of at least 1 or null, got 0"),
        (Runtime, {"exported": "graphs", "rows_per_pass": 2}, "rows_per_pass: .* must be null with exported, got 2"),
        (Runtime, {"forward": "diffusers", "rows_per_pass": 2}, "rows_per_pass: must be unset with forward=.*, got 2"),
        (Runtime, {"exported": "graphs", "precision": "fp8"}, "precision: .* must be none with exported, got 'fp8'"),
        (Runtime, {"exported": "graphs", "offload": "model"}, "offload: .* must be none with exported, got 'model'"),
        (Runtime, {"precision": "fp8", "offload": "blocks"}, "offload: .* must be none with precision, got 'blocks'"),
        (Runtime, {"compile": True, "attention": "xformers"}, "compile: xformers .* must be false with it, got True"),
        (Runtime, {"compile": "reduce-overhead"}, "compile: CUDA graphs .* max-autotune-no-.*, got 'reduce-overhead'"),
        (Runtime, {"compile": "max-autotune"}, "compile: CUDA graphs .*, got 'max-autotune'"),
        (Runtime, {"ranks_per_clip": 0}, "ranks_per_clip: must be an integer of at least 1, got 0"),
        (Runtime, {"ranks_per_clip": 2, "exported": "graphs"}, "ranks_per_clip: .* must be 1 with exported, got 2"),
        (Runtime, {"ranks_per_clip": 2, "ranks_split": "tokens"}, "ranks_split: must be rows without forward=.*, got"),
        (Runtime, {"ranks_split": "tokens", "forward": "diffusers"}, "ranks_split: .* ranks_per_clip of 1, got"),
        (Training, {"parts": ()}, "training.parts: must be of transformer, text_encoder, lora"),
        (Training, {"optimizer": "sgd"}, "training.optimizer: must be .* of a class, got 'sgd'"),
        (Training, {"parts": ("lora", "transformer")}, "training.parts: must be of transformer and lora only one"),
        (Training, {"rank": 0}, "training.rank: must be an integer of at least 1, got 0"),
        (Training, {"alpha": 0.0}, "training.alpha: must be > 0 and finite, got 0"),
        (Training, {"targets": ()}, "training.targets: must name at least one layer"),
        (Training, {"objectives": ()}, "training.objectives: must be at least one"),
    ],
)
def test_a_rule_names_the_option_and_its_value(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"exported": "graphs"}, "exported: .* must be unset with training, got 'graphs'"),
        ({"offload": "model"}, "offload: .* must be none with training, got 'model'"),
        ({"precision": "fp8"}, "precision: .* must be none with training, got 'fp8'"),
        ({"ranks_per_clip": 2}, "ranks_per_clip: .* must be 1 with training, got 2"),
    ],
)
def test_what_trains_stays_whole_and_in_place(runtime, message):
    check_options(Runtime(**runtime), None)
    with pytest.raises(ValueError, match=message):
        check_options(Runtime(**runtime), Training())


@pytest.mark.parametrize(
    "spec", ["a/b:0.5", {"file": "a/b", "scale": 0.5}, [{"file": "a/b", "scale": 0.5}], Lora("a/b", 0.5)]
)
def test_one_lora_is_as_good_as_a_list_of_one(spec):
    assert make_loras(spec) == (Lora("a/b", 0.5),)


def test_a_lora_may_be_a_path():
    assert make_loras(Path("a")) == make_loras([Path("a")]) == (Lora("a"),)


@pytest.mark.parametrize("spec", [{"a": 0.5}, [("a", 0.5)], "a:nan", ["a:inf"]])
def test_a_scale_that_would_be_lost_is_an_error(spec):
    with pytest.raises(ValueError, match=r"^lora: .*(0\.5|nan|inf)"):
        make_loras(spec)
