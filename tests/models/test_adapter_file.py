"""An adapter's file is one of diffusers, and the fingerprint of a base tells models from each other."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file

import ddim_lightning
from ddim_lightning.models.adapter_card import read_adapter_card
from ddim_lightning.models.adapter_file import (
    check_base,
    digest_base,
    digest_config,
    write_adapter,
    write_adapter_of_checkpoint,
)
from tests.adapters import KV_INJECTION, make_card, make_tensors, write_random_adapter
from tests.network.test_network import VARIANTS, make_rows, make_variant, relative_error, run_diffusers


@pytest.fixture(scope="module")
def transformer():
    return make_variant(**VARIANTS["5B"])


def test_what_is_written_is_read(transformer, tmp_path):
    tensors, card = make_tensors(transformer, mark=True), make_card(transformer)
    path = write_adapter(tmp_path / "new" / "mine.safetensors", tensors, card, rank=3, alpha=6.0)
    mark = tensors.pop("source_mark.weight")
    found = load_file(path)
    assert set(found) == {f"transformer.{name}" for name in tensors}
    assert all(torch.equal(found[f"transformer.{name}"], tensor) for name, tensor in tensors.items())
    read = read_adapter_card(path)
    assert torch.equal(torch.tensor(read.source_mark), mark)
    assert (read.editor, read.base, read.objectives) == (card.editor, card.base, card.objectives)
    assert sorted(file.name for file in path.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_equal_adapters_are_equal_bytes(transformer, tmp_path):
    paths = [write_random_adapter(tmp_path / name / "mine.safetensors", transformer) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_it_acts_in_plain_diffusers_as_strongly_as_it_was_trained(transformer, tmp_path):
    """The sum W + alpha / rank B A, written out here."""
    tensors = make_tensors(transformer, rank=3)
    write_random_adapter(tmp_path / "mine.safetensors", transformer, rank=3, alpha=6.0)
    wanted, theirs = copy.deepcopy(transformer), copy.deepcopy(transformer)
    for name, layer in wanted.named_modules():
        if f"{name}.lora_A.weight" in tensors:
            layer.weight += 6.0 / 3 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    state, metadata = CogVideoXPipeline.lora_state_dict(
        str(tmp_path), weight_name="mine.safetensors", return_lora_metadata=True
    )
    CogVideoXPipeline.load_lora_into_transformer(state, theirs, metadata=metadata)
    rows = make_rows(1)
    changed = run_diffusers(wanted, *rows, 500)
    assert relative_error(run_diffusers(theirs, *rows, 500), changed) <= 1e-5
    assert relative_error(run_diffusers(transformer, *rows, 500), changed) > 1e-3


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mine.pt", lambda tensors: tensors, r"path: must end in \.safetensors"),
        ("mine.safetensors", lambda tensors: {}, "tensors: .* got none"),
        ("mine.safetensors", lambda tensors: tensors | {"x.weight": torch.zeros(1)}, r"tensors: .* got x\.weight"),
    ],
)
def test_what_is_no_adapter_is_not_written(name, change, said, transformer, tmp_path):
    tensors = change(make_tensors(transformer))
    with pytest.raises(ValueError, match=f"^{said}"):
        write_adapter(tmp_path / name, tensors, make_card(transformer), rank=3, alpha=3.0)
    assert not list(tmp_path.iterdir())


def make_checkpoint(tensors, **training):
    return {
        "state_dict": {f"lora.{name}": tensor for name, tensor in tensors.items()},
        "hyper_parameters": {
            "training": {"parts": ["lora"], "rank": 3, "alpha": None, "objectives": ["Velocity"]} | training,
            "editor": KV_INJECTION,
            "guidance_scale": 1.5,
            "schedule": {"num_inference_steps": 4},
        },
    }


@pytest.mark.parametrize("edits", [True, False])
def test_a_checkpoint_becomes_an_adapter(edits, transformer, tmp_path):
    tensors = make_tensors(transformer, mark=True)
    torch.save(make_checkpoint(tensors), tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    path = write_adapter_of_checkpoint(tmp_path / "mine.safetensors", checkpoint, digest_base(transformer), edits=edits)
    card = read_adapter_card(path)
    settings = (card.editor, card.num_inference_steps, card.guidance_scale)
    assert settings == ((KV_INJECTION, 4, 1.5) if edits else (None, None, None))
    assert card.objectives == ({"class_path": "Velocity", "init_args": {}},)
    assert (card.base, card.package_version) == (digest_base(transformer), ddim_lightning.__version__)
    assert len(card.source_mark) == transformer.proj_out.in_features
    assert len(load_file(path)) == len(tensors) - 1


@pytest.mark.parametrize("parts", [["transformer"], None])
def test_a_checkpoint_without_an_adapter_is_refused(parts, transformer, tmp_path):
    tensors = {"a.lora_A.weight": torch.zeros(1)}
    checkpoint = {} if parts is None else make_checkpoint(tensors, parts=parts)
    with pytest.raises(ValueError, match=r"^checkpoint: must be of a training with parts of lora"):
        write_adapter_of_checkpoint(tmp_path / "mine.safetensors", checkpoint, digest_base(transformer), edits=False)


def test_a_base_has_one_fingerprint_in_every_dtype_and_under_adapters(transformer, tmp_path):
    stored = copy.deepcopy(transformer).bfloat16()  # as a file keeps them
    wanted = digest_base(stored)
    assert digest_base(copy.deepcopy(stored).float()) == digest_base(copy.deepcopy(stored).half()) == wanted
    adapted = copy.deepcopy(stored)
    write_random_adapter(tmp_path / "mine.safetensors", adapted)
    state = load_file(tmp_path / "mine.safetensors")
    adapted.load_lora_adapter(state, prefix="transformer")
    assert digest_base(adapted) == wanted


def test_another_base_has_another_fingerprint(transformer):
    wanted, other = digest_base(transformer), copy.deepcopy(transformer)
    other.transformer_blocks[1].attn1.to_v.weight.mul_(1.1)
    assert digest_base(other) != wanted
    assert digest_base(other).partition("-")[0] == wanted.partition("-")[0] == digest_config(transformer.config)
    assert digest_config(dict(transformer.config) | {"num_layers": 7}) != digest_config(transformer.config)
    assert digest_config({}) == digest_config({"num_layers": 30, "in_channels": 16})  # what is left out is a default


def test_a_base_that_is_another_is_told_by_both_names(transformer, tmp_path):
    card = make_card(transformer, base="aaaaaaaa-bbbbbbbb")
    check_base(card, tmp_path / "mine.safetensors", "tiny", "aaaaaaaa")
    for found in ("aaaaaaaa-cccccccc", "dddddddd"):
        with pytest.raises(ValueError, match=rf"^lora: \S+mine\.safetensors .* aaaaaaaa.*, got tiny with {found}"):
            check_base(card, tmp_path / "mine.safetensors", "tiny", found)


def test_a_write_that_fails_leaves_what_was_there(transformer, tmp_path):
    path = write_random_adapter(tmp_path / "mine.safetensors", transformer)
    before = path.read_bytes(), path.with_suffix(".json").read_text()
    shared = torch.zeros(3, 3)  # which safetensors refuses
    tensors = {"layer.lora_A.weight": shared, "layer.lora_B.weight": shared}
    with pytest.raises(RuntimeError, match="share memory"):
        write_adapter(path, tensors, make_card(transformer, base="another"), rank=3, alpha=3.0)
    assert (path.read_bytes(), path.with_suffix(".json").read_text()) == before
