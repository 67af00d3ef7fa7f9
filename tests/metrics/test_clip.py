"""CLIP's numbers are those of transformers called by hand."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPProcessor

from ddim_lightning.metrics.measurer import load_measurer
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.metrics.pieces import Piece
from tests.metrics.networks import write_clip

NAMES = ("clip_text", "clip_frames", "five_clip")
PROMPT = "a dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (4, 3, 30, 26), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(4, 30, 26, dtype=torch.bool)
    mask[1:, 3:20, 4:15] = True
    return Piece(frames, frames, mask)


def embed_by_hand(folder, frames):
    model, processor = (kind.from_pretrained(folder, local_files_only=True) for kind in (CLIPModel, CLIPProcessor))
    inputs = processor(text=[PROMPT], images=list(frames), return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**inputs)
    return output.image_embeds, output.text_embeds


@pytest.mark.parametrize("lengths", [(4,), (1, 3)])
def test_similarities_are_those_of_transformers(folder, clip, lengths):
    measurer = load_measurer(NAMES, Networks(clip_model=str(folder)))
    pieces = zip(*(tensor.split(lengths) for tensor in (clip.video, clip.reference, clip.mask)), strict=True)
    measured = measurer.measure([Piece(*tensors) for tensors in pieces], PROMPT)
    images, text = embed_by_hand(folder, clip.video)
    fits = 100 * cosine_similarity(images, text).clamp_min(0)
    assert measured["clip_text"] == pytest.approx(fits.mean().item(), rel=1e-4)
    assert measured["clip_similarity_target_image"] == measured["clip_text"]
    alike = cosine_similarity(images[1:], images[:-1])
    assert measured["clip_frames"] == pytest.approx(alike.mean().item(), rel=1e-5)
    pairs = [cosine_similarity(images[i], images[j], dim=0) for i in range(4) for j in range(4) if i != j]
    assert measured["clip_frames_pairs"] == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    masked, _ = embed_by_hand(folder, clip.video * clip.mask[:, None])
    fits = 100 * cosine_similarity(masked, text).clamp_min(0)[1:]  # the first frame has no such part
    assert measured["clip_similarity_target_image_edit_part"] == pytest.approx(fits.mean().item(), rel=1e-4, abs=1e-4)


def test_without_a_prompt_or_a_second_frame_less_is_measured(folder, clip):
    measurer = load_measurer(NAMES, Networks(clip_model=str(folder)))
    assert set(measurer.measure([clip])) == {"clip_frames", "clip_frames_pairs"}
    one = Piece(clip.video[:1], clip.reference[:1])
    assert set(measurer.measure([one], PROMPT)) == {"clip_text", "clip_similarity_target_image"}


def test_a_prompt_that_clip_does_not_read_to_its_end_is_told_by_us_alone(folder, clip, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    measuring = load_measurer(["clip_text"], Networks(clip_model=str(folder))).start("a very long prompt")
    measuring.add(clip)
    assert set(measuring.read()) == {"clip_text"}
    assert any("12" in note for note in measuring.notes)
    assert not caplog.records  # transformers' own says that indexing will fail, which it does not
    assert measuring.problems == []
