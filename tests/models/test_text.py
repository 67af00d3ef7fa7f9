"""Prompts are encoded once, alone, and with a word about what the model will not read."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors.torch import load_file, save_file

from ddim_lightning.models.checkpoint import read_checkpoint
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.models.prompt_cache import PromptCache, digest_text_encoder
from ddim_lightning.models.text import PromptEncoder

CPU = torch.device("cpu")


class Loader:
    """Loads the text encoder, and counts how often and where to."""

    def __init__(self, folder):
        self.folder, self.devices = folder, []

    def __call__(self, device):
        self.devices.append(device)
        return load_text_encoder(str(self.folder), device=device, dtype=torch.float32)


@pytest.fixture(scope="module")
def parts(tiny_model):
    return load_components(str(tiny_model), device=CPU, dtype=torch.float32)


@pytest.fixture
def loader(tiny_model):
    return Loader(tiny_model)


@pytest.fixture
def encoder(parts, loader):
    return PromptEncoder(parts.tokenizer, loader, 16, CPU)


@pytest.mark.parametrize("prompt", ["", "a red circle moving right on a blue background"])
def test_embeddings_are_the_pipelines(prompt, parts, encoder, tiny_model):
    text_encoder = load_text_encoder(str(tiny_model), device=CPU, dtype=torch.float32)
    pipeline = CogVideoXPipeline(parts.tokenizer, text_encoder, parts.vae, parts.transformer, parts.scheduler)
    theirs, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=16)
    ours = encoder(prompt)
    assert ours.shape[:2] == (1, 16) and not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_text_encoder_is_loaded_once_and_only_when_a_prompt_needs_it(encoder, loader):
    assert encoder.text_encoder is None and loader.devices == []
    first = encoder("a red circle")
    assert encoder("a red circle") is first
    encoder("a square")
    assert loader.devices == [CPU] and encoder.load() is encoder.text_encoder


def test_embeddings_outlive_a_text_encoder_that_is_released(encoder, loader):
    first = encoder("a red circle")
    encoder.release()
    assert encoder.text_encoder is None
    assert encoder("a red circle") is first and loader.devices == [CPU]
    # A prompt that it has not seen brings it back.
    encoder("a square")
    assert loader.devices == [CPU] * 2 and encoder.text_encoder is not None


def test_what_was_encoded_is_dropped_for_other_weights(encoder):
    before = encoder("a red circle")
    encoder.text_encoder.shared.weight.add_(1.0)
    assert encoder("a red circle") is before
    encoder.clear_cache()
    assert not torch.allclose(encoder("a red circle"), before)


def test_thousands_of_prompts_stay_on_the_host_and_a_few_on_the_device(parts):
    class Encoder:  # meta stands for a device whose memory counts
        def __call__(self, ids):
            return (torch.zeros(*ids.shape, 8),)

    encoder = PromptEncoder(parts.tokenizer, lambda device: Encoder(), 16, torch.device("meta"))
    for k in range(200):
        encoder.prepare(f"a circle {k}")
    assert not encoder._on_device and {embeds.device for embeds in encoder._embeds.values()} == {CPU}
    assert {encoder(f"a circle {k}").device.type for k in range(200)} == {"meta"}
    assert len(encoder._on_device) == 64


def test_another_device_gets_embeddings_of_its_own(encoder):
    first = encoder("a red circle")
    encoder.to(torch.device("meta"))
    assert {weight.device.type for weight in encoder.text_encoder.parameters()} == {"meta"}
    encoder.text_encoder = lambda ids: (torch.ones(*ids.shape, 8),)  # since nothing comes back from meta
    assert encoder("a red circle").device.type == "meta"
    assert encoder("a red circle").shape != first.shape


def test_batches_are_fresh_and_have_gradients_where_wanted(encoder):
    encoder.load().requires_grad_(True)
    embeds = encoder.encode_batch(["a red circle", ""])
    assert embeds.requires_grad and embeds.shape[:2] == (2, 16)
    alone = encoder("a red circle")
    assert not alone.requires_grad
    torch.testing.assert_close(embeds[:1].detach(), alone, rtol=1e-5, atol=1e-5)


def test_weights_loaded_under_inference_mode_can_train(encoder):
    with torch.inference_mode():
        embeds = encoder("a red circle")
    assert not embeds.is_inference()
    assert not any(weight.is_inference() for weight in encoder.text_encoder.parameters())


def test_truncated_prompts_and_unknown_words_are_told(encoder):
    for prompt in ("a red circle", "a red zebra on a zebra", "a " * 15 + "red circle"):
        encoder(prompt)
    assert encoder.get_warnings(["a red circle"]) == []
    (unknown,) = encoder.get_warnings(["a red zebra on a zebra"] * 2)
    assert unknown.startswith("prompt 'a red zebra on a zebra': ") and unknown.count("'zebra'") == 1
    (truncated,) = encoder.get_warnings(["a " * 15 + "red circle"])
    assert re.match("prompt truncated: .*15 of its 17 tokens.*'red circle'", truncated)


class TestCache:
    """Embeddings that outlive the run."""

    @pytest.fixture
    def make(self, parts, tmp_path):
        def make(model, dtype=torch.float32):
            cache = PromptCache(tmp_path / "kept", digest_text_encoder(read_checkpoint(str(model))), dtype)
            return PromptEncoder(parts.tokenizer, Loader(model), 16, CPU, cache)

        return make

    def finds(self, encoder, prompt):
        return encoder.cache.find(prompt, CPU).is_file()

    def test_a_later_run_needs_no_text_encoder(self, make, tiny_model, tmp_path):
        first = make(tiny_model)("a red zebra")
        later = make(tiny_model)
        assert torch.equal(later("a red zebra"), first)
        assert later.text_encoder is None
        (warning,) = later.get_warnings(["a red zebra"])
        assert "'zebra'" in warning
        assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".safetensors"]
        # A prompt that is not there is encoded, and kept too.
        later("a square")
        assert later.text_encoder is not None and self.finds(make(tiny_model), "a square")

    def test_other_weights_words_and_dtypes_find_nothing(self, make, tiny_model, tmp_path):
        encoder = make(tiny_model)
        encoder("a square")
        assert self.finds(encoder, "a square") and not self.finds(encoder, "a circle")
        # What another kind of device has made is found; what is made here is kept beside it.
        there = encoder.cache.find("a square", torch.device("meta"))
        assert there.is_file() and there == encoder.cache.find("a square", CPU)
        assert not self.finds(make(tiny_model, torch.bfloat16), "a square")
        changed = tmp_path / "changed"
        shutil.copytree(tiny_model, changed)
        assert self.finds(make(changed), "a square")  # the same content somewhere else
        weights = changed / "text_encoder" / "model.safetensors"
        tensors = load_file(weights)
        tensors["shared.weight"] += 1e-3
        save_file(tensors, weights, metadata={"format": "pt"})
        assert not self.finds(make(changed), "a square")

    def test_the_pieces_of_a_large_file_tell_it_from_another(self, tiny_model, tmp_path):
        large = tmp_path / "large"
        shutil.copytree(tiny_model, large)
        weights = large / "text_encoder" / "model.safetensors"
        tensors = load_file(weights) | {"more": torch.rand(2**24, generator=torch.Generator().manual_seed(0))}
        save_file(tensors, weights, metadata={"format": "pt"})
        checkpoint = read_checkpoint(str(large))
        before = digest_text_encoder(checkpoint)
        assert digest_text_encoder(checkpoint) == before
        save_file(tensors | {"more": tensors["more"] * 1.001}, weights, metadata={"format": "pt"})
        assert digest_text_encoder(checkpoint) != before

    def test_a_damaged_file_is_named(self, make, tiny_model, tmp_path):
        make(tiny_model)("a square")
        (path,) = (tmp_path / "kept").iterdir()
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ValueError, match=f"^prompt_cache: {re.escape(str(path))} is damaged"):
            make(tiny_model)("a square")
