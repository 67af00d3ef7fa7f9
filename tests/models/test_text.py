"""Prompts are encoded once, alone, and with a word about what the model will not read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file, save_file

from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.models.prompt_cache import PromptCache, digest_text_encoder
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
        encoder.clear_cache()
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


class TestStore:
    """Embeddings that outlive the run."""

    def make(self, parts: Components, folder: Path, model: Path, text_encoder: bool = True, **other: object):
        settings = {"device": torch.device("cpu"), "dtype": torch.float32} | other
        store = PromptCache(folder, digest_text_encoder(model), **settings)
        return PromptEncoder(parts.tokenizer, parts.text_encoder if text_encoder else None, 16, store)

    def test_a_later_run_needs_no_text_encoder(self, parts: Components, tiny_model: Path, tmp_path: Path) -> None:
        first = self.make(parts, tmp_path / "kept", tiny_model)("a red zebra")
        later = self.make(parts, tmp_path / "kept", tiny_model, text_encoder=False)
        assert "a red zebra" in later and "a square" not in later
        assert torch.equal(later("a red zebra"), first)
        assert later.get_warnings(["a red zebra"]) == ["prompt 'a red zebra': the tokenizer does not know 'zebra'"]
        with pytest.raises(ValueError, match="released before it saw 'a square'"):
            later("a square")
        assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".safetensors"]

    def test_other_weights_words_and_dtypes_find_nothing(
        self, parts: Components, tiny_model: Path, tmp_path: Path
    ) -> None:
        self.make(parts, tmp_path / "kept", tiny_model)("a square")
        assert "a square" not in self.make(parts, tmp_path / "kept", tiny_model, dtype=torch.bfloat16)
        changed = tmp_path / "changed"
        shutil.copytree(tiny_model, changed)
        assert "a square" in self.make(parts, tmp_path / "kept", changed)  # the same content somewhere else
        weights = changed / "text_encoder" / "model.safetensors"
        tensors = load_file(weights)
        tensors["shared.weight"] += 1e-3
        save_file(tensors, weights, metadata={"format": "pt"})
        assert "a square" not in self.make(parts, tmp_path / "kept", changed)

    def test_the_pieces_of_a_large_file_tell_it_from_another(self, tiny_model: Path, tmp_path: Path) -> None:
        large = tmp_path / "large"
        shutil.copytree(tiny_model, large)
        weights = large / "text_encoder" / "model.safetensors"
        tensors = load_file(weights) | {"more": torch.rand(2**24, generator=torch.Generator().manual_seed(0))}
        save_file(tensors, weights, metadata={"format": "pt"})
        before = digest_text_encoder(large)
        assert digest_text_encoder(large) == before
        save_file(tensors | {"more": tensors["more"] * 1.001}, weights, metadata={"format": "pt"})
        assert digest_text_encoder(large) != before

    def test_a_damaged_file_is_named(self, parts: Components, tiny_model: Path, tmp_path: Path) -> None:
        encoder = self.make(parts, tmp_path, tiny_model)
        encoder("a square")
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=rf"embeddings: {re.escape(str(path))} is damaged and must be deleted"):
            self.make(parts, tmp_path, tiny_model)("a square")
