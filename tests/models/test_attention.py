"""The processor against diffusers' own, and reading against attention written out."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ddim_lightning.models.attention import ReadingAttnProcessor, apply_attention, resolve_attention, sdpa_attention
from ddim_lightning.models.conditioning import make_rotary_table
from ddim_lightning.models.network import run_network

CPU = torch.device("cpu")


def scaling_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """A user's own backend: attention written out."""
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (logits if bias is None else logits + bias).softmax(-1) @ value


class _Frame:
    """The two attributes of a pipeline that its rotary method reads."""

    vae_scale_factor_spatial = 8

    def __init__(self, transformer) -> None:  # type: ignore[no-untyped-def]
        self.transformer = transformer


def diffusers_rotary(transformer, frames: int, height: int, width: int):  # type: ignore[no-untyped-def]
    frame = _Frame(transformer)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(frame, height * 8, width * 8, frames, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(3, 8, 12), (2, 6, 4)])
def test_rotary_table_is_the_pipelines_behind_identity_rows(transformer, size) -> None:  # type: ignore[no-untyped-def]
    cos, sin = make_rotary_table(transformer, *size, CPU)
    theirs = diffusers_rotary(transformer, *size)
    assert torch.equal(cos[7:], theirs[0]) and torch.equal(sin[7:], theirs[1])
    text = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_rotary_emb(text, (cos[:7], sin[:7])), text)


@pytest.mark.parametrize("rotary", [True, False])
def test_network_equals_diffusers_forward(rotary, transformer, flat_transformer, latents, embeds) -> None:  # type: ignore[no-untyped-def]
    model = transformer if rotary else flat_transformer
    rows = torch.cat([embeds[p] for p in ("", "cat", "dog", "bird")])
    timestep = torch.tensor([999, 500, 20, 3])
    theirs = model(
        latents, rows, timestep, image_rotary_emb=diffusers_rotary(model, 3, 8, 12) if rotary else None
    ).sample
    apply_attention(model, sdpa_attention)
    ours = run_network(model, latents, rows, timestep, make_rotary_table(model, 3, 8, 12, CPU) if rotary else None)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def attend_by_hand(attn, hidden: Tensor, rotary, extra: Tensor | None, strength: float) -> Tensor:  # type: ignore[no-untyped-def]
    """One row of tokens; ``extra`` are the tokens of the row it reads. Softmax written out, in double precision."""

    def project(tokens: Tensor, projection, norm=None) -> Tensor:  # type: ignore[no-untyped-def]
        heads = projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        if norm is None:
            return heads.double()
        return apply_rotary_emb(norm(heads), rotary).double()

    query, key, value = (
        project(hidden, attn.to_q, attn.norm_q),
        project(hidden, attn.to_k, attn.norm_k),
        project(hidden, attn.to_v),
    )
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).exp()
    numerator, denominator = weights @ value, weights.sum(-1, keepdim=True)
    if extra is not None:
        key, value = project(extra, attn.to_k, attn.norm_k), project(extra, attn.to_v)
        weights = strength * (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).exp()
        numerator, denominator = numerator + weights @ value, denominator + weights.sum(-1, keepdim=True)
    return attn.to_out[0]((numerator / denominator).float().transpose(1, 2).flatten(2))


@pytest.mark.parametrize("strength", [None, 1.0, 0.3, 0.0])
@pytest.mark.parametrize("reads", [[2, 3], [3, 3], [3]])
def test_reading_is_attention_over_both_sets_of_keys(transformer, reads, strength) -> None:  # type: ignore[no-untyped-def]
    attn = transformer.transformer_blocks[1].attn1
    generator = torch.Generator().manual_seed(4)
    text, video = torch.randn(4, 7, 32, generator=generator), torch.randn(4, 72, 32, generator=generator)
    rotary = make_rotary_table(transformer, 3, 8, 12, CPU)
    log_strength = None if strength is None else torch.tensor(strength).log()
    ours = ReadingAttnProcessor(sdpa_attention)(
        attn, video, text, image_rotary_emb=rotary, reads=torch.tensor(reads), log_strength=log_strength
    )
    tokens = torch.cat([text, video], dim=1)
    for row in range(4):
        extra = tokens[reads[row], None] if row < len(reads) else None
        theirs = attend_by_hand(attn, tokens[row, None], rotary, extra, 1.0 if strength is None else strength)
        torch.testing.assert_close(torch.cat([ours[1], ours[0]], dim=1)[row, None], theirs, rtol=0, atol=2e-6)


def test_a_backend_of_ones_own_by_dotted_path(transformer, latents, embeds, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my_backend.py").write_text(
        "calls = []\n"
        "def attend(query, key, value, bias):\n"
        "    calls.append(query.shape)\n"
        "    from torch.nn.functional import scaled_dot_product_attention\n"
        "    return scaled_dot_product_attention(query, key, value, attn_mask=bias)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    apply_attention(transformer, resolve_attention("my_backend.attend", CPU))
    rotary = make_rotary_table(transformer, 3, 8, 12, CPU)
    run_network(transformer, latents[:1], embeds["cat"], torch.tensor([500]), rotary)
    import my_backend

    assert my_backend.calls == [(1, 2, 79, 16)] * 3


def test_backends_agree(transformer, latents, embeds) -> None:  # type: ignore[no-untyped-def]
    rotary = make_rotary_table(transformer, 3, 8, 12, CPU)
    rows, timestep = torch.cat([embeds["cat"], embeds["dog"]]), torch.full((2,), 500)
    strength = torch.tensor([1.0, 0.5, 0.0])
    outputs = []
    for attend in (sdpa_attention, scaling_attention):
        apply_attention(transformer, attend)
        outputs.append(run_network(transformer, latents[:2], rows, timestep, rotary, torch.tensor([1]), strength))
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)


def test_automatic_backend_is_sdpa() -> None:
    assert resolve_attention("auto", CPU) is resolve_attention("sdpa", CPU) is sdpa_attention


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xformers", "'xformers' needs a CUDA device .* on cpu here only 'auto' and 'sdpa' are available"),
        ("flash", "must be 'auto', 'sdpa', 'xformers' or the dotted path of a function, got 'flash'"),
        ("no_such_module.attend", "'no_such_module.attend' could not be imported"),
        ("math.attend", "'math.attend' could not be imported"),
        ("math.pi", "must be the dotted path of a function, got 'math.pi'"),
    ],
)
def test_unavailable_backends_say_what_is_available(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^attention: {message}"):
        resolve_attention(name, CPU)
