"""What `Schedule.fast` makes of an editor: its own form with fewer evaluated steps, or a step cache."""

from __future__ import annotations

from ddim_lightning.diffusion.editors import Editor

FAST_STEP_CACHE = 0.3
"""Threshold of the step cache of editors that have no form of their own; with TeaCache .1 to .3 are usual."""


def make_fast(editor: Editor, step_cache: float | None) -> tuple[Editor, float | None]:
    """Return an editor with fewer evaluated steps, and the threshold of the step cache beside it.

    Args:
        editor: The editor, as it was asked for.
        step_cache: Threshold that was asked for; it goes first.
    """
    faster = editor.fast()
    return faster, FAST_STEP_CACHE if faster is editor and step_cache is None else step_cache
