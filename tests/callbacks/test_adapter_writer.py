"""What a training leaves behind: a file that a module loads, with a card that says how it is used."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from ddim_lightning import AdapterWriter, DDIMInversionModule, InContextEdit, Schedule
from ddim_lightning.models.adapter_card import read_adapter_card
from tests.test_module import Latents
from tests.test_training_module import IN_CONTEXT, Pairs, fit, make_module


def test_an_adapter_that_reads_sources_is_one_for_the_modules_editor(tiny_model, tmp_path):
    module = make_module(tiny_model, IN_CONTEXT)
    module = DDIMInversionModule(
        str(tiny_model),
        training=module.training_options,
        editor=InContextEdit(identity_residual=0.5),
        schedule=Schedule(num_inference_steps=4),
        guidance_scale=1.5,
    )
    fit(module, Pairs(), AdapterWriter(tmp_path / "edit.safetensors", dtype="float16"))
    card = read_adapter_card(tmp_path / "edit.safetensors")
    assert card is not None and card.editor_name == "InContextEdit"
    assert (card.num_inference_steps, card.guidance_scale, len(card.source_mark or ())) == (4, 1.5, 48)
    weights = load_file(tmp_path / "edit.safetensors")
    trained = module.state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, trained[f"lora.{name.removeprefix('transformer.')}"].half())
    used = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", lora=str(tmp_path / "edit.safetensors"))
    assert used.editor == InContextEdit(identity_residual=0.5)
    assert (used.schedule.num_inference_steps, used.guidance_scale) == (4, 1.5)


def test_the_best_checkpoint_goes_before_the_last_step(tiny_model, tmp_path):
    keep = ModelCheckpoint(tmp_path, "best", monitor="val/loss", mode="max")  # the first of all is the worst
    module = make_module(tiny_model, learning_rate=1e-3)
    fit(module, Latents(), keep, AdapterWriter(tmp_path / "mine.safetensors"), val_check_interval=2)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    for name, weight in load_file(tmp_path / "mine.safetensors").items():
        assert torch.equal(weight, best["state_dict"][f"lora.{name.removeprefix('transformer.')}"])
    assert best["global_step"] < 6
    card = read_adapter_card(tmp_path / "mine.safetensors")
    assert card is not None and card.editor is None and card.source_mark is None


def test_what_trains_no_lora_is_refused_before_it_trains(tiny_model, tmp_path):
    module = DDIMInversionModule(str(tiny_model), training={"parts": ["transformer"]})
    with pytest.raises(ValueError, match=r"callbacks: AdapterWriter needs training\.parts of lora"):
        fit(module, Latents(), AdapterWriter(tmp_path / "mine.safetensors"))
    with pytest.raises(ValueError, match=r"file: must end in \.safetensors, got 'mine\.bin'"):
        AdapterWriter("mine.bin")
