"""Prompts are encoded once, alone, and with a word about what the model will not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline

from ddim_lightning.models.conditioning import PromptEncoder
from ddim_lightning.models.loading import Components, load_components


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> Components:
    return load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def encoder(parts: Components) -> PromptEncoder:
    return PromptEncoder(parts.tokenizer, parts.text_encoder, 16)


@pytest.mark.parametrize("prompt", ["", "a red circle moving right on a blue background"])
def test_embeddings_are_the_pipelines(prompt: str, parts: Components, encoder: PromptEncoder) -> None:
    pipeline = CogVideoXPipeline(parts.tokenizer, parts.text_encoder, parts.vae, parts.transformer, parts.scheduler)
    theirs, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)
    ours = encoder(prompt)
    assert ours.shape[:2] == (1, 16) and not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_each_prompt_is_encoded_once_and_outlives_the_encoder(encoder: PromptEncoder) -> None:
    first = encoder("a red circle")
    encoder.release()
    assert encoder("a red circle") is first
    assert "a red circle" in encoder and "a square" not in encoder
    with pytest.raises(ValueError, match="released before it saw 'a square'"):
        encoder("a square")


def test_batches_are_fresh_and_have_gradients_where_wanted(parts: Components, encoder: PromptEncoder) -> None:
    parts.text_encoder.requires_grad_(True)
    try:
        embeds = encoder.encode_batch(["a red circle", ""])
        assert embeds.requires_grad and embeds.shape[:2] == (2, 16)
        torch.testing.assert_close(embeds[:1].detach(), encoder("a red circle"), rtol=1e-5, atol=1e-5)
        encoder.forget()
        assert "a red circle" not in encoder
    finally:
        parts.text_encoder.requires_grad_(False)


def test_truncated_prompts_and_unknown_words_are_told(encoder: PromptEncoder) -> None:
    for prompt in ("a red circle", "a red zebra on a zebra", "a " * 15 + "red circle"):
        encoder(prompt)
    assert encoder.get_warnings(["a red circle"]) == []
    (unknown,) = encoder.get_warnings(["a red zebra on a zebra"] * 2)
    assert unknown == "prompt 'a red zebra on a zebra': the tokenizer does not know 'zebra'"
    (truncated,) = encoder.get_warnings(["a " * 15 + "red circle"])
    assert truncated == "prompt truncated: the model reads 15 of its 17 tokens; not read: 'red circle'"
