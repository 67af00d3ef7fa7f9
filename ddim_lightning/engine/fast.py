"""What `Schedule.fast` makes of an editor: its own form, beside a step cache."""

from __future__ import annotations

from ddim_lightning.diffusion.editors import Editor

FAST_STEP_CACHE = 0.5
"""Threshold of the step cache, of every editor: at it each lost less than 0.3 dB on the tiny model, and some gained."""


def make_fast(editor: Editor, step_cache: float | None) -> tuple[Editor, float]:
    """Return the form of an editor that costs less, and the threshold of the step cache beside it.

    Args:
        editor: The editor, as it was asked for.
        step_cache: Threshold that was asked for; it goes first.
    """
    return editor.fast(), FAST_STEP_CACHE if step_cache is None else step_cache
