"""What an editor asks of a forward pass is checked against what the chosen one can do, before any work."""

from __future__ import annotations

from ddim_lightning.diffusion.editors import Editor

NOTHING_HELD = "exported: artifacts hold no keys and values for later steps; the editor must be one that reads none"
ALL_TOKENS = "outside: artifacts compute all tokens; must be edit with exported, got 'source'"


def check_for_artifacts(editor: Editor) -> None:
    """Raise a ValueError for an editor that reads what is held of a former pass, or splits the tokens of a row."""
    check_for_block_artifacts(editor)
    if editor.context_nfe:
        raise ValueError(f"{NOTHING_HELD}, got {type(editor).__name__}")


def check_for_block_artifacts(editor: Editor) -> None:
    """Raise a ValueError for an editor that splits the tokens of a row: how many there are is the mask's."""
    if editor.splits_tokens:
        raise ValueError(ALL_TOKENS)


def check_for_diffusers(editor: Editor) -> None:
    """Raise a ValueError for an editor that splits the tokens of a row, which diffusers' blocks do not."""
    if editor.splits_tokens:
        rule = "diffusers' blocks compute all tokens; must be edit with forward='diffusers'"
        raise ValueError(f"outside: {rule}, got 'source'")
