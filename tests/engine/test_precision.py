"""Edits in 8 bits: what changes, what must not, and what a result says about it."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, EditRequest, FlowEdit, KVInjection
from ddim_lightning.engine.trajectory import make_fingerprint
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.network.adapters import Linear
from ddim_lightning.network.quantized import Fp8Linear
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from tests import modules

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}

FP8_EDIT = 0.2
"""Largest relative L2 distance of an edit in fp8 from the exact one, on the random tiny model."""


@pytest.fixture(autouse=True)
def cpu_multiplies_fp8(monkeypatch):
    """A CPU runs the very product, slowly; only its name is refused."""
    monkeypatch.setattr("ddim_lightning.engine.build.check_fp8", lambda device: None)


def make_clip(**fields):
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    values = {"prompts": ("a red circle", "a blue cross"), "source_prompt": "a square"} | fields
    return Clip("clip", frames, **values)


def make_module(model, **options):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "on_error": "raise", "save_trajectory": True}
    return modules.make_module(str(model), **settings | options)


def predict(module, clip=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = DataLoader([clip or make_clip()], batch_size=None)
        return Trainer(**QUIET).predict(module, data)[0]


def relative_error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def equal_inversions(one, other):
    names = set(one.trajectory) | set(other.trajectory)
    same = all(torch.equal(one.trajectory[name], other.trajectory[name]) for name in names)
    return same and torch.equal(one.reconstruction, other.reconstruction)


@pytest.mark.parametrize("batch_prompts", [False, True])
@pytest.mark.parametrize("editor", [None, KVInjection()])
def test_only_the_edits_change_and_by_little(tiny_model, editor, batch_prompts):
    exact = predict(make_module(tiny_model, editor=editor, batch_prompts=batch_prompts))
    module = make_module(tiny_model, editor=editor, batch_prompts=batch_prompts, precision="fp8")
    ours = predict(module)
    assert equal_inversions(ours, exact)
    assert ours.metrics == exact.metrics
    assert {name for name in ours.fingerprint if ours.fingerprint[name] != exact.fingerprint[name]} == {"settings"}
    for edited, theirs in zip(ours.edits, exact.edits, strict=True):
        assert 0.0 < relative_error(edited.latents, theirs.latents) <= FP8_EDIT
    assert ours.nfe == exact.nfe and ours.nfe["edit"] > 0
    runtime = ours.settings["runtime"]
    assert (runtime["precision"], runtime["quantize_inversion"]) == ("fp8", False)
    assert exact.settings["runtime"]["precision"] == "none" and ours.warnings == exact.warnings
    assert module.engine.denoiser.network is module.engine.network
    assert all(type(block.qkv) is Fp8Linear for block in module.engine.edit_denoiser.network.blocks)
    assert all(type(block.qkv) is Linear for block in module.engine.network.blocks)


def test_the_inversion_too_on_request(tiny_model):
    exact, edits = predict(make_module(tiny_model)), predict(make_module(tiny_model, precision="fp8"))
    module = make_module(tiny_model, precision="fp8", quantize_inversion=True)
    ours = predict(module)
    assert not equal_inversions(ours, exact)
    assert 0.0 < relative_error(ours.trajectory["levels"], exact.trajectory["levels"]) <= FP8_EDIT
    assert ours.nfe == exact.nfe and ours.settings["runtime"]["quantize_inversion"] is True
    assert not torch.equal(ours.edits[0].latents, exact.edits[0].latents)
    # A trajectory in 8 bits is not taken for an exact one, nor the other way round.
    assert make_fingerprint(module.engine, make_clip(), "")["model"] != edits.fingerprint["model"]


def test_compiled_edits_agree_with_eager_ones(tiny_model):
    torch._dynamo.reset()
    settings = {"precision": "fp8", "num_inference_steps": 2, "reconstruct": False}
    eager = predict(make_module(tiny_model, **settings))
    compiled = predict(make_module(tiny_model, compile=True, **settings))
    for ours, theirs in zip(compiled.edits, eager.edits, strict=True):
        assert relative_error(ours.latents, theirs.latents) <= 1e-2  # where rounding to 8 bits tips over


def test_in_bfloat16(tiny_model):
    exact = predict(make_module(tiny_model, dtype="bfloat16"))
    ours = predict(make_module(tiny_model, dtype="bfloat16", precision="fp8"))
    assert equal_inversions(ours, exact)
    assert 0.0 < relative_error(ours.edits[0].latents, exact.edits[0].latents) <= FP8_EDIT


def test_the_bundled_model_loses_next_to_nothing():
    (clip,) = ShapesDataModule(predict_clips=1, edits=("color",)).predict_dataloader()
    exact, ours = (
        predict(modules.make_module("tiny", num_inference_steps=10, reconstruct=False, precision=precision), clip)
        for precision in ("none", "fp8")
    )
    edited, theirs = ours.edits[0], exact.edits[0]
    assert 0.0 < relative_error(edited.latents, theirs.latents) <= 0.03
    assert psnr(edited.frames / 255, theirs.frames / 255) >= 45.0


def test_a_clip_without_prompts_is_told_so(tiny_model):
    clip = make_clip(prompts=())
    said = "precision: has no effect on a clip without prompts, unless with quantize_inversion"
    assert said in predict(make_module(tiny_model, precision="fp8"), clip).warnings
    assert said not in predict(make_module(tiny_model, precision="fp8", quantize_inversion=True), clip).warnings


@pytest.mark.parametrize("reconstruct", [False, True])
def test_inversions_that_are_not_made_are_not_quantized_and_that_is_said(reconstruct, tiny_model):
    options = {"editor": FlowEdit(), "save_trajectory": False, "reconstruct": reconstruct}
    result = predict(make_module(tiny_model, precision="fp8", quantize_inversion=True, **options))
    assert any(sentence.startswith("quantize_inversion: ") for sentence in result.warnings) is not reconstruct


@pytest.mark.gpu
def test_fp8_edits_on_the_device(tiny_model):
    options = {"dtype": "bfloat16", "reconstruct": False}
    modules = [make_module(tiny_model, precision=precision, **options) for precision in ("none", "fp8")]
    for module in modules:
        module.load(torch.device("cuda"))
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0)).cuda()
    request = EditRequest("a red circle", source_prompt="a square", guidance_scale=3.0)
    with torch.inference_mode():
        inversions = [module.engine.invert(latents) for module in modules]
        exact, ours = (module.engine.edit(inversions[0], request) for module in modules)
    assert torch.equal(inversions[0].levels, inversions[1].levels)
    assert 0.0 < relative_error(ours, exact) <= 0.2
