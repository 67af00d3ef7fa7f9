"""The closed form of a model's memory, against the tensors that are alive at once, on shapes without values."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.published import COGVIDEOX_5B_TRANSFORMER, COGVIDEOX_5B_VAE
from ddim_lightning.engine.config import Training
from ddim_lightning.models.checkpoint import make_limits
from ddim_lightning.models.lora_layers import add_lora
from ddim_lightning.models.memory import (
    Size,
    count_parameters,
    count_pass_tensors,
    find_largest,
    fit_rows,
    predict_context,
    predict_peaks,
    predict_training,
)
from ddim_lightning.models.vae import encode_video, stream_decoded
from ddim_lightning.models.weight_files import Header
from ddim_lightning.network.attention import Attention
from ddim_lightning.network.network import Network
from ddim_lightning.network.predictor import TransformerPredictor

META = torch.device("meta")
LIMITS = make_limits(COGVIDEOX_5B_TRANSFORMER, COGVIDEOX_5B_VAE)
FULL = Size(49, 480, 720, rows=4, sources=2)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that were made inside and are alive."""

    def __init__(self, *known):
        """Leave out tensors that are known, of which views may be made."""
        super().__init__()
        self.alive, self.watched, self.now, self.peak = {}, {}, 0, 0
        self.alive |= {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:  # such a function would hide what it allocates
                made = function.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.alive:
                self.alive[key] = tensor.untyped_storage().nbytes()
                self.now += self.alive[key]
                self.peak = max(self.peak, self.now)
                self.watched[key] = weakref.ref(tensor.untyped_storage(), lambda _, key=key: self.forget(key))
        return made

    def forget(self, key):
        self.now -= self.alive.pop(key)
        del self.watched[key]


def make_empty(kind, config):
    with META:
        return kind(**config).to(torch.bfloat16).eval().requires_grad_(False)


def attend(query, key, value, bias):
    """Keeps no matrix of weights, as the kernels of a GPU do."""
    return torch.empty_like(query.transpose(1, 2)).transpose(1, 2)


TENSOR = 17_776 * 3072
"""Values of a tensor of one row of CogVideoX-5B at full size."""


def attend_lse(query, key, value):
    return attend(query, key, value, None), torch.empty(query.shape[:3], device=META)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("rows", "reads", "together"),
    [
        (1, (), None),
        (4, (), None),
        (4, (), 2),
        (3, (2, 2), 1),
        (4, (2, 3), 2),  # the script's
        (6, (4, 4, 5, 5), None),  # the recommended edit: guided, under two noises
        (6, (4, 4, 5, 5), 3),
        (6, (4, 4, 5, 5), 1),
    ],
)
def test_rows(rows, reads, together):
    config = {**COGVIDEOX_5B_TRANSFORMER, "num_layers": 2}
    network = Network(make_empty(CogVideoXTransformer3DModel, config), Attention("none", attend, attend_lse))
    network.choose_rows = lambda *_: together or rows
    network.get_modulation(5)
    latents = torch.empty(rows, 13, 16, 60, 90, device=META, dtype=torch.bfloat16)
    embeds = torch.empty(rows, 226, 4096, device=META, dtype=torch.bfloat16)
    network.get_rotary(latents)
    _ = network.blocks
    with torch.no_grad(), LiveBytes(*network.transformer.parameters(), latents, embeds) as live:
        network(latents, embeds, 5, reads=reads)
    predicted = count_pass_tensors(rows, len(set(reads)), together) * TENSOR * 2
    # Groups are as even as can be, and may be smaller than what they are allowed to be.
    assert live.peak <= predicted
    assert live.peak == pytest.approx(predicted, rel=0.25 if together == 3 else 0.03)


def test_the_largest_group_that_fits():
    assert [fit_rows(6, 2, room) for room in (58, 57, 50, 30, 20, 0)] == [6, 5, 4, 2, 1, 1]
    for group in range(1, 6):
        exactly = count_pass_tensors(6, 2, group)
        assert fit_rows(6, 2, exactly) == group and fit_rows(6, 2, exactly - 0.1) == max(1, group - 1)
    assert fit_rows(1, 0, 0) == 1


class Attend(torch.autograd.Function):
    """Keeps what kernels of a GPU keep for the backward pass."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = attend(query, key, value, None)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, _):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rows", "reads", "trains"), [(2, (1,), "lora"), (1, (), "transformer")])
def test_trainings(rows, reads, trains, monkeypatch):
    """Of LoRA layers in float32, and of a whole transformer in bfloat16, which takes less."""
    for module in ("ddim_lightning.network.attention", "torch.nn.functional"):
        monkeypatch.setattr(f"{module}.scaled_dot_product_attention", lambda q, k, v, **_: Attend.apply(q, k, v))
    config = {**COGVIDEOX_5B_TRANSFORMER, "num_layers": 2}
    transformer = make_empty(CogVideoXTransformer3DModel, config)
    if trains == "lora":
        add_lora(transformer, rank=32, alpha=None, targets=Training().targets, seed=0).float()
    else:
        transformer.requires_grad_(True)
    transformer.enable_gradient_checkpointing()
    trained = sum(weight.numel() for weight in transformer.parameters() if weight.requires_grad)
    predict = TransformerPredictor(transformer, lambda _: torch.empty(rows, 226, 4096, device=META))
    latents = torch.empty(rows, 13, 16, 60, 90, device=META)
    predict.get_rotary(latents)
    with LiveBytes(*transformer.parameters()) as live:
        velocity = predict(latents, [""] * rows, torch.zeros(rows, dtype=torch.long, device=META), reads=reads)
        velocity.square().mean().backward()
    size = Size(49, 480, 720, rows=rows)
    found = predict_training(config, LIMITS, size, frozen=0, trained=trained)
    predicted = (found["blocks"] + found["block"]) * 2**30
    if trains == "lora":
        assert live.peak == pytest.approx(predicted + 4 * trained, rel=0.05)
    else:
        assert 0.6 * predicted < live.peak < predicted


def test_the_largest_stage_has_rows_in_groups_unless_they_are_told():
    needs = {"decode": 5.0, "edit": 9.0, "edit by 1": 4.0}
    assert (find_largest(needs), find_largest(needs, 2)) == (5.0, 9.0)


def test_the_parts_of_a_training():
    gib = 2**30
    found = predict_training(COGVIDEOX_5B_TRANSFORMER, LIMITS, FULL, frozen=4 * gib, trained=gib, state_bytes=2)
    assert (found["frozen"], found["trained"]) == (8.0, 10.0)
    assert found["sum"] == pytest.approx(18.0 + found["blocks"] + found["block"])
    spread = predict_training(COGVIDEOX_5B_TRANSFORMER, LIMITS, FULL, frozen=4 * gib, trained=gib, processes=8)
    assert (spread["frozen"], spread["trained"], spread["blocks"]) == (1.0, 2.0, found["blocks"])
    assert spread["block"] == pytest.approx(found["block"] + 2 * 2 * 5 / 42)


@pytest.mark.filterwarnings("ignore")
def test_what_is_held_of_a_source():
    """9.2 GB of CogVideoX-5B, half of it in 8 bits."""
    config = {**COGVIDEOX_5B_TRANSFORMER, "num_layers": 2}
    transformer = make_empty(CogVideoXTransformer3DModel, config)
    latents = torch.empty(1, 13, 16, 60, 90, device=META, dtype=torch.bfloat16)
    embeds = torch.empty(1, 226, 4096, device=META, dtype=torch.bfloat16)
    predicted = predict_context(config, LIMITS, FULL)
    for context in ("device", "fp8"):
        with torch.no_grad():
            held = Network(transformer, Attention("none", attend), context).hold(latents, embeds, 0)
        assert held.nbytes == predicted[context] * 2**30
    whole = predict_context(COGVIDEOX_5B_TRANSFORMER, LIMITS, FULL)
    assert whole["device"] * 2**30 == pytest.approx(9.2e9, rel=0.01)
    assert whole["fp8"] == whole["device"] / 2 and whole["host"] == whole["device"] / 21


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(480, 720), (768, 1360)])
def test_the_vae(size):
    """At the larger size diffusers divides the inputs of some convolutions."""
    height, width = size
    vae = make_empty(AutoencoderKLCogVideoX, COGVIDEOX_5B_VAE)
    configs = {"transformer": COGVIDEOX_5B_TRANSFORMER, "vae": COGVIDEOX_5B_VAE}
    peaks, long = (
        predict_peaks({"transformer": {}, "vae": {}}, configs, LIMITS, Size(frames, height, width, rows=1))["model"]
        for frames in (49, 45)
    )
    with torch.no_grad():
        with LiveBytes() as live:
            for _ in stream_decoded(vae, torch.empty(1, 7, 16, height // 8, width // 8, device=META)):
                pass
        assert live.peak == pytest.approx(peaks["decode"] * 2**30, rel=0.05)
        for frames, predicted in ((25, peaks), (21, long)):  # the first piece of the second one has 13 frames
            with LiveBytes() as live:
                encode_video(vae, torch.empty(1, frames, 3, height, width, device=META))
            assert live.peak == pytest.approx(predicted["encode"] * 2**30, rel=0.05)


def test_weights_are_exact_and_offload_parks_those_that_do_not_work():
    gib = 2**29  # values of two bytes
    headers = {
        "transformer": {f"transformer_blocks.{k}.weight": Header((gib,), "BF16") for k in range(10)}
        | {"proj_out.weight": Header((gib, 1), "BF16")},
        "vae": {"weight": Header((3 * gib,), "F32")},
        "text_encoder": {f"encoder.block.{k}.weight": Header((gib,), "F32") for k in range(4)}
        | {"shared.weight": Header((3 * gib,), "F32")},
    }
    assert count_parameters(headers["transformer"]) == 11 * gib
    configs = {"transformer": COGVIDEOX_5B_TRANSFORMER, "vae": COGVIDEOX_5B_VAE}
    peaks = predict_peaks(headers, configs, LIMITS, FULL)
    none, model, blocks = (peaks[offload] for offload in ("none", "model", "blocks"))
    assert [peak["prompts"] for peak in (none, model, blocks)] == [7.0, 4.0, 4.0]
    tensor = TENSOR / gib
    row, by_one = count_pass_tensors(1) * tensor, count_pass_tensors(4, 2, 1) * tensor
    assert [peak["edit by 1"] for peak in (none, model, blocks)] == pytest.approx(
        [14 + by_one, 11 + by_one, 3 + by_one]
    )
    pairs = predict_peaks(headers, configs, LIMITS, replace(FULL, rows_per_pass=2))["none"]["edit"]
    assert pairs == pytest.approx(14 + count_pass_tensors(4, 2, 2) * tensor)
    assert [peak["invert"] for peak in (none, model, blocks)] == pytest.approx([14 + row, 11 + row, 3 + row])
    assert [peak["edit"] for peak in (none, model, blocks)] == pytest.approx([14 + 4 * row, 11 + 4 * row, 3 + 4 * row])
    for stage in ("encode", "decode"):
        assert none[stage] - model[stage] == pytest.approx(11.0)
        assert none[stage] - blocks[stage] == pytest.approx(10.0)
    for holds, more in predict_context(COGVIDEOX_5B_TRANSFORMER, LIMITS, FULL).items():
        held = predict_peaks(headers, configs, LIMITS, replace(FULL, holds=holds))["none"]
        assert held == pytest.approx({**none, **{edit: none[edit] + more for edit in ("edit", "edit by 1")}})
    wider = predict_peaks(headers, configs, LIMITS, Size(49, 480, 720, rows=4, bytes_each=4))
    assert wider["none"]["edit"] == pytest.approx(2 * none["edit"])
