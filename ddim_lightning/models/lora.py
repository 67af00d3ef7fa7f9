"""LoRA files are read, checked against a transformer, and added to its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors import SafetensorError, safe_open

from ddim_lightning.models.source import find_lora

PEFT_CONFIG = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PEFT_KEYS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias")
_DOWN, _UP = (".lora_A.", ".lora.down."), (".lora_B.", ".lora.up.")
_PARTS = (*_DOWN, *_UP, ".alpha")
_MERGED = "_ddim_lightning_merged"  # of a transformer: files that are in its weights; a deep copy has it, too


def merge_loras(transformer: CogVideoXTransformer3DModel, loras: Sequence[tuple[str, float]]) -> None:
    """Add LoRAs to the weights of a transformer for good, so that everything made of them has them.

    Args:
        transformer: Changed in place; left as it was where one of the files does not fit.
        loras: File and scale of each; see `find_lora`. They are in the format of diffusers or of peft.

    Raises:
        OSError: A file is missing.
        ValueError: A file that is no LoRA of this transformer, or a transformer that has adapters already, or LoRAs in
            its weights, which would act more strongly with every module that is made of it.

    Source: Hu et al. 2021, "LoRA", arXiv:2106.09685.
    """
    if not loras:
        return
    _check_free(transformer, loras[0][0])
    if before := getattr(transformer, _MERGED, ()):
        rule = f"must be empty for a transformer that has {', '.join(before)} in its weights already; load it anew"
        raise ValueError(f"lora: {rule}, got {', '.join(file for file, _ in loras)}")
    names = [f"lora_{k}" for k in range(len(loras))]
    try:
        for name, (file, _) in zip(names, loras, strict=True):
            _load(find_lora(file), transformer, name)
        transformer.set_adapters(names, [scale for _, scale in loras])
        transformer.fuse_lora(adapter_names=names)
        setattr(transformer, _MERGED, tuple(file for file, _ in loras))
    finally:
        transformer.unload_lora()  # they are in the weights now, or one of them does not fit and none shall stay
        transformer.requires_grad_(False)


def check_lora_file(transformer: CogVideoXTransformer3DModel, file: str) -> None:
    """Raise what `load_lora` would for a file that is no LoRA of a transformer; nothing is loaded."""
    _check_free(transformer, file)
    _check_keys(find_lora(file), transformer)


def load_lora(transformer: CogVideoXTransformer3DModel, file: str, scale: float, name: str) -> None:
    """Load a LoRA as an adapter of peft beside the weights of a transformer, frozen and active.

    Args:
        transformer: Gets the adapter's layers; left as it was where the file does not fit.
        file: See `find_lora`.
        scale: How strongly it acts; 1 is as it was trained.
        name: What peft calls the adapter.

    Raises:
        OSError: The file is missing.
        ValueError: A file that is no LoRA of this transformer, or a transformer that has adapters already.
    """
    _check_free(transformer, file)
    try:
        _load(find_lora(file), transformer, name)
        transformer.set_adapters([name], [scale])
    except BaseException:
        transformer.unload_lora()
        raise
    finally:
        transformer.requires_grad_(False)


def _check_free(transformer: CogVideoXTransformer3DModel, file: str) -> None:
    """Raise unless a transformer has no adapters."""
    if own := list(getattr(transformer, "peft_config", {})):
        rule = f"must be empty for a transformer with adapters of its own ({', '.join(own)}), which would not stay"
        raise ValueError(f"lora: {rule}; load the file beside them, got {file!r}")


def _load(path: Path, transformer: CogVideoXTransformer3DModel, name: str) -> None:
    """Load a file into a transformer as an adapter."""
    keys = _check_keys(path, transformer)
    if all(key.startswith(_PEFT_PREFIX) for key in keys):
        state, metadata = _read_peft(path)
    else:
        state, metadata = CogVideoXPipeline.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
        )
    try:
        CogVideoXPipeline.load_lora_into_transformer(state, transformer, adapter_name=name, metadata=metadata)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"lora: {path} does not fit the transformer: {' '.join(str(error).split())}") from error


def _check_keys(path: Path, transformer: CogVideoXTransformer3DModel) -> list[str]:
    """Return the names of all tensors of a file; every one must belong to a layer of the transformer, and fit it."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"lora: {path} must be a safetensors file, which it is not or not whole: {error}") from error
    layers: dict[str, Any] = dict(transformer.named_modules())
    halves: dict[str, set[bool]] = {}
    for key, shape in shapes.items():
        name = key.removeprefix(_PEFT_PREFIX).removeprefix("transformer.")
        part = next((part for part in _PARTS if part in name), None)
        if part is None:
            raise ValueError(f"lora: {path} must hold plain LoRA (lora_A and lora_B) and nothing else, got {key!r}")
        name = name.partition(part)[0]
        if name not in layers:
            raise ValueError(f"lora: {path} must be of this transformer, which has no layer for {key!r}")
        if part in _DOWN or part in _UP:
            halves.setdefault(name, set()).add(part in _DOWN)
            wanted = getattr(layers[name], "in_features" if part in _DOWN else "out_features", None)
            if len(shape) == 2 and wanted not in (None, shape[1 if part in _DOWN else 0]):
                raise ValueError(f"lora: {path} must be of this transformer, whose {name} has {wanted}, got {shape}")
    if not shapes:
        raise ValueError(f"lora: {path} must hold weights, got none")
    if alone := [name for name, found in halves.items() if len(found) == 1]:
        raise ValueError(f"lora: {path} must hold lora_A and lora_B of each layer, got one of them of {alone[0]}")
    return list(shapes)


def _read_peft(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what peft's ``save_pretrained`` wrote, as `load_lora_into_transformer` takes it."""
    config_file = path.with_name(PEFT_CONFIG)
    if not config_file.is_file():
        raise FileNotFoundError(f"lora: {path} is in peft's format, which needs {PEFT_CONFIG} beside it")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise ValueError(f"lora: {path} must hold plain LoRA, got DoRA")
    with safe_open(path, framework="pt") as file:
        state = {
            f"transformer.{key.removeprefix(_PEFT_PREFIX)}": file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118, no dict
        }
    return state, {f"transformer.{key}": config[key] for key in _PEFT_KEYS if key in config}
