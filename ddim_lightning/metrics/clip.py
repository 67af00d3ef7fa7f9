"""CLIP says how well frames fit a text, and how much frames are like each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ddim_lightning.metrics.pieces import Piece, to_bytes
from ddim_lightning.metrics.running import WeightedMean

_TEXT = {"clip_text": "clip_text", "five_clip": "clip_similarity_target_image"}
"""Measures that compare with a text, and what they call it."""


class Clip:
    """A `Clip` brings pictures and texts to embeddings of length 1.

    Args:
        model: A `CLIPModel` of transformers.
        processor: Its `CLIPProcessor`.
        device: Where it works.

    Radford et al. 2021, arXiv:2103.00020.
    """

    def __init__(self, model: nn.Module, processor: Any, device: torch.device) -> None:
        network: Any = model.to(device).eval()
        self._model = network
        self._processor, self._device = processor, device
        self.most_tokens = int(self._model.config.text_config.max_position_embeddings)
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """Return (n, d) embeddings of frames (n, 3, h, w) in 0 .. 1, which are rounded as those of a file are."""
        with torch.device("cpu"):  # a Trainer may have made another the default
            pixels = self._processor(images=list(to_bytes(frames).cpu()), return_tensors="pt")["pixel_values"]
        return _normalize(self._model.get_image_features(pixel_values=pixels.to(self._device)))

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """Return the (1, d) embedding of a text, of which no more than `most_tokens` are read."""
        if text not in self._texts:
            with torch.device("cpu"):
                tokens = self._processor(text=[text], return_tensors="pt", truncation=True, max_length=self.most_tokens)
            self._texts[text] = _normalize(self._model.get_text_features(**tokens.to(self._device)))
        return self._texts[text]

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, with the marks of its beginning and end."""
        return len(self._processor.tokenizer(text, verbose=False)["input_ids"])  # who asks tells of too many


class ClipMeter:
    """A `ClipMeter` measures one clip by CLIP.

    Args:
        names: Which of ``clip_text``, ``clip_frames`` and ``five_clip``.
        clip: The network.
        prompt: What the video shows; ``None`` leaves out what compares it with a text.
    """

    def __init__(self, names: Collection[str], clip: Clip, prompt: str | None) -> None:
        self._names, self._clip, self._means = set(names), clip, WeightedMean()
        if prompt is None:
            self._names -= _TEXT.keys()
        self._text = None if prompt is None or not self._names & _TEXT.keys() else clip.embed_text(prompt)
        self._last: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, piece: Piece) -> None:
        """Take in the next frames."""
        if not self._names:
            return
        embeddings = self._clip.embed(piece.video)
        if self._text is not None:
            fits = 100 * (embeddings @ self._text.T)[:, 0].clamp_min(0)
            for name in self._names & _TEXT.keys():
                self._means.add(_TEXT[name], fits, torch.ones_like(fits))
            if "five_clip" in self._names and piece.mask is not None:
                part = self._clip.embed(piece.video * piece.mask[:, None])
                fits = 100 * (part @ self._text.T)[:, 0].clamp_min(0)
                self._means.add("clip_similarity_target_image_edit_part", fits, piece.mask.flatten(1).any(1))
        if "clip_frames" in self._names:
            chain = embeddings if self._last is None else torch.cat([self._last, embeddings])
            alike = (chain[1:] * chain[:-1]).sum(1)
            self._means.add("clip_frames", alike, torch.ones_like(alike))
            self._last = embeddings[-1:]
            total = embeddings.double().sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._count += len(embeddings)

    def read(self) -> dict[str, float]:
        """Return the numbers."""
        numbers = self._means.read()
        if self._sum is not None and self._count > 1:
            # Of n vectors of length 1 the sum over all pairs is |their sum|^2 less the n products with themselves.
            pairs = self._count * (self._count - 1)
            numbers["clip_frames_pairs"] = (float(self._sum.square().sum()) - self._count) / pairs
        return numbers


def _normalize(output: Any) -> Tensor:
    features: Tensor = getattr(output, "pooler_output", output)
    return nn.functional.normalize(features.float(), dim=-1)
