"""The closed form against PyTorch's own counter, on the exact 5B architecture and on the bundled tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.flops import (
    Flops,
    TransformerSizes,
    count_attention,
    count_decoding,
    count_diffusers_pass,
    count_encoding,
    count_hold,
    count_linear,
    count_modulation,
    count_pass,
    count_reference_inversion_step,
    count_reference_reconstruction_step,
    count_text_encoder,
    make_sizes,
)
from benchmarks.published import make_random_5b, make_random_t5_xxl
from ddim_lightning.models.loading import Components
from ddim_lightning.models.source import BUNDLED
from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.held import HeldRows
from ddim_lightning.network.kernels import CPU_KERNELS
from ddim_lightning.network.network import Network

META = torch.device("meta")
LATENTS = (13, 16, 60, 90)
TERA = 10**12

aten = torch.ops.aten
# PyTorch counts the attention kernels of GPUs only.
FORMULAS = {aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
ATTENTION = (aten.bmm, *FORMULAS)


@torch.no_grad()
def measure(act: Callable[[], object]) -> Flops:
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        act()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(counts.get(kind, 0) for kind in ATTENTION)
    return Flops(sum(counts.values()) - attention, attention)


@pytest.fixture(scope="module")
def published() -> Components:
    return make_random_5b(device=META, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def full(published: Components) -> TransformerSizes:
    sizes = make_sizes(published.transformer.config)
    assert sizes == make_sizes(published.transformer.config, LATENTS, 226)
    assert (sizes.video_tokens, sizes.tokens) == (17_550, 17_776)
    return sizes


@pytest.fixture(scope="module")
def tiny() -> CogVideoXTransformer3DModel:
    """The bundled architecture, at random weights."""
    config = CogVideoXTransformer3DModel.load_config(BUNDLED / "transformer")
    return CogVideoXTransformer3DModel.from_config(config).eval()


def make_rows(transformer: CogVideoXTransformer3DModel, rows: int, latents: tuple[int, ...]) -> dict[str, Tensor]:
    config, like = transformer.config, {"device": transformer.device, "dtype": transformer.dtype}
    return {
        "hidden_states": torch.ones(rows, *latents, **like),
        "encoder_hidden_states": torch.ones(rows, config.max_text_seq_length, config.text_embed_dim, **like),
    }


def run_diffusers(transformer: CogVideoXTransformer3DModel, rows: int, latents: tuple[int, ...]) -> Tensor:
    frames, _, height, width = latents
    table = torch.ones(frames * height * width // 4, transformer.config.attention_head_dim, device=transformer.device)
    timestep = torch.full((rows,), 500, device=transformer.device)
    tensors = make_rows(transformer, rows, latents)
    output: Tensor = transformer(**tensors, timestep=timestep, image_rotary_emb=(table, table)).sample
    assert output.shape == (rows, *latents)
    return output


class ReadingProcessor:
    """What the reference script makes of attention: the first half of the rows also sees the keys of the second."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, image_rotary_emb=None, **_):  # type: ignore[no-untyped-def]
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        half = len(query) // 2
        keys, values = (torch.cat([x[:half], x[half:]], dim=2) for x in (key, value))
        reading = scaled_dot_product_attention(query[:half], keys, values)
        read = scaled_dot_product_attention(query[half:], key[half:], value[half:])
        output = attn.to_out[0](torch.cat([reading, read]).transpose(1, 2).flatten(2))
        return output[:, num_text:], output[:, :num_text]


# Diffusers


@pytest.fixture(scope="module")
def pair(published: Components) -> Flops:
    """Diffusers' forward pass of two rows."""
    return measure(lambda: run_diffusers(published.transformer, 2, LATENTS))


def test_diffusers_forward_of_the_5b_architecture(published: Components, full: TransformerSizes, pair: Flops):
    assert measure(lambda: run_diffusers(published.transformer, 1, LATENTS)) == count_diffusers_pass(full, 1)
    assert pair == count_diffusers_pass(full, 2)


@pytest.mark.parametrize("latents", [(3, 8, 16, 16), (2, 8, 12, 20)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_diffusers_forward_of_the_tiny_model(tiny: CogVideoXTransformer3DModel, rows: int, latents: tuple[int, ...]):
    counted = count_diffusers_pass(make_sizes(tiny.config, latents), rows)
    assert measure(lambda: run_diffusers(tiny, rows, latents)) == counted


def test_the_steps_of_the_script(published: Components, full: TransformerSizes, pair: Flops):
    assert pair == count_reference_inversion_step(full)
    before = published.transformer.attn_processors
    published.transformer.set_attn_processor(ReadingProcessor())
    try:
        measured = measure(lambda: run_diffusers(published.transformer, 4, LATENTS))
    finally:
        published.transformer.set_attn_processor(before)
    assert measured == count_reference_reconstruction_step(full)


# Our own forward pass

PASSES: dict[str, dict[str, Any]] = {
    "one row": {"rows": 1},
    "a guided pair": {"rows": 2},
    "two read a third": {"rows": 3, "wanted": 2, "reads": (2, 2)},
    "all of three are wanted": {"rows": 3, "reads": (2, 2)},
    "paired": {"rows": 4, "wanted": 2, "reads": (2, 3)},
    "one reads, a second does not": {"rows": 3, "wanted": 2, "reads": (2,)},
    "kv_scales": {"rows": 3, "wanted": 2, "reads": (2, 2), "kv_scale": [1.0, 0.5, 0.0, 0.3, 0.0, 0.0]},
    "paired, kv_scales": {"rows": 4, "wanted": 2, "reads": (2, 3), "kv_scale": [0.0, 0.0, 0.2, 0.0, 1.0, 0.0]},
    "the first layer only": {"rows": 3, "wanted": 2, "reads": (2, 2), "kv_scale": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
    "the last layer only": {"rows": 3, "wanted": 2, "reads": (2, 2), "kv_scale": [0.0, 0.0, 0.0, 0.0, 0.0, 0.5]},
    "no kv_scale at all": {"rows": 3, "wanted": 2, "reads": (2, 2), "kv_scale": [0.0] * 6},
}

# One gives the log-sum-exp, the other gets keys and values in one buffer: the same work.
KERNELS = [CPU_KERNELS["sdpa"], Attention("buffer", sdpa_attention)]


def make_pass(case: str) -> tuple[int, dict[str, Any]]:
    arguments = dict(PASSES[case])
    if "kv_scale" in arguments:
        arguments["kv_scale"] = torch.tensor(arguments["kv_scale"])
    return arguments.pop("rows"), arguments


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("case", list(PASSES))
def test_our_pass_of_the_tiny_model(tiny: CogVideoXTransformer3DModel, case: str, kernel: Attention):
    rows, options = make_pass(case)
    sizes, network, tensors = make_sizes(tiny.config), Network(tiny, kernel), make_rows(tiny, rows, (3, 8, 16, 16))
    assert (sizes.layers, sizes.video_tokens, sizes.text_tokens) == (6, 3 * 8 * 8, 16)

    def act() -> Tensor:
        return network(tensors["hidden_states"], tensors["encoder_hidden_states"], 500, **options)

    first, later = measure(act), measure(act)
    assert later == count_pass(sizes, rows, **options)
    # The first pass of a timestep also works out what it decides, once for all rows.
    assert first == later + count_modulation(sizes)


def make_mask(latents: tuple[int, ...], share: float) -> Tensor:
    """Whole rows of patches, in every frame alike."""
    frames, _, height, width = latents
    mask = torch.zeros(1, frames, 1, height, width)
    mask[..., : 2 * round(share * height / 2), :] = 1.0
    return mask


@pytest.mark.parametrize("together", [None, 1])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("case", ["two read a third", "paired", "kv_scales", "paired, kv_scales", "no kv_scale at all"])
def test_rows_in_groups_and_under_masks(
    tiny: CogVideoXTransformer3DModel, case: str, kernel: Attention, together: int | None
):
    rows, options = make_pass(case)
    sizes, network, tensors = make_sizes(tiny.config), Network(tiny, kernel), make_rows(tiny, rows, (3, 8, 16, 16))
    network.choose_rows = lambda layout, *_: together or layout.rows
    inputs = (tensors["hidden_states"], tensors["encoder_hidden_states"], 500)
    network.get_modulation(500)
    if together is None or case != "no kv_scale at all":  # a row that nobody reads does nothing in a group of its own
        assert measure(lambda: network(*inputs, **options)) == count_pass(sizes, rows, **options)
    half, quarter = (make_mask((3, 8, 16, 16), share) for share in (0.5, 0.25))
    for masks, inside in (([half, half], [96, 96]), ([quarter, None], [48, None])):
        if None in masks and case.startswith("paired") and together:
            continue  # a source that no masked row reads ends earlier where it is in a group of its own
        counted = count_pass(sizes, rows, **options, inside=inside)
        assert measure(lambda masks=masks: network(*inputs, masks=masks, **options)) == counted


def test_a_masked_edit_of_the_5b_architecture(published: Components, full: TransformerSizes):
    """The closed form: (1 + k m') / (1 + k) of a pass of a source and k rows of edits, m' the share of their tokens."""
    network, mask = Network(published.transformer, Attention("buffer", sdpa_attention)), make_mask(LATENTS, 0.2)
    tensors, nothing = make_rows(published.transformer, 3, LATENTS), torch.zeros(full.layers)
    inputs = (tensors["hidden_states"], tensors["encoder_hidden_states"], 500)
    network.get_modulation(500)
    reading = {"wanted": 2, "reads": (2, 2), "kv_scale": nothing}
    counted = count_pass(full, 3, **reading, inside=(3510, 3510))
    assert measure(lambda: network(*inputs, masks=[mask] * 2, **reading)) == counted
    share = (3510 + 226) / 17_776
    for prompts, ratio in ((1, 0.47), (4, 0.30)):
        rows, reads = 2 * prompts + 1, (2 * prompts,) * 2 * prompts
        masked = count_pass(full, rows, reads=reads, kv_scale=nothing, inside=(3510,) * 2 * prompts)
        found = masked.total / count_pass(full, rows).total
        assert found == pytest.approx((1 + 2 * prompts * share) / rows, abs=1e-4)
        assert found == pytest.approx(ratio, abs=5e-3)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_what_is_held_and_a_pass_that_attends_to_it(tiny: CogVideoXTransformer3DModel, kernel: Attention):
    sizes, network, tensors = make_sizes(tiny.config), Network(tiny, kernel), make_rows(tiny, 2, (3, 8, 16, 16))
    latents, embeds = tensors["hidden_states"], tensors["encoder_hidden_states"]
    network.get_modulation(0)
    network.get_modulation(500)
    assert measure(lambda: network.hold(latents, embeds, 0)) == count_hold(sizes, 2)
    held = HeldRows([network.hold(latents, embeds, 0)], (0, 0))
    assert measure(lambda: network(latents, embeds, 500, held=held)) == count_pass(sizes, 2, held=True)


@pytest.mark.parametrize("case", ["one row", "two read a third", "paired"])
def test_our_pass_of_the_5b_architecture(published: Components, full: TransformerSizes, case: str):
    rows, options = make_pass(case)
    network, tensors = Network(published.transformer, KERNELS[1]), make_rows(published.transformer, rows, LATENTS)
    network.get_modulation(500)
    measured = measure(lambda: network(tensors["hidden_states"], tensors["encoder_hidden_states"], 500, **options))
    assert measured == count_pass(full, rows, **options)


# The other parts


def test_text_encoder():
    encoder = make_random_t5_xxl(device=META, dtype=torch.bfloat16)
    ids = torch.zeros(1, 226, dtype=torch.long, device=META)
    counted = count_text_encoder(encoder.config.to_dict(), 226)
    assert measure(lambda: encoder(ids)) == counted
    assert counted.total / TERA == pytest.approx(2.1, abs=0.05)


@pytest.mark.parametrize("size", [(17, 480, 720), (9, 64, 96), (13, 96, 64), (21, 64, 80), (1, 64, 64)])
def test_vae_of_the_5b_model(published: Components, size: tuple[int, int, int]):
    frames, height, width = size
    check_vae(published.vae, (frames, height, width), ((frames - 1) // 4 + 1, height // 8, width // 8))


def test_vae_of_the_tiny_model():
    with META:
        vae = AutoencoderKLCogVideoX.from_config(AutoencoderKLCogVideoX.load_config(BUNDLED / "vae"))
    check_vae(vae, (9, 64, 64), (3, 16, 16))


def check_vae(vae: AutoencoderKLCogVideoX, size: tuple[int, int, int], latent_size: tuple[int, int, int]) -> None:
    like = {"device": META, "dtype": vae.dtype}
    video = torch.empty(1, 3, *size, **like)
    assert measure(lambda: vae.encode(video)) == count_encoding(vae.config, *size)
    frames = latent_size[0] + 1 - latent_size[0] % 2  # an even number is decoded with one more
    latents = torch.empty(1, vae.config.latent_channels, frames, *latent_size[1:], **like)
    assert measure(lambda: vae.decode(latents)) == count_decoding(vae.config, *latent_size)


# What is written down of it


def in_tera(work: Flops) -> float:
    return work.total / TERA


def test_the_numbers_of_the_cost_model(published: Components, full: TransformerSizes):
    row = count_diffusers_pass(full, 1)
    assert in_tera(row) == pytest.approx(332.2, abs=0.05)
    assert row.linear / TERA == pytest.approx(169.1, abs=0.05)
    assert row.attention / TERA == pytest.approx(163.1, abs=0.05)
    inversion, reconstruction = count_reference_inversion_step(full), count_reference_reconstruction_step(full)
    assert in_tera(inversion) == pytest.approx(664, abs=0.5)
    assert in_tera(reconstruction) == pytest.approx(1655, abs=0.5)
    assert in_tera(50 * (inversion + reconstruction)) == pytest.approx(116_000, abs=100)
    config = published.vae.config
    assert in_tera(count_encoding(config, 49, 480, 720)) == pytest.approx(149, abs=0.5)
    assert in_tera(count_decoding(config, 13, 60, 90)) == pytest.approx(315, abs=0.5)


@pytest.fixture(scope="module")
def script(full: TransformerSizes) -> float:
    """TFLOP of the script's 50 + 50 steps."""
    return in_tera(50 * (count_reference_inversion_step(full) + count_reference_reconstruction_step(full)))


def test_the_savings_of_the_cost_model(full: TransformerSizes, script: float):
    assert in_tera(50 * count_pass(full, 1)) / script == pytest.approx(0.143, abs=5e-4)
    last_block = count_pass(full, 4, reads=(2, 3)) + -1 * count_pass(full, 4, wanted=2, reads=(2, 3))
    # 0.6 % of both directions, 0.9 % of a reconstruction step.
    assert 50 * in_tera(last_block) / script == pytest.approx(0.006, abs=5e-4)
    assert in_tera(last_block) / in_tera(count_reference_reconstruction_step(full)) == pytest.approx(0.0088, abs=5e-5)


@pytest.mark.parametrize(
    ("case", "tera"),
    [
        ({"rows": 4, "wanted": 2, "reads": (2, 3)}, 98_600),
        ({"rows": 3, "wanted": 2, "reads": (2, 2)}, 82_400),
        ({"rows": 2, "wanted": 1, "reads": (1,)}, 57_600),
        ({"rows": 2}, 49_800),
    ],
    ids=["the script's rows", "a shared row", "guidance off", "no injection"],
)
def test_the_totals_of_the_cost_model(full: TransformerSizes, case: dict[str, Any], tera: int):
    assert in_tera(50 * (count_pass(full, 1) + count_pass(full, **case))) == pytest.approx(tera, abs=50)


def test_modulation_is_next_to_nothing(full: TransformerSizes):
    assert count_diffusers_pass(full, 3) == count_pass(full, 3) + 3 * count_modulation(full)
    assert count_modulation(full).total / count_pass(full, 1).total < 1e-5


def test_a_linear_layer_and_attention_by_hand():
    assert count_linear(5, 7, 11) == 2 * 5 * 7 * 11
    assert count_attention(5, 7, 12) == 2 * (5 * 7 * 12) + 2 * (5 * 7 * 12)
    work = Flops(3, 4) + Flops(10, 20)
    assert work == Flops(13, 24) and work.total == 37 and 2 * work == work * 2 == Flops(26, 48)


def test_what_cannot_be_counted_is_refused(tiny: CogVideoXTransformer3DModel):
    with pytest.raises(ValueError, match=r"^config: patches in time are not counted, got patch_size_t=2"):
        make_sizes({**tiny.config, "patch_size_t": 2})
    with pytest.raises(ValueError, match=r"^latents: height and width must be multiples of 2, got 16 x 15"):
        make_sizes(tiny.config, (3, 8, 16, 15))
