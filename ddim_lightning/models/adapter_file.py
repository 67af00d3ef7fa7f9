"""An adapter is a file in diffusers' LoRA format with a card beside it; it is written here, of layers or a checkpoint.

The file loads in plain diffusers, by ``CogVideoXPipeline.load_lora_weights``, with the scale it was trained with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor

import ddim_lightning
from ddim_lightning.models.adapter_card import AdapterCard, get_card_path
from ddim_lightning.models.checkpoint import DEFAULTS
from ddim_lightning.runtime.sharding import gather

_HALVES = (".lora_A.weight", ".lora_B.weight")
_MARK = "source_mark.weight"
_SAMPLES = 64
"""Values of each weight that a fingerprint reads."""
_SMALLEST = 2.0**-14
"""Below it float16 has fewer digits than bfloat16."""
_KEYS = (
    "attention_head_dim", "in_channels", "num_attention_heads", "num_layers", "ofs_embed_dim", "out_channels",
    "patch_size", "patch_size_t", "text_embed_dim", "time_embed_dim", "use_learned_positional_embeddings",
    "use_rotary_positional_embeddings",
)  # fmt: skip
_DEFAULTS = {"attention_head_dim": 64, "num_attention_heads": 30, "num_layers": 30}  # diffusers' own


def write_adapter(
    path: str | Path, tensors: Mapping[str, Tensor], card: AdapterCard, *, rank: int, alpha: float
) -> Path:
    """Write an adapter and its card; each of the two files appears whole or not at all.

    Args:
        path: The safetensors file; its folder is made where it is missing, and files of the same names are replaced.
        tensors: ``<layer>.lora_A.weight`` (rank, in) and ``<layer>.lora_B.weight`` (out, rank) of each layer, named
            without ``transformer.`` in front; and ``source_mark.weight`` where there is one, which goes into the card.
        card: What it was trained for.
        rank: Of all layers.
        alpha: Changes are scaled by alpha / rank.

    Returns:
        The safetensors file.

    Raises:
        ValueError: Another suffix, or tensors with other names.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: must end in .safetensors, got {str(path)!r}")
    layers = {name: tensor for name, tensor in tensors.items() if name != _MARK}
    if not layers or not all(name.endswith(_HALVES) for name in layers):
        got = next((name for name in layers if not name.endswith(_HALVES)), "none")
        raise ValueError(f"tensors: must be lora_A.weight and lora_B.weight of layers, got {got}")
    if _MARK in tensors:
        card = replace(card, source_mark=tuple(tensors[_MARK].detach().float().tolist()))
    targets = sorted({name.removesuffix(half) for name in layers for half in _HALVES if name.endswith(half)})
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
    # One key: safetensors writes several in the random order of a hash map, and the bytes would differ between runs.
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, partial_card = (path.with_name(f".{one.name}.partial") for one in (path, get_card_path(path)))
    whole = {f"transformer.{name}": tensor.detach().cpu().contiguous() for name, tensor in sorted(layers.items())}
    save_file(whole, partial, metadata=metadata)
    partial_card.write_text(card.to_json(), encoding="utf-8")
    os.replace(partial_card, get_card_path(path))  # first: the weights without it would be a plain LoRA
    os.replace(partial, path)
    return path


def write_adapter_of_checkpoint(path: str | Path, checkpoint: Mapping[str, Any], base: str, *, edits: bool) -> Path:
    """Write the adapter that lies in a Lightning checkpoint of a `DDIMInversionModule`; see `write_adapter`.

    Args:
        path: The safetensors file.
        checkpoint: What ``torch.load(file, weights_only=True)`` returns, of a training with ``parts: [lora]``.
        base: What `digest_base` returns of the transformer that it was trained in.
        edits: Whether it was trained for the module's editor, which then stands in the card with the module's steps and
            guidance scale.

    Raises:
        ValueError: A checkpoint that holds no adapter.
    """
    options = checkpoint.get("hyper_parameters", {})
    prefix = "lora."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.get("state_dict", {}).items()
        if name.startswith(prefix)
    }
    training = options.get("training") or {}
    if not tensors or "lora" not in training.get("parts", ()):
        raise ValueError(f"checkpoint: must be of a training with parts of lora, got {training.get('parts')}")
    card = AdapterCard(
        objectives=tuple(_name_part(one) for one in training.get("objectives", ())),
        editor=options["editor"] if edits else None,
        num_inference_steps=options["schedule"]["num_inference_steps"] if edits else None,
        guidance_scale=options["guidance_scale"] if edits else None,
        base=base,
        source_mark=None,
        package_version=ddim_lightning.__version__,
    )
    rank, alpha = training["rank"], training.get("alpha")
    return write_adapter(path, tensors, card, rank=rank, alpha=float(rank if alpha is None else alpha))


def digest_config(config: Mapping[str, Any]) -> str:
    """Digest what of a transformer's config says which weights it has and how they are used."""
    values = DEFAULTS["transformer"] | _DEFAULTS | dict(config)
    return _digest(repr([values[name] for name in _KEYS]).encode())


def digest_base(transformer: CogVideoXTransformer3DModel) -> str:
    """Make the fingerprint of a transformer's own weights and its config; adapters in it do not count.

    Of each weight a few values, evenly spread, are read, rounded to bfloat16, so that a model has one fingerprint in
    float32, bfloat16 and float16. Only of weights that are kept in float32 and used in float16 it may be another one.

    Returns:
        ``<of the config>-<of the weights>``, eight hexadecimal digits each.
    """
    weights = {
        name.replace(".base_layer.", "."): weight.detach()
        for name, weight in transformer.state_dict().items()
        if weight.is_floating_point() and ".lora_" not in name and name != _MARK
    }
    # One after the other, for no more than one that is spread over processes is to be whole at a time.
    samples = [
        gather(weight).flatten()[:: max(1, weight.numel() // _SAMPLES)].clone() for _, weight in sorted(weights.items())
    ]
    values = torch.cat([sample.float() for sample in samples]).cpu().bfloat16().float()
    values[values.abs() < _SMALLEST] = 0.0
    shapes = repr([(name, tuple(weight.shape)) for name, weight in sorted(weights.items())])
    return f"{digest_config(transformer.config)}-{_digest(shapes.encode() + values.numpy().tobytes())}"


def check_base(card: AdapterCard, path: Path, model: str, found: str) -> None:
    """Raise a ValueError unless an adapter belongs to a model.

    Args:
        card: Of the adapter.
        path: Of the adapter, for the message.
        model: Its name, for the message.
        found: What `digest_base` returns of it, or `digest_config`, where no more is known yet.
    """
    wanted = card.base if "-" in found else card.base.partition("-")[0]
    if found != wanted:
        rule = f"must be used with the model it was trained in, whose fingerprint is {wanted}"
        raise ValueError(f"lora: {path} {rule}, got {model} with {found}")


def _digest(values: bytes) -> str:
    return hashlib.sha256(values).hexdigest()[:8]


def _name_part(spec: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"class_path": spec, "init_args": {}} if isinstance(spec, str) else spec
