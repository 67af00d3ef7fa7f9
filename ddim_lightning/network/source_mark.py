"""A learned vector tells a source that is read from a video that is edited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn

SOURCE_MARK = "source_mark"
"""The name of a mark among the children of a transformer."""


class SourceMark(nn.Module):
    """A `SourceMark` is added to the video tokens of a clean source, whose keys and values an edit attends to.

    Both are rows of one model, and both show a video; an adapter that was trained on pairs of them learns the mark
    along. Zero marks nothing.

    Args:
        width: Of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, video: Tensor) -> Tensor:
        """Mark video tokens (..., width)."""
        return video + self.weight.to(video.dtype)


def find_mark(transformer: CogVideoXTransformer3DModel) -> SourceMark | None:
    """Return the mark that belongs to a transformer, ``None`` where it has none."""
    mark = getattr(transformer, SOURCE_MARK, None)
    return mark if isinstance(mark, SourceMark) else None


def add_mark(transformer: CogVideoXTransformer3DModel) -> SourceMark:
    """Give a transformer a mark of zero, or return the one it has."""
    mark = find_mark(transformer)
    if mark is None:
        weight = transformer.proj_out.weight
        mark = SourceMark(weight.shape[1]).to(weight.device)
        transformer.add_module(SOURCE_MARK, mark)
    return mark


def remove_mark(transformer: CogVideoXTransformer3DModel) -> None:
    """Make a transformer one that never had a mark."""
    transformer._modules.pop(SOURCE_MARK, None)


@contextmanager
def marked(transformer: CogVideoXTransformer3DModel, rows: Sequence[int], num_text: int) -> Iterator[None]:
    """Mark the video tokens of some rows in passes of diffusers' own forward; of none where there is no mark.

    Args:
        transformer: The model.
        rows: Which rows of the pass are sources.
        num_text: Text tokens of a row, which come first.
    """
    mark = find_mark(transformer)
    if mark is None or not rows:
        yield
        return

    def add(_: nn.Module, __: object, tokens: Tensor) -> Tensor:
        video, source = tokens[:, num_text:], torch.zeros(len(tokens), 1, 1, dtype=torch.bool, device=tokens.device)
        source[list(rows)] = True
        return torch.cat([tokens[:, :num_text], torch.where(source, mark(video), video)], dim=1)

    handle = transformer.patch_embed.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
