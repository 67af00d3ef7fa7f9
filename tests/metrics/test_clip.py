"""CLIP scores with a small random CLIP from a folder, against its two towers called by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ddim_lightning.metrics.clip import CLIP, clip_text_similarity, load_clip
from ddim_lightning.metrics.motion import frame_consistency

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.2, 0.4, 0.5]), torch.tensor([0.3, 0.25, 0.2])
SIZE, CONTEXT = 24, 9
PROMPT = "a red hat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part of a CLIP folder, sizes pairwise different; its words are letters."""
    folder = tmp_path_factory.mktemp("clip") / "random-clip"
    letters = "abcdefghijklmnopqrstuvwxyz"
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: k for k, symbol in enumerate(symbols)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 28, "vocab_size": len(symbols), "max_position_embeddings": CONTEXT}
    text |= {"eos_token_id": vocabulary["<|endoftext|>"], "bos_token_id": vocabulary["<|startoftext|>"]}
    vision = {"hidden_size": 20, "intermediate_size": 36, "image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=text | sizes, vision_config=vision | sizes, projection_dim=12)
    model = CLIPModel(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=MEAN.tolist(),
        image_std=STD.tolist(),
    )
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> CLIP:
    return load_clip(str(folder), device=CPU)


def video(f: int = 3, h: int = SIZE, w: int = SIZE) -> torch.Tensor:
    return torch.rand((f, 3, h, w), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def frames_by_hand(clip: CLIP, frames: torch.Tensor) -> torch.Tensor:
    pixels = (frames - MEAN[:, None, None]) / STD[:, None, None]
    return clip.model.visual_projection(clip.model.vision_model(pixels).pooler_output)


@torch.no_grad()
def text_by_hand(clip: CLIP, tokens: list[str]) -> torch.Tensor:
    ids = [clip.processor.tokenizer.convert_tokens_to_ids(token) for token in tokens]
    hidden = clip.model.text_model(torch.tensor([ids])).last_hidden_state[0, -1]
    return clip.model.text_projection(hidden)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_frames_are_normalised_and_embedded(clip):
    frames = video()
    assert clip.embed_frames(frames).shape == (3, 12)
    assert torch.allclose(clip.embed_frames(frames), frames_by_hand(clip, frames), atol=1e-5)


def test_frames_are_cropped_to_their_middle(clip):
    wide = video(2, SIZE, SIZE + 10)
    assert torch.allclose(clip.embed_frames(wide), frames_by_hand(clip, wide[..., 5:-5]), atol=1e-5)


def test_text_is_embedded(clip):
    tokens = ["<|startoftext|>", "a</w>", "r", "e", "d</w>", "h", "a", "t</w>", "<|endoftext|>"]
    assert torch.allclose(clip.embed_text(PROMPT), text_by_hand(clip, tokens), atol=1e-5)


def test_clip_t_is_the_mean_cosine_of_the_prompt_and_each_frame(clip):
    frames, text = video(), clip.embed_text(PROMPT)
    expected = [cosine(frame, text) for frame in frames_by_hand(clip, frames)]
    assert max(expected) - min(expected) > 1e-4
    assert clip_text_similarity(clip, frames, PROMPT) == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_clip_f_is_frame_consistency_over_its_features(clip):
    frames = video()
    first, second, third = frames_by_hand(clip, frames)
    expected = (cosine(first, second) + cosine(second, third)) / 2
    assert frame_consistency(frames, clip.embed_frames) == pytest.approx(expected, abs=1e-5)
    assert frame_consistency(frames, clip.embed_frames) != pytest.approx(frame_consistency(frames), abs=1e-3)


def test_a_text_beyond_the_context_is_cut_with_a_warning(clip):
    with pytest.warns(UserWarning, match=r"^text: CLIP reads 9 tokens, the last 2 are ignored$"):
        cut = clip.embed_text("a red hat zz")
    assert torch.isfinite(cut).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.embed_text(PROMPT)


def test_the_network_is_frozen(clip):
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_nothing_is_fetched_for_what_is_no_hub_id(folder, tmp_path, monkeypatch):
    asked = []

    def refuse(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", refuse)  # recorded, because a library may swallow the error
    with pytest.raises(FileNotFoundError, match=r"^model: no folder .*missing'?: give a CLIP folder or a hub id"):
        load_clip(str(tmp_path / "missing"), device=CPU)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(OSError, match="part"):
        load_clip(str(tmp_path / "part"), device=CPU)
    load_clip(str(folder), device=CPU)
    assert asked == []
