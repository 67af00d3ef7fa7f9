"""A refusal says what lies where something else was looked for."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from ddim_lightning.models.checkpoint import read_limits
from ddim_lightning.models.contents import describe_folder
from ddim_lightning.models.source import BUNDLED, Source

TRANSFORMER = BUNDLED / "transformer"
LORA = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"


def save_lora(path):
    save_file({LORA: torch.zeros(2, 4)}, path)


def copy_weights(path):
    shutil.copy(TRANSFORMER / "diffusion_pytorch_model.safetensors", path)


FILES = {
    "model.ckpt": (lambda path: path.write_bytes(b"pickle"), "pickled"),
    "model.gguf": (lambda path: path.write_bytes(b"GGUF"), "GGUF"),
    "style.safetensors": (save_lora, "holds a LoRA: give it as lora"),
    "whole.safetensors": (copy_weights, "holds a transformer: .* as transformer"),
    "other.safetensors": (lambda path: save_file({"net.0.weight": torch.zeros(1)}, path), "1 tensors such as net.0"),
    "broken.safetensors": (lambda path: path.write_bytes(b"none"), "got the file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_instead_of_a_model(name, tmp_path):
    write, said = FILES[name]
    write(tmp_path / name)
    with pytest.raises(NotADirectoryError, match=f"^model: .*{said}") as caught:
        read_limits(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    if name != "whole.safetensors":
        with pytest.raises(ValueError, match=f"^transformer: .*{'' if 'got' in said else said}"):
            read_limits("tiny", Source(transformer=str(tmp_path / name)))


@pytest.mark.parametrize("name", ["style.safetensors", "whole.safetensors", "model.ckpt"])
def test_a_folder_with_such_a_file(name, tmp_path):
    write, said = FILES[name]
    write(tmp_path / name)
    for source, argument in ((Source(), "model"), (Source(transformer=str(tmp_path)), "transformer")):
        with pytest.raises(FileNotFoundError, match=f"^{argument}: .*it holds {name}.*{said}"):
            read_limits("tiny" if source.transformer else str(tmp_path), source)


def test_the_folder_of_a_transformer_alone():
    with pytest.raises(FileNotFoundError, match=r"it holds .*config\.json.*a transformer: .* as transformer"):
        read_limits(str(TRANSFORMER))


def test_another_class_few_names_and_nothing(tmp_path):
    assert describe_folder(tmp_path / "gone") == "it is not there"
    assert describe_folder(tmp_path) == "it is empty"
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert "UNet2DConditionModel" in describe_folder(tmp_path)
    for k in range(9):
        (tmp_path / f"file-{k}").touch()
    assert "file-3 and 5 more" in describe_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json" in describe_folder(tmp_path)
