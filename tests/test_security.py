"""What the page on security says: nothing that is read runs as code, nothing is written outside the output folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning import Trainer

import ddim_lightning
from ddim_lightning import DDIMInversionModule
from ddim_lightning.data.manifest import ClipRequest, find_clips
from ddim_lightning.models.loading import load_components, load_text_encoder
from tests import modules

PACKAGE = Path(ddim_lightning.__file__).parent
ROOT = PACKAGE.parent


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def list_calls():
    """Every call in the package: its file, the name that is called, and its keywords."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield path.relative_to(PACKAGE), ast.unparse(node.func), keywords


def test_no_call_unpickles_or_runs_what_it_reads():
    calls = list(list_calls())
    loads = [
        keywords for _, name, keywords in calls if name in ("torch.load",) or name.endswith("load_from_checkpoint")
    ]
    assert loads
    assert all(keywords.get("weights_only") == "True" for keywords in loads)
    assert not [one for one in calls if one[1].partition(".")[0] in ("pickle", "marshal", "shelve", "joblib")]
    assert not [one for one in calls if one[1] in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load")]
    assert not [one for one in calls if "trust_remote_code" in one[2] or one[2].get("shell") == "True"]
    without_weights = ("Tokenizer", "Processor")
    pretrained = [
        one
        for one in calls
        if one[1].endswith(".from_pretrained") and not any(kind in one[1] for kind in without_weights)
    ]
    assert pretrained
    assert all(keywords.get("use_safetensors") == "True" for *_, keywords in pretrained)


def test_lightning_is_one_whose_checkpoints_run_no_code():
    for name in ("lightning", "pytorch-lightning"):
        assert tuple(map(int, version(name).split(".")[:3])) >= (2, 6, 6)
        assert f"    {name} >= 2.6.6" in (ROOT / "setup.cfg").read_text("utf-8")


def test_pickled_weights_are_not_read(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    for weights in model.rglob("*.safetensors"):
        weights.unlink()
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
            (weights.parent / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(ValueError, match="safetensors"):
        load_components(str(model), device=torch.device("cpu"), dtype=torch.float32)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_is_not_run(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    for part in ("text_encoder", "transformer", "vae", "tokenizer"):
        (model / part / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
        (config,) = (model / part).glob("*config.json")
        content = json.loads(config.read_text()) | {
            "auto_map": {"AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
        }
        config.write_text(json.dumps(content))
    load_components(str(model), device=torch.device("cpu"), dtype=torch.float32)
    load_text_encoder(str(model), device=torch.device("cpu"), dtype=torch.float32)
    assert not (tmp_path / "ran").exists()


def load_into_a_trainer(path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.predict(modules.make_module("tiny"), [], ckpt_path=path)


@pytest.mark.parametrize("load", [DDIMInversionModule.load_from_checkpoint, load_into_a_trainer])
@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
def test_a_pickle_in_a_checkpoint_is_not_run(load, place, tmp_path):
    checkpoint = {"state_dict": {}, "hyper_parameters": {"model": "tiny"}, "pytorch-lightning_version": "2.6.6"}
    torch.save(checkpoint | {place: {"x": Touch(tmp_path / "ran")}}, tmp_path / "bad.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.exec", "torch.nn.Linear"])
def test_a_checkpoint_cannot_name_what_is_no_method_of_ours(name, tmp_path):
    hyper_parameters = {"model": "tiny", "editor": {"class_path": name, "init_args": {"command": "x"}}}
    checkpoint = {"state_dict": {}, "hyper_parameters": hyper_parameters, "pytorch-lightning_version": "2.6.6"}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"^editor: must name a concrete subclass of Editor"):
        DDIMInversionModule.load_from_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("name", ["../up", "/etc", "..", ".", "a/b", "a\\b", "\x1b[31m", "nul\x00", "-rf", "a\nb"])
def test_no_id_leaves_the_output_folder(name, tmp_path):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": "clip.mp4", "id": name}))
    with pytest.raises(ValueError, match="row 1, column id"):
        find_clips(tmp_path / "clips.jsonl", ClipRequest())


STRAY = ("av", "lightning", "diffusers", "torch", "statistics", "argparse", "yaml", "rich", "numpy", "encodings")
SCRIPT = str(Path(sys.executable).with_name("ddim-lightning"))


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "ddim_lightning"]], ids=["script", "module"])
def test_files_in_the_current_folder_do_not_stand_in_for_packages(command, tmp_path):
    for name in STRAY:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a')\nraise ImportError\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # a checkout that is not installed is found as well
    command += ["edit", "gone.mp4", "--prompt", "x", "--output", "out"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.stderr == "error: video gone.mp4 does not exist\n"
    assert not (tmp_path / "ran").exists()
