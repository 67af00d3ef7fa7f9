"""The LoRA files that were asked for go into a transformer: into its weights, or beside them for edits alone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.engine.config import Lora
from ddim_lightning.models.adapter_card import EditAdapterFile, find_edit_adapter
from ddim_lightning.models.adapter_file import check_base, digest_base, digest_config
from ddim_lightning.models.lora import check_lora_file, load_lora, merge_loras
from ddim_lightning.models.source import find_lora
from ddim_lightning.network.adapters import EDIT_ADAPTER
from ddim_lightning.network.edit_adapter import EditAdapter
from ddim_lightning.network.source_mark import add_mark


def find_adapters(loras: Sequence[Lora]) -> EditAdapterFile | None:
    """Find the files of LoRAs and the cards beside them, before a model is loaded.

    Returns:
        The one that acts in edits alone, if there is one.

    Raises:
        OSError: A file is missing.
        ValueError: A card that is broken, or several edit adapters.
    """
    for one in loras:
        find_lora(one.file)
    return find_edit_adapter([one.file for one in loras])


def add_loras(
    transformer: CogVideoXTransformer3DModel, loras: Sequence[Lora], editor: Editor, model: str
) -> EditAdapter | None:
    """Add LoRAs to the weights of a transformer for good, but one that was trained for an editor beside them.

    Args:
        transformer: Changed in place; left as it was where a file is refused.
        loras: The files and their scales.
        editor: That edits are made with; a warning tells where an adapter was trained for another.
        model: The model's name, for messages.

    Returns:
        What acts in edits alone, switched off.

    Raises:
        OSError: A file is missing.
        ValueError: A file that is no LoRA of this transformer, an adapter that was trained in another model, or a
            transformer that has adapters already.
    """
    found = find_adapters(loras)
    if found is not None:  # before anything is changed
        check_lora_file(transformer, str(found.path))
        check_base(found.card, found.path, model, digest_base(transformer))
        _check_mark(transformer, found)
    plain = [one for k, one in enumerate(loras) if found is None or k != found.position]
    merge_loras(transformer, [(one.file, one.scale) for one in plain])
    if found is None:
        return None
    if (got := type(editor).__name__) != found.card.editor_name:
        trained = f"{found.path} was trained for {found.card.editor_name}"
        warnings.warn(f"editor: {trained}, and is used with {got}, which it does not know", stacklevel=2)
    scale = loras[found.position].scale
    load_lora(transformer, str(found.path), scale, EDIT_ADAPTER)
    _place_mark(transformer, found.card.source_mark)
    return EditAdapter(transformer, str(found.path), digest_adapter(found), scale)


def digest_adapter(found: EditAdapterFile) -> str:
    """Digest the content of an adapter: its file, and the mark that stands in its card."""
    with found.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr(found.card.source_mark).encode())
    return digest.hexdigest()[:16]


def check_before_loading(loras: Sequence[Lora], config: Mapping[str, Any], model: str) -> None:
    """Raise a ValueError where an edit adapter is not of a transformer with this config, before weights are read."""
    if (found := find_adapters(loras)) is not None:
        check_base(found.card, found.path, model, digest_config(config))


def _check_mark(transformer: CogVideoXTransformer3DModel, found: EditAdapterFile) -> None:
    width, mark = transformer.proj_out.weight.shape[1], found.card.source_mark
    if mark is not None and len(mark) != width:
        rule = f"must be as long as a token of the transformer is wide, {width}"
        raise ValueError(f"lora: {found.path}: source_mark: {rule}, got {len(mark)} numbers")


@torch.inference_mode(False)
@torch.no_grad()
def _place_mark(transformer: CogVideoXTransformer3DModel, values: Sequence[float] | None) -> None:
    """Give the transformer the mark that was trained along, if there is one."""
    if values is not None:
        mark = add_mark(transformer).requires_grad_(False)
        mark.weight.copy_(torch.tensor(values))
