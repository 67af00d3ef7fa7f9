"""The preset ``fast``: what approximations an editor bears, chosen on the tiny model's edits."""

from __future__ import annotations

from dataclasses import replace

from ddim_lightning.diffusion.editors.base import Editor
from ddim_lightning.diffusion.editors.inversion_free import InversionFree
from ddim_lightning.diffusion.editors.kv_injection import KVInjection
from ddim_lightning.diffusion.editors.residual_replay import ResidualReplay


def make_fast(editor: Editor) -> Editor:
    """Return an editor that evaluates fewer rows.

    `InversionFree` evaluates every fourth step; its guidance has a window already. `KVInjection` evaluates every second
    one, and reads the source in the noisier half of the steps alone, where the layout is decided: it then copies less
    of what the prompt wants to change.

    Args:
        editor: Its other options stay; so do a larger stride and a range of steps that read.

    Raises:
        ValueError: An editor that needs every step.
    """
    if isinstance(editor, InversionFree):
        return replace(editor, stride=max(4, editor.stride))
    if isinstance(editor, KVInjection) and not isinstance(editor, ResidualReplay):
        steps = (0, 0.5) if editor.steps == (0, None) else editor.steps
        return replace(editor, stride=max(2, editor.stride), steps=steps)
    raise ValueError(f"preset: fast is for InversionFree and KVInjection, got {type(editor).__name__}")
