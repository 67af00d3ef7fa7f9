"""Another FlashAttention stands behind PyTorch's operators around a pass, and only there."""

from __future__ import annotations

import pytest
import torch
from torch.library import Library
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    register_flash_attention_impl,
    restore_flash_attention_impl,
)

from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.flash import find_version, use_flash
from ddim_lightning.network.layout import RowLayout
from ddim_lightning.network.network import Network
from ddim_lightning.network.standalone import StandaloneNetwork

attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Handle:
    """What PyTorch keeps while an implementation is switched on."""

    def __init__(self, library):
        self.library = library

    def remove(self):
        self.library = None


def switch_on(value):
    """Put another kernel behind an operator of the CPU, as FlashAttention 3 and 4 do on a GPU."""
    library = Library("aten", "IMPL", "CPU")

    def run(query, key, value_, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
        return torch.full_like(query, value), query.new_zeros(query.shape[:3])

    library.impl("_scaled_dot_product_flash_attention_for_cpu", run, "CPU")
    return Handle(library)


def break_off():
    raise ImportError("no such package")


@pytest.fixture(autouse=True)
def _implementations():
    for name, register in {"ONE": lambda: switch_on(1.0), "TWO": lambda: switch_on(2.0), "NONE": break_off}.items():
        register_flash_attention_impl(name, register_fn=register)
    yield
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def run():
    x = torch.zeros(1, 1, 2, 8)
    return float(attend(x, x, x)[0].mean())


def test_it_runs_inside_and_what_was_there_runs_outside():
    with use_flash("ONE"):
        assert (current_flash_attention_impl(), run()) == ("ONE", 1.0)
        with use_flash("TWO"):
            assert run() == 2.0
        with use_flash("FA2"):  # PyTorch's own
            assert (current_flash_attention_impl(), run()) == (None, 0.0)
        with use_flash(None):  # whichever it is
            assert run() == 1.0
    assert (current_flash_attention_impl(), run()) == (None, 0.0)


def test_the_choice_of_a_user_comes_back_even_after_an_error():
    activate_flash_attention_impl("ONE")
    with pytest.raises(ZeroDivisionError), use_flash("TWO"):
        _ = 1 / 0
    assert run() == 1.0
    with pytest.raises(ImportError, match="no such package"), use_flash("NONE"):
        pass
    assert (current_flash_attention_impl(), run()) == ("ONE", 1.0)


def test_a_compiled_graph_runs_what_is_switched_on():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: attend(x, x, x)[0] + 1.0, fullgraph=True, backend="aot_eager")
    x = torch.zeros(1, 1, 2, 8)
    with torch.no_grad():
        assert float(compiled(x).mean()) == 1.0
        with use_flash("TWO"):
            assert float(compiled(x).mean()) == 3.0
        assert float(compiled(x).mean()) == 1.0


@pytest.mark.parametrize("kind", [Network, DiffusersNetwork])
@torch.no_grad()
def test_a_pass_runs_on_it(kind, transformer):
    seen = []

    def look(query, key, value, bias):
        seen.append(current_flash_attention_impl())
        return sdpa_attention(query, key, value, bias)

    network = kind(transformer, Attention("look", look, None, "ONE"))
    generator = torch.Generator().manual_seed(1)
    latents, embeds = torch.randn(1, 3, 4, 8, 12, generator=generator), torch.randn(1, 7, 14, generator=generator)
    network(latents, embeds, 500)
    network.hold(latents, embeds, 500)
    assert set(seen) == {"ONE"} and current_flash_attention_impl() is None


def test_what_is_switched_on_from_outside_is_no_part_of_an_artifact(transformer):
    with pytest.raises(ValueError, match=r"^attention: .*switched on around a pass.*, got 'flash3'"):
        StandaloneNetwork(transformer, RowLayout(1, 1), (3, 8, 12), Attention("flash3", sdpa_attention, None, "FA3"))


def test_packages_that_are_not_installed_have_no_version():
    assert find_version(None) is find_version("FA2") is find_version("FA3") is None
