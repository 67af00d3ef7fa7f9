"""What lies in a folder or a file is said in a few words, for whoever gave another one than was wanted."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

TRANSFORMER_MARK = "patch_embed.proj.weight"
"""A weight that every CogVideoX transformer has, in diffusers' names."""
ADAPTER_MARKS = (".lora_", ".base_layer.", "lora.down", "lora.up")
"""What is in the names of an adapter's weights."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth")

_SHOWN = 5


def read_names(path: Path) -> list[str]:
    """Read the names of the tensors in a safetensors file; none where it cannot be read."""
    with suppress(SafetensorError, OSError), safe_open(path, framework="numpy") as file:
        return sorted(file.keys())
    return []


def describe_folder(folder: Path) -> str:
    """Say what lies in a folder: ``it holds a, b and 3 more``."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    if names is None:
        return "it is not there"
    if not names:
        return "it is empty"
    told = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"it holds {told}{_advise(folder, names)}"


def describe_file(path: Path) -> str:
    """Say what a file holds, as the end of a sentence: ``, which holds a LoRA: give it as lora``."""
    if path.suffix in PICKLED:
        return ", which is pickled and may run code when read: save it again as safetensors"
    if path.suffix == ".gguf":
        return ", whose weights are quantized (GGUF): use those they were made from"
    names = read_names(path) if path.suffix == ".safetensors" else []
    if not names:
        return ""
    if TRANSFORMER_MARK in names:
        return ", which holds a transformer: give its pipeline as model, and it as transformer"
    if any(mark in name for name in names for mark in ADAPTER_MARKS):
        return ", which holds a LoRA: give it as lora"
    return f", which holds {len(names)} tensors such as {names[0]}"


def _advise(folder: Path, names: list[str]) -> str:
    kind = None
    if "config.json" in names:
        with suppress(OSError, ValueError, AttributeError):
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if kind == "CogVideoXTransformer3DModel":
        return "; that is a transformer: give its pipeline as model, and this as transformer"
    if kind is not None:
        return f"; its config.json is of a {kind}"
    files = [folder / name for name in names if name.endswith((".safetensors", ".gguf", *PICKLED))]
    return f": {files[0].name}{describe_file(files[0]).replace(', which', '')}" if files else ""
