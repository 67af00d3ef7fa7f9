"""Muon beside AdamW: each trains its share as it would alone, and a saved state goes on exactly."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn
from torch.optim import AdamW, Muon

from ddim_lightning.engine.config import Training
from ddim_lightning.engine.optimizers import MuonAdamW, is_block_matrix
from ddim_lightning.engine.training import make_optimizer
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.tiny.training import write_untrained_tiny

SIZES = {
    "transformer.patch_embed.proj.weight": (7, 5),
    "transformer.transformer_blocks.0.attn1.to_q.weight": (7, 7),
    "transformer.transformer_blocks.0.attn1.to_q.bias": (7,),
    "transformer.transformer_blocks.0.norm1.linear.weight": (21, 7),
    "transformer.transformer_blocks.1.ff.net.0.proj.weight": (11, 7),
    "text_encoder.shared.weight": (13, 3),
}
BLOCK_MATRICES = {name for name in SIZES if "to_q.weight" in name or "ff.net" in name}
SETTINGS = {"learning_rate": 0.03, "betas": (0.8, 0.9), "weight_decay": 0.2}


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(size, generator=generator)) for name, size in SIZES.items()}


def set_gradients(parameters, step):
    """Gradients that depend on the values, so that one wrong step changes all that follow."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) + 0.1 * parameter.detach()


def make_training(parameters, *, optimizer="muon", **changes):
    settings = {"optimizer": optimizer, "warmup_steps": 3, **SETTINGS, **changes}
    return make_optimizer(parameters.items(), 9, Training(**settings))


def train(parameters, training, steps):
    for step in steps:
        set_gradients(parameters, step)
        training["optimizer"].step()
        training["lr_scheduler"]["scheduler"].step()


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_each_share_trains_as_it_would_alone():
    together, apart = make_parameters(), make_parameters()
    training = make_training(together)
    matrices = [apart[name] for name in SIZES if name in BLOCK_MATRICES]
    others = [apart[name] for name in SIZES if name not in BLOCK_MATRICES]
    muon = Muon(matrices, lr=0.03, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(others, lr=0.03, betas=(0.8, 0.9), weight_decay=0.2)
    factor = training["lr_scheduler"]["scheduler"].lr_lambdas[0]
    train(together, training, range(5))
    for step in range(5):
        set_gradients(apart, step)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = 0.03 * factor(step)
            optimizer.step()
    assert_equal(together, apart)
    assert all(not torch.equal(apart[name], start) for name, start in make_parameters().items())


def test_warm_up_and_cosine_reach_both_shares():
    parameters = make_parameters()
    training = make_training(parameters)
    rates = []
    for step in range(9):
        rates.append([group["lr"] for group in training["optimizer"].param_groups])
        train(parameters, training, range(step, step + 1))
    muon, adamw = zip(*rates, strict=True)
    assert muon == adamw
    assert muon[0] == pytest.approx(0.03 / 3)
    assert max(muon) == muon[2] == pytest.approx(0.03 * (0.5 + 0.5 * 0.766044443), rel=1e-6)  # cos(2 pi / 9)
    assert list(muon[2:]) == sorted(muon[2:], reverse=True)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_state_saved_in_the_middle_goes_on_exactly(tmp_path, optimizer):
    unbroken = make_parameters()
    first = make_training(unbroken, optimizer=optimizer)
    train(unbroken, first, range(3))
    torch.save(
        {
            "parameters": {name: parameter.detach() for name, parameter in unbroken.items()},
            "optimizer": first["optimizer"].state_dict(),
            "scheduler": first["lr_scheduler"]["scheduler"].state_dict(),
        },
        tmp_path / "state.pt",
    )
    train(unbroken, first, range(3, 7))
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = {name: nn.Parameter(value.clone()) for name, value in saved["parameters"].items()}
    forgetful = {name: nn.Parameter(value.clone()) for name, value in saved["parameters"].items()}
    second, fresh = (make_training(parameters, optimizer=optimizer) for parameters in (resumed, forgetful))
    second["optimizer"].load_state_dict(saved["optimizer"])
    for training in (second, fresh):
        training["lr_scheduler"]["scheduler"].load_state_dict(saved["scheduler"])
    train(resumed, second, range(3, 7))
    train(forgetful, fresh, range(3, 7))
    assert_equal(resumed, unbroken)
    assert all(not torch.equal(forgetful[name], unbroken[name]) for name in SIZES)


def test_a_copy_trains_as_the_original():
    parameters = make_parameters()
    training = make_training(parameters)
    train(parameters, training, range(2))
    copied, optimizer = copy.deepcopy((parameters, training["optimizer"]))
    for step in range(2, 4):
        set_gradients(parameters, step)
        set_gradients(copied, step)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        training["optimizer"].param_groups[0]["lr"] = training["optimizer"].param_groups[1]["lr"] = 0.01
        optimizer.step()
        training["optimizer"].step()
    assert_equal(copied, parameters)


def test_a_closure_is_evaluated_once_with_gradients():
    parameters = make_parameters()
    optimizer = make_training(parameters)["optimizer"]
    seen = []

    def evaluate():
        optimizer.zero_grad()
        loss = torch.stack([parameter.square().sum() for parameter in parameters.values()]).sum()
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    losses = [float(optimizer.step(evaluate).detach()) for _ in range(3)]
    assert losses == seen
    assert losses[2] < losses[1] < losses[0]


def test_a_parameter_without_a_gradient_stays():
    parameters = make_parameters()
    optimizer = make_training(parameters)["optimizer"]
    set_gradients(parameters, 0)
    still = {"transformer.transformer_blocks.0.attn1.to_q.weight", "text_encoder.shared.weight"}
    for name in still:
        parameters[name].grad = None
    optimizer.step()
    assert {name for name, start in make_parameters().items() if torch.equal(start, parameters[name])} == still


def test_muon_takes_the_matrices_of_the_tiny_transformer_s_blocks(tmp_path):
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(4, 6, 8),
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=64,
        sample_width=64,
    )
    vae.save_pretrained(tmp_path / "vae")
    folder = write_untrained_tiny(tmp_path / "start", tmp_path / "vae")
    on_cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    modules = {
        "transformer": load_components(str(folder), **on_cpu).transformer,
        "text_encoder": load_text_encoder(str(folder), **on_cpu),
    }
    named = [
        (f"{part}.{name}", parameter)
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    ]
    taken = [name for name, parameter in named if is_block_matrix(name, parameter)]
    inside = r"transformer\.transformer_blocks\.[0-5]\.(attn1\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))\.weight"
    assert len(taken) == 6 * 6
    assert all(re.fullmatch(inside, name) for name in taken)
    left = {name for name, parameter in named if parameter.ndim == 2} - set(taken)
    outside = (r"\.norm[12]\.linear\.", r"^transformer\.(time_embedding|norm_out|proj_out)\.", r"^text_encoder\.")
    outside += (r"^transformer\.patch_embed\.text_proj\.",)
    assert all(any(re.search(pattern, name) for pattern in outside) for name in left)
    assert all(any(re.search(pattern, name) for name in left) for pattern in outside)
    share = sum(parameter.numel() for name, parameter in named if name in set(taken))
    assert share == 6 * (4 + 2 * 4) * 128**2  # attention, and a feed-forward part of four times the width


def test_muon_without_a_matrix_to_train_is_refused():
    parameters = {"text_encoder.shared.weight": make_parameters()["text_encoder.shared.weight"]}
    with pytest.raises(ValueError, match=r"^training\.optimizer: muon needs weight matrices of transformer blocks"):
        make_training(parameters)


def test_a_weight_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="Muon only supports 2D"):
        MuonAdamW([nn.Parameter(torch.zeros(2, 3, 4))], [nn.Parameter(torch.zeros(2))], **SETTINGS)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"training\.optimizer: must be .*adamw.* got 'lion'"):
        Training(optimizer="lion")
