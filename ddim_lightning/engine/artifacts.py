"""Exported artifacts lie in a folder beside a manifest, which says of which form they are.

Nothing heavy is imported here, so that options can be checked before torch is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BLOCKS = "aoti-blocks"
"""The form that holds graphs of one block, for the weights of any; the others hold whole networks."""


def holds_blocks(folder: str | None) -> bool:
    """Whether a folder holds artifacts of the form `BLOCKS`; ``False`` without a folder, or a manifest in it."""
    if folder is None:
        return False
    try:
        values = json.loads(Path(folder).expanduser().joinpath(MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads the artifacts says so
        return False
    return isinstance(values, dict) and values.get("format") == BLOCKS


def read_manifest(folder: Path, schema: str, device: str) -> dict[str, Any]:
    """Read the manifest of artifacts.

    Args:
        folder: What an export wrote.
        schema: That of the form which is expected.
        device: Type of the device that they will run on.

    Raises:
        FileNotFoundError: No manifest there.
        ValueError: Artifacts for another device, or no artifacts of this form.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"exported: no artifacts in {folder}: {MANIFEST} is missing")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if values.get("schema") != schema:
        raise ValueError(f"exported: {path} must have schema {schema!r}, got {values.get('schema')!r}")
    if values["device"] != device:
        raise ValueError(f"exported: the artifacts in {folder} are for {values['device']}, got {device}")
    return values


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write the manifest, the last file of an export."""
    (folder / MANIFEST).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
