"""Objectives over a real transformer: each becomes small in a few steps, alone and beside others."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from ddim_lightning.diffusion.objectives import InContextEditing, InversionConsistency, Objective, Samples, Velocity
from ddim_lightning.engine.parts import describe_part, make_part
from ddim_lightning.engine.training import compute_loss, compute_objectives
from tests.modules import make_module

CAPTIONS = ["a red circle moving right on a blue background", "a green square moving up on a white background"]


def draw_samples():
    generator = torch.Generator().manual_seed(0)
    clips, sources = torch.randn(2, 2, 2, 8, 8, 8, generator=generator) * 0.8
    return Samples(clips, CAPTIONS, sources, CAPTIONS[::-1])


@pytest.fixture
def module():
    module = make_module("tiny")
    module.load("cpu")
    return module


@pytest.mark.parametrize(
    "objectives",
    [
        (Velocity(),),
        (Velocity(min_snr_gamma=5.0, num_inference_steps=(4,)),),
        (InContextEditing(num_inference_steps=(4,)),),
        (InversionConsistency(num_inference_steps=10),),
        (InversionConsistency(num_inference_steps=10, gradients="denoise"),),
        (Velocity(), InversionConsistency(num_inference_steps=10, weight=10.0)),
    ],
)
def test_a_few_steps_of_an_adapter_lower_the_loss(module, objectives):
    module.transformer.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_v", "ff.net.2"]))
    trained = [weight for name, weight in module.transformer.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    losses = []
    for _ in range(8):
        loss, _ = compute_objectives(module.engine, objectives, draw_samples(), torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_the_loss_of_clips_is_the_velocity_objective(module):
    samples, generators = draw_samples(), [torch.Generator().manual_seed(4) for _ in range(2)]
    with torch.no_grad():
        loss = compute_loss(module.engine, samples.latents, CAPTIONS, generators[0], 0.5)
        total, losses = compute_objectives(module.engine, (Velocity(),), samples, generators[1], 0.5)
    assert loss == total == losses["Velocity"]


def test_objectives_are_chosen_as_inverters_and_editors_are():
    package = "ddim_lightning.diffusion.objectives"
    spec = {"class_path": "Velocity", "init_args": {"min_snr_gamma": 5.0, "num_inference_steps": [4, 10]}}
    made = make_part(spec, Objective, package, "objectives")
    assert made == Velocity(min_snr_gamma=5.0, num_inference_steps=(4, 10))
    assert make_part(describe_part(made), Objective, package, "objectives") == made
    with pytest.raises(ValueError, match=r"^objectives: .*Objective"):
        make_part("Objective", Objective, package, "objectives")
