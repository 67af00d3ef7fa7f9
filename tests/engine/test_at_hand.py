"""The parts of a model are at hand under their names, and a model that is loaded already is taken as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
)
from peft import LoraConfig
from torch import nn

from ddim_lightning import DDIM, Clip, DDIMInversionModule, EditRequest, KVInjection, Schedule
from ddim_lightning.engine.config import Runtime
from ddim_lightning.models.schedulers import make_noise_schedule
from tests.network.test_adapters import TARGETS, write_lora

STEPS = Schedule(num_inference_steps=4)


@pytest.fixture
def pipeline(tiny_model):
    return CogVideoXPipeline.from_pretrained(tiny_model)


@pytest.fixture
def module(tiny_model):
    return DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", schedule=STEPS, inverter=DDIM())


def make_latents(seed=0):
    return torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_parts_are_diffusers_own_under_their_names(module):
    parts = module.components
    for name in ("transformer", "vae", "tokenizer", "scheduler", "inverse_scheduler"):
        assert getattr(module, name) is getattr(parts, name)
    assert type(module.scheduler) is CogVideoXDDIMScheduler
    assert type(module.inverse_scheduler) is DDIMInverseScheduler
    assert module.text_encoder is module.engine.prompts.text_encoder
    assert module.text_encoder is module.to_pipeline().text_encoder


def test_a_pipeline_that_is_loaded_is_taken_as_it_is(pipeline, module, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("weights were loaded again")

    wanted = module.engine.invert(make_latents(), prompt="a red circle")
    for name in ("build.load_components", "prompts.load_text_encoder"):
        monkeypatch.setattr(f"ddim_lightning.engine.{name}", fail)
    ours = DDIMInversionModule.from_pipeline(pipeline, schedule=STEPS, inverter=DDIM())
    assert ours.video_limits == module.video_limits
    ours.load("cpu")
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        assert getattr(ours, name) is getattr(pipeline, name)
    found = ours.engine.invert(make_latents(), prompt="a red circle")
    assert torch.equal(found.levels, wanted.levels)


def test_a_loaded_model_keeps_its_dtype_and_says_so(pipeline):
    ours = DDIMInversionModule.from_pipeline(pipeline, runtime=Runtime(dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"^dtype: must be auto, or float32 .*'bfloat16'"):
        ours.load("cpu")


def test_other_pipelines_are_refused_by_name(pipeline):
    pipeline.vae = None
    with pytest.raises(ValueError, match=r"^pipeline: must have transformer, vae.*CogVideoXPipeline without vae"):
        DDIMInversionModule.from_pipeline(pipeline)


def test_parts_that_do_not_fit_are_refused(pipeline, tiny_model):
    config = {**pipeline.transformer.config, "text_embed_dim": 40}
    other = CogVideoXTransformer3DModel.from_config(config)
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    with pytest.raises(ValueError, match="the transformer's text_embed_dim is 40"):
        DDIMInversionModule.from_components(transformer=other, **parts)


@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_scheduler_that_was_replaced_brings_its_noise_levels(pipeline, kind, when):
    other = kind.from_config(pipeline.scheduler.config, snr_shift_scale=3.0)
    if when == "before":
        pipeline.scheduler = other
    ours = DDIMInversionModule.from_pipeline(pipeline, schedule=STEPS, inverter=DDIM())
    ours.load("cpu")
    if when == "after":
        ours.scheduler = other
    assert torch.equal(ours.scheduler.alphas_cumprod, other.alphas_cumprod)
    assert torch.equal(ours.inverse_scheduler.alphas_cumprod, other.alphas_cumprod)
    shifted = make_noise_schedule(CogVideoXDDIMScheduler.from_config(other.config), 4)
    assert ours.engine.schedule == shifted
    assert ours.engine.invert(make_latents()).schedule == shifted


def test_results_say_which_scheduler_acts(module):
    def run():
        return module.predict_step(Clip("a", torch.zeros(9, 3, 16, 24, dtype=torch.uint8)), 0).settings["scheduler"]

    assert run() == {"class": "CogVideoXDDIMScheduler", "config": {}}
    module.scheduler = CogVideoXDPMScheduler.from_config(module.scheduler.config, snr_shift_scale=3.0)
    assert run() == {"class": "CogVideoXDDIMScheduler", "config": {"snr_shift_scale": 3.0}}


def test_a_model_that_is_not_made_leaves_the_weights_without_lora(pipeline, tmp_path):
    write_lora(pipeline.transformer, TARGETS["attention"], tmp_path)
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    options = {"schedule": STEPS, "lora": [str(tmp_path)]}
    refused = DDIMInversionModule.from_pipeline(pipeline, editor=KVInjection(layers=(0, 99)), **options)
    with pytest.raises(ValueError, match=r"^editor\.layers"):
        refused.load("cpu")
    after = pipeline.transformer.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    DDIMInversionModule.from_pipeline(pipeline, **options).load("cpu")
    assert not all(torch.equal(after[name], before[name]) for name in before)


class OwnSteps(CogVideoXDDIMScheduler):
    pass


@pytest.mark.parametrize("kind", [OwnSteps, DDIMScheduler])
def test_a_scheduler_whose_steps_would_not_be_taken_is_refused_by_name(module, kind):
    with pytest.raises(ValueError, match=f"^scheduler: must be one of CogVideoXDDIMScheduler.*got {kind.__name__}"):
        module.scheduler = kind.from_config(module.scheduler.config)


def test_weights_cannot_be_replaced_without_a_word(module):
    for name in ("transformer", "vae", "text_encoder"):
        with pytest.raises(AttributeError, match=f"^{name}: .*from_components"):
            setattr(module, name, nn.Linear(2, 2))


def test_plain_diffusers_reconstructs_from_our_noise(module):
    inversion = module.engine.invert(make_latents(), prompt="")
    ours = module.engine.reconstruct(inversion)
    theirs = module.to_pipeline()(
        "", latents=inversion.x_T, num_inference_steps=4, guidance_scale=1.0, num_frames=9, height=16, width=24,
        max_sequence_length=module.transformer.config.max_text_seq_length, output_type="latent",
    ).frames  # fmt: skip
    # Ours adds what DDIM lost on the way; without it both are one walk.
    assert inversion.residual is None
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("brought", [False, True])
def test_a_scheduler_that_is_put_into_the_pipeline_acts(brought, module, pipeline):
    if brought:
        module = DDIMInversionModule.from_pipeline(pipeline, schedule=STEPS)
        module.load("cpu")
        assert module.pipeline is pipeline
    pipeline = module.pipeline
    assert module.pipeline is pipeline
    before = module.engine.invert(make_latents()).x_T
    other = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config, snr_shift_scale=3.0)
    pipeline.scheduler = other
    after = module.engine.invert(make_latents()).x_T
    assert (after - before).abs().max() > 1e-3
    assert module.scheduler.config.snr_shift_scale == 3.0
    pipeline.scheduler = EulerDiscreteScheduler()
    for _ in range(2):
        with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
            _ = module.engine
    pipeline.scheduler = other
    assert torch.equal(module.engine.invert(make_latents()).x_T, after)
    pipeline.transformer = copy.deepcopy(pipeline.transformer)
    with pytest.raises(ValueError, match=r"^transformer: must stay .*CogVideoXTransformer3DModel"):
        _ = module.engine


def test_the_pipeline_holds_no_text_encoder_that_was_released(module):
    pipeline = module.pipeline
    module.release_text_encoder()
    assert pipeline.text_encoder is None
    assert module.pipeline is pipeline and pipeline.text_encoder is module.text_encoder


def test_adapters_that_train_keep_nothing_of_a_stage(module):
    module.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert any(weight.requires_grad for weight in module.transformer.parameters())
    engine = module.engine
    inversion = engine.invert(engine.encode(torch.zeros(5, 3, 16, 24, dtype=torch.uint8)))
    for latents in (inversion.levels, engine.reconstruct(inversion), engine.edit(inversion, EditRequest("a"))):
        assert not latents.requires_grad


def test_a_pipeline_is_no_name(pipeline, tiny_model):
    with pytest.raises(TypeError, match=r"^model: .*from_pipeline, got a CogVideoXPipeline"):
        DDIMInversionModule(pipeline)
    with pytest.raises(ValueError, match=r"^model: must be unset .* 'x'"):
        DDIMInversionModule.from_pipeline(pipeline, model="x")
    assert DDIMInversionModule(tiny_model).model == str(tiny_model)


def test_a_pipeline_that_lets_go_of_its_text_encoder_stays_as_it_is(pipeline):
    module = DDIMInversionModule.from_pipeline(pipeline, schedule=STEPS)
    module.load("cpu")
    pipeline.text_encoder = None
    assert module.engine.invert(make_latents()).x_T.isfinite().all()
    assert module.pipeline.text_encoder is None


def test_a_brought_pipeline_is_not_handed_out_with_weights_on_the_host(pipeline):
    module = DDIMInversionModule.from_pipeline(pipeline, runtime=Runtime(offload="model"))
    with pytest.raises(ValueError, match=r"^offload: must be none"):
        _ = module.pipeline
