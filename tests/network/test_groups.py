"""Rows of a pass in groups against all of them at once."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.held import HeldRows
from ddim_lightning.network.layout import RowLayout, plan_pass
from ddim_lightning.network.network import Network
from ddim_lightning.network.weights import gather_norms
from ddim_lightning.runtime.compile import apply_compile
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error

BUFFERED = Attention("buffered", sdpa_attention)
PASSES = {
    "plain": {},
    "not all are wanted": {"wanted": 3},
    "a shared source": {"wanted": 4, "reads": (5, 5, 5, 5)},
    "paired": {"wanted": 3, "reads": (3, 4, 5)},
    "two noises": {"reads": (4, 4, 5, 5), "kv_scale": torch.tensor([0.3, 0.0, 1.0])},
    "nothing is read after the first layer": {"wanted": 2, "reads": (4, 5), "kv_scale": torch.tensor([1.0, 0.0, 0.0])},
    "nothing is read at all": {"wanted": 2, "reads": (4, 5), "kv_scale": torch.zeros(3)},
}


def group(network, rows):
    network.choose_rows = lambda *_: rows
    return network


@pytest.mark.parametrize("attention", [SDPA, BUFFERED], ids=["lse", "one buffer"])
@pytest.mark.parametrize("case", PASSES)
def test_groups_give_the_numbers_of_all_rows_at_once(case, attention):
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), attention), make_rows(6)
    held = HeldRows([network.hold(latents[:2], embeds[:2], 3)], (0, 1, 1, 0, 1, 0))
    for context in (None, held):
        whole = network(latents, embeds, 500, **PASSES[case], held=context)
        for rows in (1, 2, 4, 6):
            parts = group(network, rows)(latents, embeds, 500, **PASSES[case], held=context)
            assert relative_error(parts, whole) <= (0.0 if rows == 6 else 1e-5)


def test_groups_of_other_models():
    for name in ("2B", "1.5-5B"):
        transformer = make_variant(**VARIANTS[name])
        network, (latents, embeds) = Network(transformer, SDPA), make_rows(4, transformer.config)
        whole = network(latents, embeds, 500, reads=(3, 3))
        assert relative_error(group(network, 1)(latents, embeds, 500, reads=(3, 3)), whole) <= 1e-5


def test_weights_travel_once_a_pass_however_many_groups():
    transformer, travelled = make_variant(**VARIANTS["5B"]), []
    network, (latents, embeds) = Network(transformer, SDPA), make_rows(4)
    whole, blocks = network(latents, embeds, 500, reads=(2, 3)), network.blocks

    class Travelling:
        def __iter__(self):
            for weights in blocks:
                travelled.append(weights)
                yield weights

    network.stream(Travelling(), [gather_norms(block) for block in transformer.transformer_blocks])
    assert relative_error(group(network, 1)(latents, embeds, 500, reads=(2, 3)), whole) <= 1e-5
    assert len(travelled) == network.num_layers


def test_gradients_pass_through_groups():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(3)
    found = []
    for rows in (3, 1):
        leaf = latents.clone().requires_grad_()
        with torch.enable_grad():
            group(network, rows)(leaf, embeds, 500, wanted=2, reads=(2, 2)).square().sum().backward()
        found.append(leaf.grad)
    assert relative_error(*found) <= 1e-5


@pytest.mark.slow
def test_compiled_groups():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(6)
    reading = {"reads": (4, 4, 5, 5), "kv_scale": torch.tensor([0.3, 0.5, 1.0])}
    whole = network(latents, embeds, 500, **reading)
    apply_compile(network, True)
    assert relative_error(group(network, 1)(latents, embeds, 500, **reading), whole) <= 1e-5


def test_readers_follow_what_they_read_in_even_groups():
    def plan(rows, reads, size):
        return [(one.rows, one.source) for one in plan_pass(RowLayout(rows, rows, reads), size, None, 2, 2, 1e-5)]

    assert plan(6, (4, 4, 5, 5), 6) == [(tuple(range(6)), None)]
    assert plan(6, (4, 4, 5, 5), 3) == [((4, 5), None), ((0, 1), 0), ((2, 3), 0)]
    assert plan(4, (2, 3), 1) == [((2,), None), ((0,), 0), ((3,), None), ((1,), 2)]
    assert plan(5, (), 3) == [((0, 1), None), ((2, 3, 4), None)]
    with pytest.raises(ValueError, match=r"^reads: .* got row 1$"):
        plan(3, (1, 2), 2)
