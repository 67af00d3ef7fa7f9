"""torch.compile is applied block by block to a network that is already right, and to the VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLCogVideoX

GRAPHS = 64
"""Most graphs of one function: each row layout and each size of clips wants its own."""


class RunsBlocks(Protocol):
    """A `RunsBlocks` holds the functions that run a block: for its tokens, and for its keys and values, too."""

    run_block: Any
    lend_block: Any


def apply_compile(network: RunsBlocks, mode: str | bool) -> None:
    """Compile the functions that run a block, with full graphs and static shapes.

    The weights are its arguments, so that one graph serves all layers; each row layout has its own. A block that cannot
    be compiled whole raises when it first runs: there is no silent fallback.

    Args:
        network: What runs blocks; changed in place.
        mode: ``True`` for torch.compile's default mode, else the name of a mode.
    """
    network.run_block = _compile(network.run_block, mode, _mark_sizes)
    network.lend_block = _compile(network.lend_block, mode)


def apply_vae_compile(vae: AutoencoderKLCogVideoX) -> None:
    """Compile the encoder and the decoder of a VAE likewise: a graph for their first frames, one for those after them.

    Args:
        vae: Changed in place.
    """
    for part in (vae.encoder, vae.decoder):
        part.forward = _compile(part.forward, True)


def _compile(
    function: Callable[..., Any], mode: str | bool, mark: Callable[..., None] = lambda *_: None
) -> Callable[..., Any]:
    named = mode if isinstance(mode, str) else None
    compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=named)

    def run(*arguments: Any, **named_arguments: Any) -> Any:
        mark(*arguments)
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return compiled(*arguments, **named_arguments)

    return run


def _mark_sizes(video: Any, text: Any, weights: Any, modulation: Any, rotary: Any, *others: Any) -> None:
    """Let one graph serve any number of tokens where a mask decides how many a row has of its own."""
    lent = others[-1]
    if lent is None or lent.outside is None:
        return
    torch._dynamo.maybe_mark_dynamic(video, 1)
    for tensor in (lent.inside, lent.outside, *(rotary or ())):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
