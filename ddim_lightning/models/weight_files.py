"""Weights lie in safetensors files, whole or in shards, plain or as a variant; their headers are read, not they."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from ddim_lightning.models.contents import describe_folder


class Header(NamedTuple):
    """A `Header` is what a file says of a tensor.

    Args:
        shape: Its axes.
        dtype: As safetensors names it, ``BF16`` for example.
    """

    shape: tuple[int, ...]
    dtype: str


def read_headers(paths: list[Path]) -> dict[str, Header]:
    """Read the names of all tensors in files, and what their headers say of them."""
    headers: dict[str, Header] = {}
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, no dict
                entry = file.get_slice(name)
                headers[name] = Header(tuple(entry.get_shape()), str(entry.get_dtype()))
    return headers


def list_variants(folder: Path, stem: str) -> list[str | None]:
    """List which variants of its weights a part has, ``fp16`` for example; ``None`` stands for the plain ones.

    Args:
        folder: Of the part.
        stem: What its files begin with.
    """
    index = f"{stem}.safetensors.index."
    whole = [path.name[len(stem) + 1 : -len(".safetensors")] for path in folder.glob(f"{stem}.*.safetensors")]
    sharded = {path.name[len(index) : -len(".json")] for path in folder.glob(f"{index}*.json")}
    variants = sorted(sharded | {name for name in whole if "." not in name and "-of-" not in name})
    plain = any((folder / name).is_file() for name in (f"{stem}.safetensors", f"{index}json"))
    return [*([None] if plain else []), *filter(None, variants)]


def find_variant(folder: Path, stem: str, wanted: str | None = None) -> str | None:
    """Find out which variant of its weights is taken of a part; ``None`` are the plain ones.

    Args:
        folder: Of the part.
        stem: What its files begin with.
        wanted: The variant that was asked for; ``None`` takes the plain ones, or the only variant.

    Raises:
        ValueError: Several variants and no plain weights, or not the one that is wanted.
    """
    found = list_variants(folder, stem)
    if wanted is not None:
        if wanted not in found:
            there = ", ".join(name or "plain weights" for name in found) or "none"
            raise ValueError(f"variant: {folder} must have weights of variant {wanted!r}, got {there}")
        return wanted
    if None not in found and len(found) > 1:
        named = ", ".join(map(str, found))
        raise ValueError(f"model: {folder} must hold one variant of its weights, got {named}; variant takes one")
    return None if None in found or not found else found[0]


def list_weight_files(place: Path, stem: str, variant: str | None = None) -> list[Path]:
    """List the files of a part's weights, whether they are there or not.

    Args:
        place: The part's folder, or a file that holds all.
        stem: What its files begin with.
        variant: See `find_variant`, likewise for ``Raises``.
    """
    if place.is_file():
        return [place]
    variant = find_variant(place, stem, variant)
    index = place / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
    if index.is_file():
        return [place / name for name in sorted(set(_read_index(index).values()))]
    return [place / f"{stem}{f'.{variant}' if variant else ''}.safetensors"]


def check_weight_file(model: str, path: Path, hint: str = "") -> None:
    """Raise an OSError or a ValueError unless a weight file is there and whole.

    Args:
        model: For the message.
        path: The file.
        hint: What can be done without it.
    """
    if not path.is_file() and any(path.parent.glob("*.bin")):
        raise ValueError(
            f"model: {model} has pickled weights only ({path.parent}/*.bin), which may run code when read; only "
            "safetensors are read: save it again with save_pretrained"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"model: {model} lacks weights: {path} is missing; {describe_folder(path.parent)}{hint}"
        )
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening reads the header and compares it with the file's length
    except SafetensorError as error:
        raise ValueError(f"model: {path} is truncated or damaged: {error}") from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in names.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"model: {path} must be a JSON object with a weight_map: {error!r}") from error
