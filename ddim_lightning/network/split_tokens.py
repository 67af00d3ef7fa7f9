"""The tokens of every row are split over the processes of a group, which have all tokens of some heads as they attend.

In diffusers 0.42 the class of CogVideoX has no plan for context parallelism, and its attention processor knows none:
with a plan from outside each process would attend to its own tokens alone, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn

from ddim_lightning.network.held import Held
from ddim_lightning.runtime.clip_group import ClipGroup

if TYPE_CHECKING:
    from ddim_lightning.network.diffusers_network import DiffusersNetwork


class TokenSplit:
    """A `TokenSplit` says which tokens and which heads each process has.

    The first processes have one more where tokens or heads do not divide evenly.

    Args:
        group: The processes.
        num_text: Text tokens of a row.
        num_video: Video tokens of a row.

    Source: Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv:2309.14509, section 3.1.
    """

    def __init__(self, group: ClipGroup, num_text: int, num_video: int) -> None:
        self.group = group
        self.num_text = num_text
        self.video = _divide(num_video, group.size)
        """How many video tokens each process has."""
        self._text = _divide(num_text, group.size)

    def take(self, tokens: Tensor) -> Tensor:
        """Return what this process has of all text or all video tokens, (rows, tokens, width)."""
        return tokens.tensor_split(self.group.size, dim=1)[self.group.rank]

    def gather_video(self, tokens: Tensor) -> Tensor:
        """Return all video tokens (rows, tokens, width) of what each process has of them."""
        most = max(self.video)
        padded = nn.functional.pad(tokens, (0, 0, 0, most - tokens.shape[1]))
        pieces = self.group.gather(padded).unbind(0)
        return torch.cat([piece[:, :count] for piece, count in zip(pieces, self.video, strict=True)], dim=1)

    def to_heads(self, x: Tensor) -> Tensor:
        """Return (rows, all tokens, some heads, channels), text first, of (rows, some tokens, all heads, channels)."""
        rows, _, _, channels = x.shape
        pieces = x.tensor_split(self.group.size, dim=2)
        own = pieces[self.group.rank].shape[2]
        shapes = [(rows, text + video, own, channels) for text, video in zip(self._text, self.video, strict=True)]
        parts = [
            piece.split([text, video], dim=1)
            for piece, text, video in zip(self.group.exchange(pieces, shapes), self._text, self.video, strict=True)
        ]
        return torch.cat([*(text for text, _ in parts), *(video for _, video in parts)], dim=1)

    def to_tokens(self, x: Tensor, heads: int) -> Tensor:
        """Return (rows, some tokens, all heads, channels) of what `to_heads` makes; ``heads`` are all."""
        rows, _, _, channels = x.shape
        texts = x[:, : self.num_text].split(self._text, dim=1)
        videos = x[:, self.num_text :].split(self.video, dim=1)
        pieces = [torch.cat(pair, dim=1) for pair in zip(texts, videos, strict=True)]
        own = pieces[self.group.rank].shape[1]
        shapes = [(rows, own, count, channels) for count in _divide(heads, self.group.size)]
        return torch.cat(self.group.exchange(pieces, shapes), dim=2)


class SplitTokens:
    """A `SplitTokens` evaluates rows by diffusers' blocks, each process of a group some tokens of every row.

    While the group works on no clip, and for latents that want gradients, each process evaluates all tokens.

    Args:
        network: The network; no cache may be switched on in its model.
        group: The processes. Each holds keys and values of its own heads alone.
    """

    def __init__(self, network: DiffusersNetwork, group: ClipGroup) -> None:
        self.network = network
        self.group = group

    def __call__(self, latents: Tensor, prompt_embeds: Tensor, timestep: int, **more: Any) -> Tensor:
        """Evaluate the rows; see `Network`.

        Raises:
            GroupError: Another process evaluates other rows, or is gone.
            ValueError: A cache that is switched on, or an attention processor of somebody's own.
        """
        with self._splitting(latents, prompt_embeds, (timestep, more.get("wanted"), more.get("reads"))):
            return self.network(latents, prompt_embeds, timestep, **more)

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Evaluate rows and hold their keys and values; see `Network`."""
        with self._splitting(latents, prompt_embeds, (timestep,)):
            return self.network.hold(latents, prompt_embeds, timestep)

    @contextmanager
    def _splitting(self, latents: Tensor, prompt_embeds: Tensor, about: tuple[Any, ...]) -> Iterator[None]:
        """Split the tokens from the first block to the last layer, where all processes are about to do the same."""
        if not self.group.at_work or latents.requires_grad:
            yield
            return
        transformer = self.network.transformer
        if transformer.is_cache_enabled:
            raise ValueError("ranks_split: must be rows with a cache, which decides for each process, got 'tokens'")
        processors = [block.attn1.processor for block in transformer.transformer_blocks]
        for processor in processors:
            if not hasattr(processor, "split"):
                kind = type(processor).__name__
                raise ValueError(
                    f"ranks_split: must be rows with an attention processor of yours, {kind}, got 'tokens'"
                )
        # All are here and none has failed: inside of the pass nobody could say so.
        self.group.check_same("rows", (tuple(latents.shape), tuple(prompt_embeds.shape), *about))

        def enter(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            text, video = kwargs["encoder_hidden_states"], kwargs["hidden_states"]
            split = TokenSplit(self.group, text.shape[1], video.shape[1])
            for processor in processors:
                processor.split = split
            return args, kwargs | {"encoder_hidden_states": split.take(text), "hidden_states": split.take(video)}

        def leave(_: nn.Module, __: Any, tokens: Tensor) -> Tensor:
            split: TokenSplit = processors[0].split
            return split.gather_video(tokens)

        with ExitStack() as hooks:
            first = transformer.transformer_blocks[0]
            hooks.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(transformer.proj_out.register_forward_hook(leave).remove)
            try:
                yield
            finally:
                for processor in processors:
                    processor.split = None


def check_whole_tokens(transformer: CogVideoXTransformer3DModel) -> None:
    """Raise a ValueError where diffusers' own context parallelism splits the tokens, which attention then does not see.

    Args:
        transformer: The model.
    """
    for name, module in transformer.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None and any(hook.startswith(("cp_input", "cp_output")) for hook in registry.hooks):
            rule = "must attend to all tokens, which enable_parallelism would split for an attention that knows of none"
            where = f"transformer.{name}".rstrip(".")
            raise ValueError(f"forward: {rule}; use ranks_split='tokens' instead of its hooks, got one at {where}")


def _divide(count: int, parts: int) -> list[int]:
    """Divide a count as `Tensor.tensor_split` does."""
    return [count // parts + (k < count % parts) for k in range(parts)]
