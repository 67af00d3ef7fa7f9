"""Our forward pass against diffusers' own, at every variant's configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.block import rotate
from ddim_lightning.models.text import make_rotary_table
from ddim_lightning.network.kernels import CPU_KERNELS
from ddim_lightning.network.network import Network

CPU = torch.device("cpu")
SDPA = CPU_KERNELS["sdpa"]

VARIANTS: dict[str, dict[str, Any]] = {
    "5B": {"use_rotary_positional_embeddings": True},
    "2B": {"use_rotary_positional_embeddings": False},
    "learned positions": {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
    "norms without weights": {"use_rotary_positional_embeddings": True, "norm_elementwise_affine": False},
    "projections without bias": {"use_rotary_positional_embeddings": True, "attention_bias": False},
    "other patches": {"use_rotary_positional_embeddings": True, "patch_size": 4, "norm_eps": 0.1},
}


def make_variant(**settings: Any) -> CogVideoXTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
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
        transformer = CogVideoXTransformer3DModel(**sizes | settings)
        for parameter in transformer.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return transformer.eval().requires_grad_(False)


class _Frame:
    """The two attributes of a pipeline that its rotary method reads."""

    vae_scale_factor_spatial = 8

    def __init__(self, transformer) -> None:  # type: ignore[no-untyped-def]
        self.transformer = transformer


def make_diffusers_rotary(transformer, frames: int, height: int, width: int):  # type: ignore[no-untyped-def]
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    frame = _Frame(transformer)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(frame, height * 8, width * 8, frames, CPU)  # type: ignore[arg-type]


def run_diffusers(transformer, latents: Tensor, embeds: Tensor, timestep: int) -> Tensor:  # type: ignore[no-untyped-def]
    rotary = make_diffusers_rotary(transformer, *(latents.shape[k] for k in (1, 3, 4)))
    told = torch.full((len(latents),), timestep)
    output: Tensor = transformer(latents, embeds, told, image_rotary_emb=rotary).sample
    return output


def make_rows(rows: int, size: tuple[int, ...] = (3, 4, 8, 12)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *size, generator=generator), torch.randn(rows, 7, 14, generator=generator)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("size", [(3, 8, 12), (2, 8, 4)])
def test_rotary_table_is_the_pipelines_behind_identity_rows(transformer, size) -> None:  # type: ignore[no-untyped-def]
    cos, sin = make_rotary_table(transformer, *size, CPU)
    theirs = make_diffusers_rotary(transformer, *size)
    assert torch.equal(cos[7:], theirs[0]) and torch.equal(sin[7:], theirs[1])
    text = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_rotary_emb(text, (cos[:7], sin[:7])), text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_of_the_rotation_are_diffusers(transformer, dtype) -> None:  # type: ignore[no-untyped-def]
    cos, sin = make_rotary_table(transformer, 3, 8, 12, CPU)
    x = torch.randn(2, 79, 2, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = apply_rotary_emb(x.transpose(1, 2), (cos, sin)).transpose(1, 2)
    assert torch.equal(rotate(x, (cos, sin)), theirs)
    if dtype == torch.float32:
        torch.testing.assert_close(rotate(x, torch.complex(cos[:, ::2], sin[:, ::2])), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_network_equals_diffusers_forward(name: str, rows: int) -> None:
    transformer = make_variant(**VARIANTS[name])
    network, (latents, embeds) = Network(transformer, SDPA), make_rows(rows)
    for timestep in (999, 20, 999):
        theirs = run_diffusers(transformer, latents, embeds, timestep)
        assert relative_error(network(latents, embeds, timestep), theirs) <= 2e-6


def test_in_bfloat16_it_rounds_no_worse(transformer) -> None:  # type: ignore[no-untyped-def]
    latents, embeds = make_rows(2)
    exact = run_diffusers(transformer, latents, embeds, 500)
    transformer.to(torch.bfloat16)
    rounded = run_diffusers(transformer, latents.bfloat16(), embeds.bfloat16(), 500)
    ours = Network(transformer, SDPA)(latents.bfloat16(), embeds.bfloat16(), 500)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.float(), exact) <= 1.1 * relative_error(rounded.float(), exact)


def test_weights_are_shared_with_the_model(transformer) -> None:  # type: ignore[no-untyped-def]
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


def test_weights_that_change_are_seen(transformer) -> None:  # type: ignore[no-untyped-def]
    """In place, as an optimiser or a checkpoint changes them; and moved, as Lightning does."""
    network, (latents, embeds) = Network(transformer, SDPA), make_rows(1)
    network(latents, embeds, 500)
    changes = {
        "moved": lambda: transformer.to(torch.float64).to(torch.float32),
        "optimiser": lambda: [parameter.mul_(1.1) for parameter in transformer.parameters()],
        "checkpoint": lambda: transformer.load_state_dict({k: v * 0.9 for k, v in transformer.state_dict().items()}),
        "modulation": lambda: transformer.transformer_blocks[1].norm1.linear.weight.add_(0.1),
    }
    for name, change in changes.items():
        before = network(latents, embeds, 500)
        change()
        theirs = run_diffusers(transformer, latents, embeds, 500)
        assert relative_error(network(latents, embeds, 500), theirs) <= 2e-6, name
        assert (relative_error(before, theirs) > 1e-3) == (name != "moved")


def test_adapters_are_refused_where_they_would_be_left_out(transformer) -> None:  # type: ignore[no-untyped-def]
    class LoraLinear(nn.Linear):
        pass

    transformer.transformer_blocks[2].attn1.to_k = LoraLinear(32, 32)
    message = (
        "^transformer: its projection to_k must be a plain linear layer, got LoraLinear; adapters have to be merged"
    )
    with pytest.raises(ValueError, match=message):
        Network(transformer, SDPA)(*make_rows(1), 500)


def test_a_model_made_under_inference_mode() -> None:
    with torch.inference_mode():
        transformer, (latents, embeds) = make_variant(**VARIANTS["5B"]), make_rows(2)
        for _ in range(2):
            ours = Network(transformer, SDPA)(latents, embeds, 500)
            assert relative_error(ours, run_diffusers(transformer, latents, embeds, 500)) <= 2e-6


class Spy:
    """Records the rows of queries and of keys of every call of a kernel."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
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
def test_rows_that_are_only_read_end_at_the_last_layer_that_reads_them(transformer, kv_scale, calls) -> None:  # type: ignore[no-untyped-def]
    spy, (latents, embeds) = Spy(), make_rows(3)
    told = None if kv_scale is None else torch.tensor(kv_scale)
    network = Network(transformer, Attention("spy", spy))
    ours = network(latents, embeds, 500, wanted=2, reads=(2, 2), kv_scale=told)
    assert spy.seen == calls
    whole = network(latents, embeds, 500, reads=(2, 2), kv_scale=told)
    torch.testing.assert_close(ours, whole[:2], rtol=0, atol=2e-6)
    merged = Network(transformer, SDPA)(latents, embeds, 500, wanted=2, reads=(2, 2), kv_scale=told)
    torch.testing.assert_close(merged, whole[:2], rtol=0, atol=3e-6)
