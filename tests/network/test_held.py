"""Keys and values that are held for later passes, against rows that are evaluated beside them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from ddim_lightning.diffusion.windows import Windows
from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.held import HeldRows
from ddim_lightning.network.network import Network
from ddim_lightning.network.predictor import TransformerPredictor
from ddim_lightning.network.quantized import QuantizedNetwork
from ddim_lightning.network.source_mark import add_mark
from ddim_lightning.runtime.compile import apply_compile
from ddim_lightning.types import Branch, Step
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error

BUFFERED = Attention("buffered", sdpa_attention)
STEP = Step(1, 700, 0.9, 0.5)


def make_marked(name="5B"):
    """A model whose mark is not zero."""
    transformer = make_variant(**VARIANTS[name])
    add_mark(transformer).weight.data.normal_(generator=torch.Generator().manual_seed(3))
    return transformer


def evaluate_beside(transformer, rows, embeds, timesteps, reads):
    """Evaluate rows, each at its own timestep, some of which read others, which are marked."""
    predict = TransformerPredictor(transformer, lambda prompts: embeds)
    with torch.no_grad():
        return predict(rows, [""] * len(rows), torch.tensor(timesteps), reads=reads)[: len(reads)]


@pytest.mark.parametrize("attention", [SDPA, BUFFERED], ids=["lse", "one buffer"])
@pytest.mark.parametrize("kind", [Network, DiffusersNetwork])
@pytest.mark.parametrize("name", ["5B", "2B", "1.5-5B", "patches of three frames"])
@torch.no_grad()
def test_what_is_held_acts_as_a_row_beside_the_edit_at_a_timestep_of_its_own(name, kind, attention):
    transformer = make_marked(name)
    (rows, embeds), network = make_rows(4, transformer.config), kind(transformer, attention)
    held = network.hold(rows[2:], embeds[2:], 3)
    for timestep, read in ((700, (0, 0)), (20, (0, 1)), (999, (1, 0))):
        reads = tuple(2 + row for row in read)
        theirs = evaluate_beside(transformer, rows, embeds, [timestep, timestep, 3, 3], reads)
        ours = network(rows[:2], embeds[:2], timestep, held=HeldRows([held], read))
        assert relative_error(ours, theirs) <= 1e-6
        alone = network(rows[:2], embeds[:2], timestep)
        assert relative_error(alone, theirs) > 0.01
    # The mark acts, and what is not held is not marked.
    transformer.source_mark.weight.zero_()
    assert relative_error(network(rows[:2], embeds[:2], 999), alone) == 0.0
    unmarked = network.hold(rows[2:], embeds[2:], 3)
    assert relative_error(network(rows[:2], embeds[:2], 999, held=HeldRows([unmarked], (1, 0))), theirs) > 1e-3


@pytest.mark.parametrize("attention", [SDPA, BUFFERED], ids=["lse", "one buffer"])
@torch.no_grad()
def test_rows_may_also_read_a_row_beside_them_at_a_scale_that_the_held_ones_do_not_have(attention):
    transformer = make_marked()
    rows, embeds = make_rows(4)
    scale, fused = torch.tensor([0.3, 0.0, 1.0]), Network(transformer, attention)
    outputs = []
    for network in (fused, DiffusersNetwork(transformer, attention)):
        held = HeldRows([network.hold(rows[3:], embeds[3:], 3)], (0, 0, 0))
        beside = {"wanted": 2, "reads": (2,), "kv_scale": scale}
        outputs.append(network(rows[:3], embeds[:3], 700, held=held, **beside))
    assert relative_error(*outputs) <= 1e-6
    # At a scale of 0 nothing of the row beside is read, and the held ones are all the same.
    beside["kv_scale"] = torch.zeros(3)
    none = fused(rows[:3], embeds[:3], 700, held=held, **beside)
    alone = fused(rows[:2], embeds[:2], 700, held=HeldRows(held.held, (0, 0)))
    assert relative_error(none, alone) <= 1e-6 < relative_error(none, outputs[0])


@pytest.mark.parametrize("kind", [Network, DiffusersNetwork])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_on_the_host_they_are_the_same_and_in_8_bits_near(dtype, kind):
    transformer = make_marked().to(dtype)
    rows, embeds = (part.to(dtype) for part in make_rows(3))
    velocities, sizes = {}, {}
    for context in ("device", "host", "fp8"):
        network = kind(transformer, SDPA, context)
        held = network.hold(rows[:1], embeds[:1], 0)
        assert held.rows == 1 and held[1][0].dtype == held[2][1].dtype == dtype
        pairs = zip(held, map(held.__getitem__, range(3)), strict=True)
        assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
        for _ in range(2):  # a stream is read in every pass anew
            velocities[context] = network(rows[1:], embeds[1:], 700, held=HeldRows([held], (0, 0)))
        sizes[context] = held.nbytes
    tokens = 7 + 3 * 4 * 6
    assert sizes["device"] == 2 * 3 * tokens * 32 * dtype.itemsize <= sizes["host"]
    assert sizes["fp8"] == 2 * 3 * tokens * 32
    assert torch.equal(velocities["host"], velocities["device"])
    assert 0.0 < relative_error(velocities["fp8"].float(), velocities["device"].float()) < 0.02


@pytest.mark.parametrize("kind", [Network, DiffusersNetwork])
def test_gradients_pass_through_what_is_held_on_the_device_and_are_not_lost_elsewhere(kind):
    transformer = make_marked()
    rows, embeds = make_rows(2)
    source = rows[:1].clone().requires_grad_()
    network = kind(transformer, SDPA)
    held = network.hold(source, embeds[:1], 3)
    network(rows[1:], embeds[1:], 700, held=HeldRows([held], (0,))).square().sum().backward()
    beside = rows[:1].clone().requires_grad_()
    predict = TransformerPredictor(transformer, lambda prompts: embeds.flip(0))
    both = predict(torch.cat([rows[1:], beside]), ["", ""], torch.tensor([700, 3]), reads=(1,))
    both[:1].square().sum().backward()
    torch.testing.assert_close(source.grad, beside.grad, rtol=1e-4, atol=1e-5)
    for context in ("host", "fp8"):
        with pytest.raises(ValueError, match=f"^context: must be device .* gradients, got '{context}'"):
            kind(transformer, SDPA, context).hold(source, embeds[:1], 3)


@torch.no_grad()
def test_held_by_products_in_8_bits_they_are_near(transformer):
    exact = Network(transformer, SDPA)
    generator = torch.Generator().manual_seed(1)
    latents, embeds = torch.randn(2, 3, 4, 8, 12, generator=generator), torch.randn(2, 7, 14, generator=generator)
    velocities = []
    for network in (exact, QuantizedNetwork(exact)):
        held = HeldRows([network.hold(latents[:1], embeds[:1], 0)], (0,))
        velocities.append(network(latents[1:], embeds[1:], 500, held=held))
    assert 0.0 < relative_error(velocities[1], velocities[0]) <= 0.1


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.no_grad()
def test_compiled_blocks_hold_and_attend(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    transformer = make_marked()
    (rows, embeds), network = make_rows(3), Network(transformer, SDPA)

    def run():
        return network(rows[1:], embeds[1:], 700, held=HeldRows([network.hold(rows[:1], embeds[:1], 3)], (0, 0)))

    eager = run()
    apply_compile(network, True)
    assert relative_error(run(), eager) <= 1e-5


@torch.no_grad()
def test_what_lends_nothing_is_refused_by_name():
    transformer = make_marked()
    rows, embeds = make_rows(1)
    network = DiffusersNetwork(transformer, SDPA)
    held = network.hold(rows, embeds, 0)
    reading = transformer.transformer_blocks[1].attn1.processor

    class Mine:
        def __call__(self, *arguments, **named):
            return reading(*arguments, **named)

    transformer.transformer_blocks[1].attn1.set_processor(Mine())
    for call in (
        lambda: network.hold(rows, embeds, 0),
        lambda: network(rows, embeds, 0, held=HeldRows([held], (0,))),
    ):
        with pytest.raises(ValueError, match=r"^editor: .*Mine of transformer_blocks\.1"):
            call()
    transformer.transformer_blocks[1].attn1.set_processor(reading)
    # Nothing is left behind for whoever calls the model next.
    plain = network(rows, embeds, 700)
    assert torch.equal(DiffusersNetwork(make_marked(), SDPA)(rows, embeds, 700), plain)


@torch.no_grad()
def test_a_cache_that_skips_layers_skips_no_held_ones():
    transformer = make_marked()
    rows, embeds = make_rows(1)
    network = DiffusersNetwork(transformer, SDPA)
    exact = list(network.hold(rows, embeds, 0))
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    network.start_stage()
    for _ in range(2):  # two windows, say
        for ours, theirs in zip(network.hold(rows, embeds, 0), exact, strict=True):
            assert all(map(torch.equal, ours, theirs))


def make_denoiser(transformer, windows=None, kind=Network, context="device"):
    embeds = {
        prompt: torch.randn(1, 7, 14, generator=torch.Generator().manual_seed(len(prompt)))
        for prompt in ("", "cat", "a dog", "source", "another")
    }
    return CogVideoXDenoiser(kind(transformer, SDPA, context), embeds.__getitem__, windows)


def draw(count, frames=3, seed=0):
    return torch.randn(count, frames, 4, 8, 12, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_branches_attend_to_their_contexts_row_by_row():
    """Two clips, guidance, and two contexts in one pass: each row is as alone with its own."""
    denoiser = make_denoiser(make_marked())
    latents, source = draw(2), draw(2, seed=1)
    contexts = [denoiser.hold(Branch(source, prompt, timestep=3)) for prompt in ("source", "another")]
    assert denoiser.nfe == 4
    branches = [
        Branch(latents, "cat", "", 3.0, context=contexts[0]),
        Branch(-latents, "a dog", context=contexts[1]),
        Branch(latents, "a dog", context=contexts[0]),
    ]
    velocities = denoiser(branches, STEP)
    assert denoiser.nfe == 4 + 8
    for branch, velocity, prompt in zip(branches, velocities, ("source", "another", "source"), strict=True):
        for k in range(2):
            held = denoiser.hold(Branch(source[k : k + 1], prompt, timestep=3))
            alone = Branch(branch.latents[k : k + 1], *branch.prompts[::-1], guidance_scale=branch.guidance_scale)
            alone = Branch(alone.latents, branch.prompt, branch.negative_prompt, branch.guidance_scale, context=held)
            (theirs,) = denoiser([alone], STEP)
            assert relative_error(velocity[k : k + 1], theirs) <= 2e-6


@torch.no_grad()
def test_a_long_clip_holds_each_of_its_windows():
    transformer, windows = make_marked(), Windows(3, 1)
    denoiser, latents, source = make_denoiser(transformer, windows), draw(1, 7), draw(1, 7, seed=1)
    context = denoiser.hold(Branch(source, "source", timestep=3))
    assert len(context) == 3 == denoiser.nfe
    (velocity,) = denoiser([Branch(latents, "cat", "", 3.0, context=context)], STEP)
    assert denoiser.nfe == 3 + 6
    alone, weights = make_denoiser(transformer), windows.make_weights(7)
    wanted = torch.zeros_like(latents)
    for start, weight in zip(windows.list_starts(7), weights, strict=True):
        frames = slice(start, start + 3)
        held = alone.hold(Branch(source[:, frames], "source", timestep=3))
        (piece,) = alone([Branch(latents[:, frames], "cat", "", 3.0, context=held)], STEP)
        wanted[:, frames] += weight.float()[:, None, None, None] * piece
    torch.testing.assert_close(velocity, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_passes_that_cannot_be_are_refused():
    denoiser = make_denoiser(make_marked())
    context = denoiser.hold(Branch(draw(1), "source", timestep=3))
    for branch, message in (
        (Branch(draw(1), "source"), r"^timestep: .* own timestep .* got None and 1"),
        (Branch(draw(1), "source", guidance_scale=2.0, timestep=3), r"^timestep: .* got 3 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser.hold(branch)
    for branches, message in (
        ([Branch(draw(1), "cat", timestep=3)], r"^timestep: must be the step's, 700, or None, got 3"),
        ([Branch(draw(1), "cat", context=context), Branch(draw(1), "cat")], r"^context: all branches .* got None"),
        ([Branch(draw(2), "cat", context=context)], r"^context: .* of 2 rows .* got \[1\]"),
        ([Branch(draw(1), "cat", context=context * 2)], r"^context: .* windows .* got \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser(branches, STEP)
