"""Our forward pass against diffusers' own, at every variant's configuration."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from ddim_lightning.diffusion.steps import inverse_step
from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.kernels import CPU_KERNELS
from ddim_lightning.network.network import Network
from ddim_lightning.types import Step
from tests.network.reference import make_diffusers_rotary
from tests.variants import KEYS, adapt

SDPA = CPU_KERNELS["sdpa"]

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 10,
    "text_embed_dim": 14,
    "num_layers": 3,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 7,
}
VARIANTS = {
    **{name: adapt(name, SIZES) for name in KEYS},
    "2B": {"use_rotary_positional_embeddings": False},
    "sines and cosines at other sizes": {"use_rotary_positional_embeddings": False, "sample_frames": 5},
    "patches of three frames": {"use_rotary_positional_embeddings": True, "patch_size_t": 3},
    "norms without weights": {"use_rotary_positional_embeddings": True, "norm_elementwise_affine": False},
    "projections without bias": {"use_rotary_positional_embeddings": True, "attention_bias": False},
    "other patches": {"use_rotary_positional_embeddings": True, "patch_size": 4, "norm_eps": 0.1},
}


def make_variant(**settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(**SIZES | settings)
        for parameter in transformer.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return transformer.eval().requires_grad_(False)


def run_diffusers(transformer, latents, embeds, timestep):
    rotary = None
    if transformer.config.use_rotary_positional_embeddings:
        rotary = make_diffusers_rotary(transformer, *(latents.shape[k] for k in (1, 3, 4)))
    told = torch.full((len(latents),), timestep)
    ofs = None if transformer.config.ofs_embed_dim is None else torch.tensor([2.0])
    return transformer(latents, embeds, told, ofs=ofs, image_rotary_emb=rotary).sample


def make_rows(rows, config=None):
    """Make rows of 3 latent frames, or as many as a config's patches in time want."""
    size = (3, 4, 8, 12) if config is None else (3 + -3 % (config.patch_size_t or 1), config.in_channels, 8, 12)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *size, generator=generator), torch.randn(rows, 7, 14, generator=generator)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("known", [(), tuple(range(999, 0, -1)), (999, 979)], ids=["none", "all", "some"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_network_equals_diffusers_forward(name, rows, known):
    transformer = make_variant(**VARIANTS[name])
    network, (latents, embeds) = Network(transformer, SDPA), make_rows(rows, transformer.config)
    network.start_stage(known)
    for timestep in (999, 20, 999):
        theirs = run_diffusers(transformer, latents, embeds, timestep)
        assert relative_error(network(latents, embeds, timestep), theirs) <= 2e-6


@pytest.mark.parametrize("name", ["1.5-5B", "5B-I2V", "1.5-5B-I2V"])
def test_rows_that_are_not_the_models_are_refused(name):
    network = Network(make_variant(**VARIANTS[name]), SDPA)
    latents, embeds = make_rows(1, network.transformer.config)
    with pytest.raises(ValueError, match=rf"^latents: .* {latents.shape[2]} channels, got {latents.shape[2] - 1}"):
        network(latents[:, :, 1:], embeds, 500)
    rule = "patch_size_t, 2, got 3" if "1.5" in name else "learned positions"
    with pytest.raises(ValueError, match=rf"^latents: .*{rule}"):
        network(latents[:, :3] if "1.5" in name else latents[:, :2], embeds, 500)
    larger = torch.cat([latents, latents], dim=3)
    with pytest.raises(ValueError, match=r"^latents: .*\(.*8, 12\).*got \(.*16, 12\)"):
        network(larger, embeds, 500)


def test_what_a_timestep_decides_is_the_same_from_both_ends_of_a_stage(transformer):
    network, timesteps = Network(transformer, SDPA), tuple(range(999, 0, -20))
    network.start_stage(timesteps)
    down = [network.get_modulation(timestep) for timestep in timesteps]
    network.start_stage(timesteps)
    up = [network.get_modulation(timestep) for timestep in timesteps[::-1]][::-1]
    assert all(torch.equal(a, b) for one, other in zip(down, up, strict=True) for a, b in zip(one, other, strict=True))


def test_the_weights_of_the_offset_are_followed():
    transformer = make_variant(**VARIANTS["1.5-5B-I2V"])
    network, rows = Network(transformer, SDPA), make_rows(1, transformer.config)
    before = network(*rows, 500)
    transformer.ofs_embedding.linear_2.weight.mul_(3.0)
    theirs = run_diffusers(transformer, *rows, 500)
    assert relative_error(network(*rows, 500), theirs) <= 2e-6
    assert relative_error(before, theirs) > 1e-3


def test_in_bfloat16_it_rounds_no_worse(transformer):
    latents, embeds = make_rows(2)
    exact = run_diffusers(transformer, latents, embeds, 500)
    transformer.to(torch.bfloat16)
    rounded = run_diffusers(transformer, latents.bfloat16(), embeds.bfloat16(), 500)
    ours = Network(transformer, SDPA)(latents.bfloat16(), embeds.bfloat16(), 500)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.float(), exact) <= 1.1 * relative_error(rounded.float(), exact)


def test_weights_are_shared_with_the_model(transformer):
    names, before = list(transformer.state_dict()), {k: v.clone() for k, v in transformer.state_dict().items()}
    network = Network(transformer, SDPA)
    weights = network.blocks
    after = transformer.state_dict()
    assert list(after) == names and all(torch.equal(after[name], before[name]) for name in names)
    for block, gathered in zip(transformer.transformer_blocks, weights, strict=True):
        storages = {part.weight.untyped_storage().data_ptr() for part in (block.attn1.to_q, block.attn1.to_k)}
        assert storages == {gathered.qkv.weight.untyped_storage().data_ptr()}
    assert all(ours is theirs for ours, theirs in zip(network.blocks, weights, strict=True))
    # A second network over the same model shares them too, and leaves the first its own.
    for ours, theirs in zip(Network(transformer, SDPA).blocks, weights, strict=True):
        assert ours.qkv.weight.data_ptr() == theirs.qkv.weight.data_ptr()
        assert torch.equal(ours.qkv.weight, theirs.qkv.weight) and torch.equal(ours.qkv.bias, theirs.qkv.bias)
    assert all(ours is theirs for ours, theirs in zip(network.blocks, weights, strict=True))


def test_weights_that_change_are_seen(transformer):
    """In place, as an optimizer or a checkpoint changes them; and moved, as Lightning does."""
    network, (latents, embeds) = Network(transformer, SDPA), make_rows(1)
    network(latents, embeds, 500)
    changes = {
        "moved": lambda: transformer.to(torch.float64).to(torch.float32),
        "optimizer": lambda: [parameter.mul_(1.1) for parameter in transformer.parameters()],
        "checkpoint": lambda: transformer.load_state_dict({k: v * 0.9 for k, v in transformer.state_dict().items()}),
        "modulation": lambda: transformer.transformer_blocks[1].norm1.linear.weight.add_(0.1),
    }
    for name, change in changes.items():
        before = network(latents, embeds, 500)
        change()
        theirs = run_diffusers(transformer, latents, embeds, 500)
        assert relative_error(network(latents, embeds, 500), theirs) <= 2e-6, name
        assert (relative_error(before, theirs) > 1e-3) == (name != "moved")


def test_a_model_made_under_inference_mode():
    with torch.inference_mode():
        transformer, (latents, embeds) = make_variant(**VARIANTS["5B"]), make_rows(2)
        for _ in range(2):
            ours = Network(transformer, SDPA)(latents, embeds, 500)
            assert relative_error(ours, run_diffusers(transformer, latents, embeds, 500)) <= 2e-6


class Spy:
    """Records the rows of queries and of keys of every call of a kernel."""

    def __init__(self):
        self.seen = []

    def __call__(self, query, key, value, bias):
        self.seen.append((query.shape[0], key.shape[0], key.shape[2] // query.shape[2]))
        return sdpa_attention(query, key, value, bias)


@pytest.mark.parametrize(
    ("kv_scale", "calls"),
    [
        # Two rows read the third: in the last layer it has keys and values but no queries.
        (None, [(2, 2, 2), (1, 1, 1), (2, 2, 2), (1, 1, 1), (2, 2, 2)]),
        # What no later layer reads ends at the last one that does.
        ([1.0, 0.5, 0.0], [(2, 2, 2), (1, 1, 1), (2, 2, 2), (2, 2, 1)]),
        ([0.0, 1.0, 0.0], [(3, 3, 1), (2, 2, 2), (2, 2, 1)]),
        ([0.0, 0.0, 0.0], [(2, 2, 1)] * 3),
    ],
)
def test_rows_that_are_only_read_end_at_the_last_layer_that_reads_them(transformer, kv_scale, calls):
    spy, (latents, embeds) = Spy(), make_rows(3)
    told = None if kv_scale is None else torch.tensor(kv_scale)
    network = Network(transformer, Attention("spy", spy))
    ours = network(latents, embeds, 500, wanted=2, reads=(2, 2), kv_scale=told)
    assert spy.seen == calls
    whole = network(latents, embeds, 500, reads=(2, 2), kv_scale=told)
    torch.testing.assert_close(ours, whole[:2], rtol=0, atol=2e-6)
    merged = Network(transformer, SDPA)(latents, embeds, 500, wanted=2, reads=(2, 2), kv_scale=told)
    torch.testing.assert_close(merged, whole[:2], rtol=0, atol=3e-6)


@pytest.mark.parametrize("variant", ["5B", "2B"])
def test_gradients_to_the_latents_are_those_of_diffusers(variant):
    """Also through a step of an inversion, by both forward passes."""
    transformer = make_variant(**VARIANTS[variant]).requires_grad_(False)
    rows, embeds = make_rows(1)
    step = Step(3, 500, 0.9, 0.7)

    @torch.enable_grad()
    def find_gradient(network):
        latents = rows.clone().requires_grad_()
        inverse_step(latents, network(latents, embeds), step).square().sum().backward()
        return latents.grad

    theirs = find_gradient(lambda latents, embeds: run_diffusers(transformer, latents, embeds, 500))
    for network in (Network(transformer, SDPA), DiffusersNetwork(transformer, SDPA)):
        ours = find_gradient(lambda latents, embeds, run=network: run(latents, embeds, 500))
        assert ours.isfinite().all() and ours.abs().min() > 0
        assert relative_error(ours, theirs) <= 1e-5
