"""A model without a text encoder edits under prompts whose embeddings were kept."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file

from ddim_lightning import DDIMInversionModule, VideoDataModule
from ddim_lightning.data.video import write_video
from tests.modules import make_module
from tests.random_tiny import write_random_tiny

PROMPTS = ["a red circle", "a green square"]


@pytest.fixture
def kept(tmp_path):
    """A folder with the embeddings of `PROMPTS`, and two folders of one model: with its text encoder, and without."""
    whole = write_random_tiny(tmp_path / "whole")
    bare = Path(shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder", "tokenizer")))
    module = make_module(str(whole), prompt_cache=str(tmp_path / "kept"))
    module.load("cpu")
    module.encode_prompts(["", *PROMPTS])
    return tmp_path / "kept", whole, bare


def load(folder, kept, **options):
    return DDIMInversionModule.from_pretrained(
        str(folder), device="cpu", runtime={"prompt_cache": str(kept)}, **options
    )


def predict(folder, kept, video, prompts):
    module = make_module(str(folder), prompt_cache=str(kept), num_inference_steps=2, reconstruct=False)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    return trainer.predict(module, VideoDataModule([str(video)], prompts))[0]


@pytest.mark.filterwarnings("ignore")
def test_results_are_those_of_the_whole_model_and_a_clip_with_another_prompt_is_skipped(kept, tmp_path):
    cache, whole, bare = kept
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8, generator=generator)
    write_video(tmp_path / "clip.mp4", frames, Fraction(8))
    theirs, ours = (predict(folder, cache, tmp_path / "clip.mp4", PROMPTS) for folder in (whole, bare))
    assert ours.status == theirs.status == "done"
    assert ours.fingerprint == theirs.fingerprint
    assert all(torch.equal(one.frames, two.frames) for one, two in zip(ours.edits, theirs.edits, strict=True))
    skipped = predict(bare, cache, tmp_path / "clip.mp4", ["a fox"])
    assert skipped.status == "skipped" and "'a fox' is not in the prompt_cache" in skipped.reason


def test_what_needs_the_text_encoder_says_so(kept):
    cache, _, bare = kept
    module = load(bare, cache)
    with pytest.raises(ValueError, match=r"^prompt: 'a fox' is not in the prompt_cache .*float32 on cpu"):
        module.encode_prompts(["a fox"])
    with pytest.raises(ValueError, match=r"^text_encoder: the model has no text encoder"):
        module.engine.prompts.load()
    with pytest.raises(RuntimeError, match=r"^tokenizer: the model has none"):
        module.to_pipeline()


def test_a_tokenizer_alone_still_warns(kept, tmp_path):
    cache, whole, bare = kept
    shutil.copytree(whole / "tokenizer", bare / "tokenizer")
    module = load(bare, cache)
    module.encode_prompts(PROMPTS)
    assert module.tokenizer.tokenize("a red circle")
    assert module.engine.prompts.get_warnings(PROMPTS) == []


def test_without_a_prompt_cache_it_is_refused_with_what_to_do(kept):
    with pytest.raises(FileNotFoundError, match=r"^model: .* has no text_encoder: .*prompt_cache"):
        DDIMInversionModule.from_pretrained(str(kept[2]), device="cpu")


def test_the_kept_prompts_must_be_of_one_text_encoder(kept, tmp_path):
    cache, _, bare = kept
    with pytest.raises(ValueError, match=r"^prompt_cache: .*\(16 x 24\) of one text encoder, got those of 0"):
        load(bare, tmp_path / "empty")
    (cache / "damaged.safetensors").write_bytes(b"none")
    save_file({"embeds": torch.zeros(1, 8, 8)}, cache / "of-another-size.safetensors", {"encoder": "other"})
    load(bare, cache)
    save_file({"embeds": torch.zeros(1, 16, 24)}, cache / "of-another-model.safetensors", {"encoder": "other"})
    with pytest.raises(ValueError, match=r"^prompt_cache: .* of one text encoder, got those of 2"):
        load(bare, cache)
