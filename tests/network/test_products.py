"""Products by oneDNN are those of PyTorch's linear layers, and are made where they can be alone."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ddim_lightning.network import products
from ddim_lightning.network.products import multiply

OURS = "ddim_lightning::multiply"


def make_layer(wide_in=48, wide_out=72, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(dtype) for size in ((wide_out, wide_in), (wide_out,))]


def make_tokens(*size, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


def list_operators(act):
    with profile(activities=[ProfilerActivity.CPU]) as found:
        act()
    return {event.key for event in found.key_averages()}


@pytest.mark.parametrize(
    "x",
    [
        make_tokens(2, 20, 48),
        make_tokens(20, 48),
        make_tokens(48),
        make_tokens(0, 20, 48),
        make_tokens(2, 0, 48),
        make_tokens(2, 48, 20).transpose(1, 2),
        make_tokens(2, 20, 96)[..., ::2],
        make_tokens(1, 20, 48).expand(3, -1, -1),
    ],
    ids=["rows", "tokens", "one", "no row", "no token", "transposed", "strided", "expanded"],
)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_products_are_those_of_a_linear_layer(x, has_bias, context):
    weight, bias = make_layer()
    bias = bias if has_bias else None
    with context():
        product = multiply(x, weight, bias)
        exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert product.shape == (*x.shape[:-1], 72)
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-5)


def test_parts_of_a_weight_may_be_taken():
    weight, bias = make_layer()
    x = make_tokens(2, 20, 48)
    with torch.no_grad():
        parts = [multiply(x, weight[part], bias[part]) for part in (slice(24), slice(24, None))]
        torch.testing.assert_close(torch.cat(parts, -1), multiply(x, weight, bias))
        turned = weight.t().contiguous().t()
        torch.testing.assert_close(multiply(x, turned, bias), multiply(x, weight, bias))


@torch.no_grad()
def test_float32_is_multiplied_by_onednn_and_every_other_dtype_as_before():
    assert OURS in list_operators(lambda: multiply(make_tokens(2, 20, 48), *make_layer()))
    for dtype in (torch.bfloat16, torch.float64):
        x, layer = make_tokens(2, 20, 48, dtype=dtype), make_layer(dtype=dtype)
        assert OURS not in list_operators(lambda x=x, layer=layer: multiply(x, *layer))
        assert torch.equal(multiply(x, *layer), linear(x, *layer))


def test_gradients_go_through():
    x, (weight, bias) = make_tokens(2, 20, 48), make_layer()
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    ours = torch.autograd.grad(multiply(*tensors).square().sum(), tensors)
    theirs = torch.autograd.grad(linear(*tensors).square().sum(), tensors)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@torch.no_grad()
def test_compiled_products_are_in_one_graph_with_what_is_around_them():
    weight, bias = make_layer()

    def run(x, weight, bias):
        return multiply(x.relu(), weight, bias).neg()

    x = make_tokens(2, 20, 48)
    compiled = torch.compile(run, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x, weight, bias), run(x, weight, bias))
    exports = torch.compile(lambda x: x + torch.compiler.is_exporting(), fullgraph=True)(torch.zeros(()))
    assert (OURS in list_operators(lambda: compiled(x, weight, bias))) is not bool(exports)  # see `multiply`


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in zip(("weight", "bias"), make_layer(), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x):
        return multiply(x, self.weight, self.bias)


@torch.no_grad()
def test_what_is_exported_knows_no_operator_of_ours():
    x, layer = make_tokens(2, 20, 48), Layer()
    assert "linear" in str(torch.export.export(layer, (x,)).graph)
    with warnings.catch_warnings(action="ignore"):  # newer versions call TorchScript deprecated
        assert "aten::linear" in str(torch.jit.trace(layer, x).inlined_graph)


@torch.no_grad()
def test_operations_are_counted():
    with FlopCounterMode(display=False) as counter:
        multiply(make_tokens(2, 20, 48), *make_layer())
    assert counter.get_total_flops() == 2 * 2 * 20 * 48 * 72


@torch.no_grad()
def test_the_module_may_be_loaded_again():
    x, layer = make_tokens(2, 20, 48), make_layer()
    before = multiply(x, *layer)
    assert torch.equal(importlib.reload(products).multiply(x, *layer), before)
