"""torch.compile, applied block by block to a network that is already right."""

from __future__ import annotations

from typing import Any, Protocol

import torch

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

GRAPHS = 64
"""Most graphs of one function: each row layout and each size of clips wants its own."""


class RunsBlocks(Protocol):
    """What holds the function that runs a block."""

    run_block: Any


def check_compile_mode(mode: str | bool) -> None:
    """Raise a ValueError unless ``mode`` is a bool or a mode of torch.compile."""
    if not isinstance(mode, bool) and mode not in MODES:
        raise ValueError(f"compile: must be true, false or one of {', '.join(MODES)}, got {mode!r}")


def apply_compile(network: RunsBlocks, mode: str | bool) -> None:
    """Compile the function that runs a block, with full graphs and static shapes.

    The weights are its arguments, so that one graph serves all layers; each row layout has its own. A block that cannot
    be compiled whole raises when it first runs: there is no silent fallback.

    Args:
        network: What runs blocks; changed in place.
        mode: ``True`` for torch.compile's default mode, else the name of a mode.
    """
    named = mode if isinstance(mode, str) else None
    function = torch.compile(network.run_block, fullgraph=True, dynamic=False, mode=named)

    def run_block(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return function(*arguments)  # type: ignore[no-untyped-call]

    network.run_block = run_block
