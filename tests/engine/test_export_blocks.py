"""One block as files without weights: a whole inversion and edit over them agrees with eager, whatever the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim_lightning import EditRequest, InContextEdit, KVInjection, Runtime
from ddim_lightning.engine import export_blocks as module_of_blocks
from ddim_lightning.engine.artifacts import BLOCKS, MANIFEST
from ddim_lightning.engine.export import export_network
from ddim_lightning.engine.export_blocks import BlockArtifacts
from ddim_lightning.models import loading
from tests import modules

SIZE = (3, 8, 8, 8)  # 9 frames of 32 x 32 pixels
CPU = torch.device("cpu")


def load(model, **settings):
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "editor": KVInjection(kv_scale=0.5)} | settings
    module = modules.make_module(str(model), **settings)
    module.load(CPU)
    return module


def run(engine, prompt="a blue cross", source_prompt="a red square"):
    latents = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        inversion = engine.invert(latents)
        request = EditRequest(prompt, source_prompt=source_prompt, guidance_scale=3.0)
        return inversion.levels[0], engine.edit(inversion, request, seed=1)


def agree(ours, theirs):
    return all(float((a - b).norm() / b.norm()) <= 1e-5 for a, b in zip(ours, theirs, strict=True))


def export(model, folder, **settings):
    export_network(load(model, **settings).engine, folder, BLOCKS, size=SIZE, guidance_scale=3.0)
    return folder


def leave_uncompiled(patch):
    """Let graphs be written and read as they are: compiling them takes minutes, and is what a slow test does."""

    def write(block, example, path):
        torch.export.save(torch.export.export(block, example), path)

    patch.setattr(module_of_blocks, "_write", write)
    patch.setattr(module_of_blocks, "_read", lambda path: torch.export.load(path).module())


@pytest.fixture
def uncompiled(monkeypatch):
    leave_uncompiled(monkeypatch)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        leave_uncompiled(patch)
        return export(tiny_model, tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def graphs(exported, uncompiled):
    return exported


def test_a_whole_inversion_and_edit_agree_with_eager_whatever_the_weights(graphs, tiny_model):
    eager, ours = load(tiny_model), load(tiny_model, exported=str(graphs))
    assert isinstance(ours.engine.network.run_block.__self__, BlockArtifacts)
    assert agree(run(ours.engine), run(eager.engine))
    equal = "", None  # to what guidance moves away from: rows that eager makes once
    assert agree(run(ours.engine, *equal), run(eager.engine, *equal))
    before = run(eager.engine)
    for module in (eager, ours):
        with torch.no_grad():
            module.components.transformer.transformer_blocks[1].attn1.to_v.weight.mul_(1.5)
    assert not agree(before, run(eager.engine)) and agree(run(ours.engine), run(eager.engine))


def test_blocks_may_be_streamed(graphs, tiny_model):
    streamed = load(tiny_model, exported=str(graphs), offload="blocks")
    assert agree(run(streamed.engine), run(load(tiny_model).engine))


def test_the_manifest_and_the_files_hold_no_weights(graphs):
    manifest = json.loads((graphs / MANIFEST).read_text())
    assert (manifest["format"], manifest["device"], manifest["dtype"]) == (BLOCKS, "cpu", "float32")
    assert [entry["name"].rpartition("-tokens")[0] for entry in manifest["layouts"]] == [
        "run-rows-1-kept-1", "run-rows-3-kept-3-reads-2-2", "run-rows-3-kept-2-reads-2-2",
    ]  # fmt: skip
    assert {path.name for path in graphs.iterdir()} == {MANIFEST, *(entry["file"] for entry in manifest["layouts"])}
    assert all("float32[" in entry["takes"] for entry in manifest["layouts"])


def test_what_was_not_exported_is_refused(graphs, tiny_model):
    grouped = load(tiny_model, exported=str(graphs), rows_per_pass=1).engine
    with pytest.raises(ValueError, match=r"^exported: the artifacts hold run-rows-1.*, got lend-rows-1-.*export again"):
        run(grouped)
    with pytest.raises(ValueError, match=r"^exported: .*, got run-rows-1-kept-1-tokens-208 that takes .*export again"):
        grouped.invert(torch.zeros(1, 3, 8, 16, 16))


@pytest.mark.parametrize(
    ("name", "value"), [("device", "cuda"), ("machine", "abacus"), ("dtype", "bfloat16"), ("torch", "1.0")]
)
def test_artifacts_for_something_else_are_refused(name, value, graphs, tmp_path):
    manifest = json.loads((graphs / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(ValueError, match=f"^exported: the artifacts in .* are for .*{value}, got "):
        BlockArtifacts(tmp_path, CPU, torch.float32)


def test_options_are_refused_where_blocks_alone_do_not_serve_them(graphs, tiny_model):
    assert Runtime(exported=str(graphs), offload="blocks", rows_per_pass=1).exported
    for option in ({"precision": "fp8"}, {"ranks_per_clip": 2}, {"compile": True}):
        with pytest.raises(ValueError, match=rf"^({next(iter(option))}|exported): .* with "):
            Runtime(exported=str(graphs), **option)
    split = KVInjection(kv_scale=0.5, outside="source")
    with pytest.raises(ValueError, match=r"^outside: .*must be edit with exported"):
        load(tiny_model, exported=str(graphs), editor=split)


ADAPTER = Path(loading.__file__).parents[1] / "assets/tiny/tiny_edit.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("random", {"editor": InContextEdit()}),
        ("random", {"rows_per_pass": 1}),
        ("tiny", {"editor": InContextEdit(), "lora": str(ADAPTER), "offload": "blocks", "context": "host"}),
    ],
    ids=["held", "grouped", "adapter"],
)
def test_whatever_changes_weights_or_rows_goes_with_them(model, settings, uncompiled, tiny_model, tmp_path):
    model = tiny_model if model == "random" else model
    folder = export(model, tmp_path / "graphs", **settings)
    assert agree(run(load(model, exported=str(folder), **settings).engine), run(load(model, **settings).engine))


PROGRAM = """
import sys
import torch
from tests.engine.test_export_blocks import load, run
torch.save(run(load(sys.argv[1], exported=sys.argv[2]).engine), sys.argv[3])
"""


@pytest.mark.slow
def test_compiled_they_run_where_there_is_no_compiler(tiny_model, tmp_path):
    folder = export(tiny_model, tmp_path / "graphs")
    bare = {"PATH": str(tmp_path), "CC": "/bin/false", "CXX": "/bin/false", "HOME": str(tmp_path)}
    bare |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [str(tiny_model), str(folder), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, env={**os.environ, **bare})
    assert agree(torch.load(tmp_path / "out.pt"), run(load(tiny_model).engine))
