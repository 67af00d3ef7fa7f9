"""A step cache in the whole job: what is planned is what is evaluated, and what stays exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddim_lightning import Clip, Denoise, DirectInversion, FlowEdit, InContextEdit, KVInjection, Outputs
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.fast import FAST_STEP_CACHE
from tests.modules import make_module

THRESHOLD = 2.5
"""Of the random model, whose embedding changes by about 1 at each of 8 steps."""


@pytest.fixture(scope="module")
def engine(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=8, inverter="DDIM", editor=Denoise())
    module.load("cpu")
    return module.engine


def run(engine, num_frames=5, batch_prompts=False, prompts=("a red circle", "a blue square"), **fields):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (num_frames, 3, 16, 24), generator=generator, dtype=torch.uint8)
    clip = Clip("clip", frames=frames, prompts=prompts, source_prompt="a cross", **fields)
    job = ClipJob(engine, clip, 5, 2.0, Outputs(reconstruct=True), batch_prompts)
    planned = job.nfe_left
    return job.run(), planned


@pytest.mark.parametrize(
    ("editor", "options"),
    [
        (Denoise(guidance_steps=(0, 5)), {"batch_prompts": True}),
        (KVInjection(steps=(0, 0.5)), {"num_frames": 13}),
        (KVInjection(eval_every=2, velocity_mask=0.5), {}),
        (DirectInversion(replay_steps=(0, 6)), {"mask": torch.ones(5, 16, 24, dtype=torch.bool)}),
        (FlowEdit(first_step=1, num_noise_samples=2), {"batch_prompts": True}),
        (FlowEdit(outside="source"), {"mask": torch.ones(5, 16, 24, dtype=torch.bool), "negative_prompt": "a cross"}),
        (InContextEdit(identity_residual=0.5), {}),
    ],
)
def test_what_is_planned_is_what_is_evaluated_and_less_than_without(editor, options, engine):
    engine = replace(engine, editor=editor)
    exact, most = run(engine, **options)
    cached, planned = run(replace(engine, step_cache=THRESHOLD), **options)
    assert sum(cached.nfe.values()) == planned < most
    assert cached.nfe["edit"] < exact.nfe["edit"]
    assert cached.nfe["invert"] == exact.nfe["invert"] and cached.metrics["vae"] == exact.metrics["vae"]
    assert torch.equal(cached.reconstruction, exact.reconstruction)
    assert not torch.equal(cached.edits[0].latents, exact.edits[0].latents)


def test_a_threshold_of_zero_is_none_to_the_byte(engine):
    exact, zero = run(engine)[0], run(replace(engine, step_cache=0.0))[0]
    assert zero.nfe == exact.nfe
    for one, other in zip(zero.edits, exact.edits, strict=True):
        assert torch.equal(one.latents, other.latents)


def test_each_edit_of_a_clip_is_as_alone(engine):
    engine = replace(engine, step_cache=THRESHOLD)
    both, alone = run(engine)[0], run(engine, prompts=("a blue square",))[0]
    assert torch.equal(both.edits[1].latents, alone.edits[0].latents)


def test_the_option_reaches_the_engine_of_either_forward_pass_and_is_told_of_where_it_is_in_vain(tiny_model, engine):
    for forward in ("fused", "diffusers"):
        module = make_module(str(tiny_model), forward=forward, step_cache=0.5, num_inference_steps=3)
        module.load("cpu")
        assert module.engine.step_cache == module.engine.make_step_cache().threshold == 0.5
    for threshold, prompts in ((THRESHOLD, ()), (0.5, ("a red circle",)), (0.0, ("a red circle",))):
        warned = run(replace(engine, step_cache=threshold), prompts=prompts)[0].warnings
        assert any(warning.startswith("step_cache:") for warning in warned) == (threshold > 0.0)
    assert engine.make_step_cache() is None


def test_fast_is_a_step_cache_beside_the_editors_own_form(tiny_model):
    for editor, given, taken in (
        (DirectInversion(), None, FAST_STEP_CACHE),
        (DirectInversion(), 0.1, 0.1),
        (KVInjection(), None, FAST_STEP_CACHE),
        (FlowEdit(eval_every=9), 0.0, 0.0),
    ):
        module = make_module(str(tiny_model), editor=editor, fast=True, step_cache=given)
        assert (module.editor, module.runtime.step_cache) == (editor.fast(), taken)
        again = type(module)(**module.hparams)
        assert (again.editor, again.runtime) == (module.editor, module.runtime)


@pytest.mark.parametrize("threshold", [-0.1, float("inf"), float("nan")])
def test_a_threshold_out_of_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"step_cache: .*got"):
        make_module(step_cache=threshold)
