"""The network as files: every format runs a whole inversion and edit, and programs without our code run them too."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddim_lightning import EditRequest, FlowEdit, KVInjection
from ddim_lightning.cli.main import main
from ddim_lightning.engine.artifacts import MANIFEST
from ddim_lightning.engine.export import (
    EDIT,
    FORMATS,
    GUIDED_PAIR,
    ONE_ROW,
    ArtifactNetwork,
    export_network,
    layout_name,
    list_layouts,
)
from ddim_lightning.network.layout import RowLayout
from tests import modules

SIZE = (3, 8, 8, 8)  # 9 frames of 32 x 32 pixels
CPU = torch.device("cpu")
TUNED = FlowEdit(
    first_step=0.08, guidance_steps=(0.42, 0.8), num_noise_samples=2, source_guidance=1.0, kv_scale=0.08, eval_every=2
)
# Compiling ahead of time takes a minute: CI runs it, the default test run does not.
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind == "aoti" else []) for kind in FORMATS]


def make_module(tiny_model, **settings):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "editor": KVInjection(kv_scale=0.5)} | settings
    return modules.make_module(str(tiny_model), **settings)


def load(tiny_model, **settings):
    module = make_module(tiny_model, **settings)
    module.load(CPU)
    return module


def run(engine, prompt="a blue cross", source_prompt="a red square"):
    latents = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        inversion = engine.invert(latents)
        request = EditRequest(prompt, source_prompt=source_prompt, guidance_scale=3.0)
        return inversion.levels[0], engine.edit(inversion, request, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts") / request.param
    words = ["--model", str(tiny_model), "--height", "32", "--width", "32", "--num-frames", "9", "--steps", "4"]
    editor = json.dumps({"class_path": "KVInjection", "init_args": {"kv_scale": 0.5}})
    words += ["--guidance-scale", "3", "--editor", editor, "--accelerator", "cpu", "--quiet"]
    assert main(["export", "--format", request.param, "--output", str(folder), *words]) == 0
    return folder


def test_a_whole_inversion_and_edit_agree_with_eager(exported, tiny_model):
    # Also where what guidance moves away from is the prompt itself: rows that eager makes once.
    prompts = (("a blue cross", "a red square"), ("", None))
    eager = [found for pair in prompts for found in run(load(tiny_model).engine, *pair)]
    module = load(tiny_model, exported=str(exported))
    network = module.engine.denoiser.network
    assert isinstance(network, ArtifactNetwork)
    with torch.no_grad():  # our own forward must not run
        for parameter in module.components.transformer.parameters():
            parameter.zero_()
    found = [found for pair in prompts for found in run(module.engine, *pair)]
    for ours, theirs in zip(found, eager, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5


def test_a_pipeline_wants_the_transformer_itself(traced, tiny_model):
    with pytest.raises(ValueError, match=r"^exported: must be unset for a pipeline.*, got "):
        _ = load(tiny_model, exported=str(traced)).pipeline


def test_the_manifest_says_what_they_take(exported):
    manifest = json.loads((exported / MANIFEST).read_text())
    assert (manifest["format"], manifest["device"], manifest["dtype"]) == (exported.name, "cpu", "float32")
    assert (manifest["latents"], manifest["text"], manifest["num_layers"]) == (list(SIZE), [16, 24], 3)
    assert [entry["file"] for entry in manifest["layouts"]][:3] == [
        f"{layout_name(layout)}.{FORMATS[exported.name]}" for layout in (ONE_ROW, GUIDED_PAIR, EDIT)
    ]


PROGRAM = """
import json, sys
from pathlib import Path
import torch
folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
entry = manifest["layouts"][2]
load = {
    "aoti": lambda path: torch._inductor.aoti_load_package(path),
    "torch-export": lambda path: torch.export.load(path).module(),
    "torchscript": torch.jit.load,
}[manifest["format"]]
run = load(str(folder / entry["file"]))
generator = torch.Generator().manual_seed(0)
latents = torch.randn(entry["rows"], *manifest["latents"], generator=generator)
embeds = torch.randn(entry["rows"], *manifest["text"], generator=generator)
with torch.no_grad():
    velocity = run(latents, embeds, torch.tensor(640), torch.tensor([1.0, 0.0, 0.25]))
assert not {"diffusers", "transformers", "ddim_lightning"} & set(sys.modules)
torch.save((latents, embeds, velocity), folder / "out.pt")
"""


def test_a_program_without_our_code_runs_them(exported, tiny_model):
    subprocess.run([sys.executable, "-I", "-c", PROGRAM, str(exported)], check=True)
    latents, embeds, velocity = torch.load(exported / "out.pt")
    network = load(tiny_model).engine.network
    with torch.inference_mode():
        kv_scale = torch.tensor([1.0, 0.0, 0.25])
        ours = network(latents, embeds, 640, wanted=2, reads=(2, 2), kv_scale=kv_scale)
    assert velocity.shape == (2, *SIZE)
    assert float((velocity - ours).norm() / ours.norm()) <= 1e-5


def test_layouts_are_those_of_the_editor(tiny_model):
    usual = [ONE_ROW, GUIDED_PAIR, EDIT]
    engine = load(tiny_model).engine
    assert list_layouts(engine, SIZE, 3.0) == usual
    assert list_layouts(engine, SIZE, 1.0) == [*usual, RowLayout(2, 1, (1,))]
    engine = load(tiny_model, editor=replace(TUNED, guidance_steps=(2, None))).engine
    assert list_layouts(engine, SIZE, 3.0) == [*usual, RowLayout(4, 4, (2, 3)), RowLayout(6, 6, (4, 4, 5, 5))]


@pytest.fixture(scope="module")
def traced(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traced")
    engine = load(tiny_model).engine
    export_network(engine, folder, "torchscript", size=SIZE, guidance_scale=3.0)
    return folder


def test_what_was_not_exported_is_refused(traced, tiny_model):
    engine = load(tiny_model, exported=str(traced), editor=TUNED).engine
    missing = "^exported: the artifacts hold rows-1-wanted-1, .*, got rows-4-wanted-4-reads-2-3; export again"
    with pytest.raises(ValueError, match=missing):
        run(engine)
    size = r"^exported: the artifacts take latents of \(3, 8, 8, 8\), got \(3, 8, 16, 16\)$"
    with pytest.raises(ValueError, match=size):
        engine.invert(torch.zeros(1, 3, 8, 16, 16))


def test_artifacts_of_something_else_are_refused(traced, tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^exported: no artifacts in .*: manifest.json is missing$"):
        make_module(tiny_model, exported=str(tmp_path)).load(CPU)
    with pytest.raises(ValueError, match=r"^exported: the artifacts in .* are of another model, or of another dtype$"):
        make_module(Path("tiny"), exported=str(traced)).load(CPU)
    manifest = json.loads((traced / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"device": "cuda"}))
    with pytest.raises(ValueError, match=r"^exported: the artifacts in .* are for cuda, got cpu$"):
        ArtifactNetwork(tmp_path, CPU)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"^exported: .*manifest.json must have schema .*, got None$"):
        ArtifactNetwork(tmp_path, CPU)


@pytest.mark.parametrize(
    ("words", "rule", "value"),
    [
        (["--num-frames", "8"], "num_frames must be 4k + 1", "got 8"),
        (["--num-frames", "13"], "num_frames must be at most 9", "got 13"),
        (["--height", "33"], "height must be", "got 33"),
    ],
)
def test_sizes_that_cannot_be_are_refused(words, rule, value, tmp_path, capsys):
    assert main(["export", "--output", str(tmp_path / "out"), *words]) != 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert rule in said and value in said


@pytest.mark.parametrize("other", [{"compile": True}, {"training": {"parts": ["transformer"]}}])
def test_artifacts_are_neither_compiled_nor_trained(other):
    with pytest.raises(ValueError, match=f"^exported: .*must be unset with {next(iter(other))}, got 'folder'$"):
        modules.make_module("tiny", exported="folder", **other)
