"""torch.compile, applied block by block to a transformer that is already right."""

from __future__ import annotations

from torch import nn

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_compile_mode(mode: str | bool) -> None:
    """Raise a ValueError unless ``mode`` is a bool or a mode of torch.compile."""
    if not isinstance(mode, bool) and mode not in MODES:
        raise ValueError(f"compile: must be true, false or one of {', '.join(MODES)}, got {mode!r}")


def apply_compile(blocks: nn.ModuleList, mode: str | bool) -> None:
    """Compile every block in place, with full graphs and static shapes.

    Compiling in place keeps the keys of the state dict; compiling block by block makes one graph serve all layers. A
    block that cannot be compiled whole raises when it first runs: there is no silent fallback.

    Args:
        blocks: Blocks of one class.
        mode: ``True`` for torch.compile's default mode, else the name of a mode.
    """
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, mode=None if mode is True else mode)
