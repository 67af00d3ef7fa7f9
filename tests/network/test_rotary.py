"""The rotary table over the whole sequence: the pipeline's, a closed form, and both forms of the rotation."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

from ddim_lightning.network.block import rotate
from ddim_lightning.network.kernels import CPU_KERNELS
from ddim_lightning.network.network import Network
from ddim_lightning.network.rotary import make_rotary_table
from tests.network.reference import make_diffusers_rotary

CPU = torch.device("cpu")
SDPA = CPU_KERNELS["sdpa"]


@pytest.mark.parametrize("size", [(3, 8, 12), (2, 8, 4)])
def test_rotary_table_is_the_pipelines_behind_identity_rows(transformer, size):
    cos, sin = make_rotary_table(transformer, *size, CPU)
    theirs = make_diffusers_rotary(transformer, *size)
    assert torch.equal(cos[7:], theirs[0]) and torch.equal(sin[7:], theirs[1])
    text = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_rotary_emb(text, (cos[:7], sin[:7])), text)


def test_at_the_native_size_angles_are_positions_times_frequencies(transformer):
    """Of 16 channels of a head 4 turn with time, 6 with height, 6 with width; RoFormer, equation 15."""
    cos, sin = (table[7:].view(3, 4, 6, 16) for table in make_rotary_table(transformer, 3, 8, 12, CPU))
    for t in range(3):
        for y in range(4):
            for x in range(6):
                pairs = [(place, d, k) for place, d in ((t, 4), (y, 6), (x, 6)) for k in range(d // 2)]
                angles = [place * 10000.0 ** (-2 * k / d) for place, d, k in pairs for _ in "cs"]
                ours = zip(cos[t, y, x].tolist(), sin[t, y, x].tolist(), angles, strict=True)
                assert all(abs(c - math.cos(p)) < 1e-5 and abs(s - math.sin(p)) < 1e-5 for c, s, p in ours)


def test_a_table_has_float32_rows_for_text_and_video_on_its_device(transformer):
    for table in make_rotary_table(transformer.to(torch.bfloat16), 2, 6, 4, torch.device("meta")):
        assert table.shape == (7 + 2 * 3 * 2, 16) and table.dtype == torch.float32 and table.device.type == "meta"


def test_a_network_makes_one_table_a_size(transformer, flat_transformer):
    network, latents = Network(transformer, SDPA), torch.zeros(2, 3, 4, 8, 12)
    first = network.get_rotary(latents)
    assert network.get_rotary(latents[:1]) is first
    assert network.get_rotary(latents[:, :2])[0].shape[0] == 7 + 2 * 4 * 6
    assert all(map(torch.equal, first, make_rotary_table(transformer, 3, 8, 12, CPU)))
    assert Network(flat_transformer, SDPA).get_rotary(latents) is None


def test_rotation_keeps_lengths_and_depends_on_distances_alone(transformer):
    """The product of a query and a key, turned by their tokens' angles: equal for equal distances along an axis."""
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table = tuple(part.double() for part in make_rotary_table(transformer, 3, 8, 12, CPU))
    turned = [rotate(one.expand(1, 7 + 72, 1, 16), table)[0, 7:, 0].view(3, 4, 6, 16) for one in (query, key)]
    torch.testing.assert_close(turned[0].norm(dim=-1), query.norm().expand(3, 4, 6), rtol=0, atol=1e-6)
    logits = torch.einsum("tyxc,uvwc->tyxuvw", *turned)
    assert float(logits[0, 0, 0, 1, 2, 3] - logits[1, 1, 2, 2, 3, 5]) == pytest.approx(0.0, abs=1e-5)
    assert abs(float(logits[0, 0, 0, 1, 2, 3] - logits[0, 0, 0, 1, 3, 2])) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_of_the_rotation_are_diffusers(transformer, dtype):
    cos, sin = make_rotary_table(transformer, 3, 8, 12, CPU)
    x = torch.randn(2, 79, 2, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = apply_rotary_emb(x.transpose(1, 2), (cos, sin)).transpose(1, 2)
    assert torch.equal(rotate(x, (cos, sin)), theirs)
    if dtype == torch.float32:
        torch.testing.assert_close(rotate(x, torch.complex(cos[:, ::2], sin[:, ::2])), theirs, rtol=0, atol=1e-6)
