"""Linear layers in 8-bit floats: how far a weight moves, what stays untouched, and the network that runs on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.network.adapters import Linear
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.kernels import CPU_KERNELS
from ddim_lightning.network.network import Network
from ddim_lightning.network.quantized import (
    Fp8Linear,
    QuantizedNetwork,
    check_fp8,
    quantize_block,
    quantize_fp8,
)
from ddim_lightning.network.weights import gather_block
from ddim_lightning.runtime.compile import apply_compile
from tests.network.test_network import VARIANTS, make_rows, make_variant

SDPA = CPU_KERNELS["sdpa"]


def make_linear(dtype=torch.float32, *, bias=True):
    """48 outputs of 32 inputs, rows of very different sizes, one of them zeros."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator) * torch.logspace(-3, 1, 48)[:, None]
    weight[5] = 0.0
    return Linear(weight.to(dtype), torch.randn(48, generator=generator).to(dtype) if bias else None)


def make_tokens(dtype=torch.float32):
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_moves_no_weight_by_more_than_its_mantissa_allows(dtype):
    layer = make_linear(dtype)
    ours = quantize_fp8(layer)
    assert (ours.weight.dtype, ours.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    exact = layer.weight.double()
    moved = (exact - ours.weight.double() * ours.scale.double()[:, None]).abs()
    # Three bits behind the point: half of 2^-3; below 2^-6 the values are 2^-9 apart.
    bound = torch.maximum(exact.abs() * 2.0**-4, ours.scale.double()[:, None] * 2.0**-10)
    assert (moved <= bound * (1 + 1e-6)).all()
    largest = ours.weight.float().abs().amax(dim=1)
    assert largest[5] == 0 and (largest[torch.arange(48) != 5] == 448).all()


def test_a_row_of_zeros_gives_its_bias():
    layer = make_linear()
    output = quantize_fp8(layer)(make_tokens())
    assert layer.bias is not None
    assert torch.equal(output[..., 5], layer.bias[5].expand(2, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_products_are_close(dtype):
    for bias in (False, True):
        layer = make_linear(dtype, bias=bias)
        ours, x = quantize_fp8(layer), make_tokens(dtype)
        assert ours.bias is layer.bias
        output = ours(x)
        assert output.dtype == dtype
        assert relative_error(output, layer(x)) <= 0.05


class Largest(TorchDispatchMode):
    """`Largest` keeps how many values the largest float32 tensor had that was made."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.count = max(self.count, made.numel())
        return made


def test_tokens_are_brought_to_8_bits_some_at_a_time(monkeypatch):
    layer, x = make_linear(torch.bfloat16), make_tokens(torch.bfloat16).repeat(1, 20, 1)
    ours = quantize_fp8(layer)
    whole = ours(x)
    monkeypatch.setattr("ddim_lightning.network.quantized._CHUNK", 32 * 9)  # 280 tokens, 9 at a time and 1 at last
    with Largest() as largest:
        in_parts = ours(x)
    assert torch.equal(in_parts, whole)
    assert largest.count == 32 * 9


def check_fp8_kernel(device):
    """The kernel against the same math in double precision, activations rounded token by token."""
    layer = Linear(*(None if part is None else part.to(device) for part in make_linear(torch.bfloat16)))
    ours, x = quantize_fp8(layer), make_tokens(torch.bfloat16).to(device) * 30.0
    scale = x.float().abs().amax(dim=-1, keepdim=True) / 448.0
    rounded = (x.float() / scale).to(torch.float8_e4m3fn).double() * scale
    exact = rounded @ (ours.weight.float() * ours.scale[:, None]).double().t() + layer.bias
    assert relative_error(ours(x), exact) <= 5e-3  # of bfloat16's output
    part = ours.take(16, 32)(x)
    assert torch.equal(part, ours(x)[..., 16:32])


def test_fp8_kernel_on_the_cpu():
    check_fp8_kernel("cpu")


@pytest.mark.gpu
def test_fp8_kernel_on_the_device():
    check_fp8(torch.device("cuda"))
    check_fp8_kernel("cuda")


def test_fp8_takes_tokens_of_zeros_and_passes_infinity_on():
    layer = make_linear()
    x = make_tokens()
    x[0, 0], x[0, 1, 3] = 0.0, float("inf")
    output = quantize_fp8(layer)(x)
    assert layer.bias is not None
    assert torch.equal(output[0, 0], layer.bias)
    assert not output[0, 1].isfinite().any()
    assert output[0, 2:].isfinite().all() and output[1].isfinite().all()


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (16, None), (16, 32)])
def test_parts_are_views_that_make_their_outputs(start, stop):
    ours, x = quantize_fp8(make_linear()), make_tokens()
    part = ours.take(start, stop)
    assert type(part) is type(ours)
    assert part.weight.untyped_storage().data_ptr() == ours.weight.untyped_storage().data_ptr()
    torch.testing.assert_close(part(x), ours(x)[..., start:stop], rtol=1e-5, atol=1e-5)


def make_block(transformer):
    return gather_block(transformer.transformer_blocks[1])


def test_only_the_large_products_of_a_block_change(transformer):
    block = make_block(transformer)
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    ours = quantize_block(block)
    assert {type(part) for part in (ours.qkv, ours.up, ours.down)} == {Fp8Linear}
    assert ours.out is block.out and ours.norm_query is block.norm_query and ours.norm_key is block.norm_key
    assert all(torch.equal(tensor, before[name]) for name, tensor in transformer.state_dict().items())


@pytest.mark.parametrize(("wanted", "reads"), [(3, ()), (2, (2, 2))])
def test_network_is_close_to_the_exact_one(transformer, wanted, reads):
    exact = Network(transformer, SDPA)
    ours = QuantizedNetwork(exact)
    generator = torch.Generator().manual_seed(1)
    latents, embeds = torch.randn(3, 3, 4, 8, 12, generator=generator), torch.randn(3, 7, 14, generator=generator)
    rows = {"wanted": wanted, "reads": reads}
    theirs = exact(latents, embeds, 500, **rows)
    assert 0.0 < relative_error(ours(latents, embeds, 500, **rows), theirs) <= 0.1
    assert ours.get_modulation(500) is exact.get_modulation(500)
    assert torch.equal(exact(latents, embeds, 500, **rows), theirs)


def test_a_variant_with_temporal_patches_is_close_to_the_exact_one():
    exact = Network(make_variant(**VARIANTS["1.5-5B-I2V"]), SDPA)
    rows = make_rows(3, exact.transformer.config)
    ours, theirs = (network(*rows, 500, wanted=2, reads=(2, 2)) for network in (QuantizedNetwork(exact), exact))
    assert 0.0 < relative_error(ours, theirs) <= 0.1


def test_weights_that_change_or_move_are_brought_to_8_bits_again(transformer):
    exact = Network(transformer, SDPA)
    ours = QuantizedNetwork(exact)
    first = ours.blocks
    assert ours.blocks is first
    block = transformer.transformer_blocks[2]
    for change in (
        lambda: block.attn1.to_k.weight.mul_(2.0),
        lambda: block.ff.net[2].weight.mul_(0.5),
        lambda: transformer.to(torch.float64).to(torch.float32),
    ):
        before = ours.blocks
        change()
        assert ours.blocks is not before
        for mine, theirs in zip(ours.blocks, exact.blocks, strict=True):
            for part in ("qkv", "up", "down"):
                layer = getattr(mine, part)
                assert torch.equal(layer.weight.float(), quantize_fp8(getattr(theirs, part)).weight.float())
                assert layer.bias.data_ptr() == getattr(theirs, part).bias.data_ptr()


def test_a_stage_begins_with_the_weights_as_they_are(tiny_model):
    engine = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu").engine
    ours = QuantizedNetwork(Network(engine.components.transformer, SDPA))
    engine = replace(engine, edit_denoiser=CogVideoXDenoiser(ours, engine.prompts))
    before = ours.blocks
    weight = engine.components.transformer.transformer_blocks[0].ff.net[2].weight
    weight.data[1] *= 2.0  # which nothing counts
    assert ours.blocks is before
    engine.start_stage()
    assert torch.equal(ours.blocks[0].down.weight.float(), quantize_fp8(Linear(weight, None)).weight.float())
    assert ours.blocks is not before


def test_compiled_blocks_agree_with_eager_ones(transformer):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    exact = Network(transformer, SDPA)
    eager, compiled = QuantizedNetwork(exact), QuantizedNetwork(exact)
    apply_compile(compiled, True)
    generator = torch.Generator().manual_seed(1)
    latents, embeds = torch.randn(3, 3, 4, 8, 12, generator=generator), torch.randn(3, 7, 14, generator=generator)
    # The last layer takes parts of the product: its last row only lends keys and values.
    kv_scale = torch.tensor([0.0, 1.0, 1.0])
    ours, theirs = (n(latents, embeds, 500, wanted=2, reads=(2, 2), kv_scale=kv_scale) for n in (compiled, eager))
    assert relative_error(ours, theirs) <= 2e-2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # nothing read; read; read, two rows kept


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"^precision: fp8 needs .*8\.9 or more, got cpu"):
        check_fp8(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"precision: fp8 needs .* multiples of 16, got \(48, 20\)"):
        quantize_fp8(Linear(torch.ones(48, 20), None))


def test_an_older_device_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability, refused in {(8, 0): True, (8, 9): False, (10, 0): False}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if refused:
            with pytest.raises(ValueError, match=r"^precision: .*got NVIDIA A100 with 8\.0"):
                check_fp8(torch.device("cuda"))
        else:
            check_fp8(torch.device("cuda"))
