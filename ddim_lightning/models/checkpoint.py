"""A pipeline folder is read and checked before any weight is loaded, and before torch is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from ddim_lightning.types import VideoLimits

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny"
"""Folder of the bundled model."""

RECOMMENDED = "zai-org/CogVideoX-5b"

CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call the file of a LoRA in its folder."""
TOKENIZERS = ("tokenizer.json", "spiece.model")

_CLASSES = {"transformer": "CogVideoXTransformer3DModel", "vae": "AutoencoderKLCogVideoX"}
# fmt: off
DEFAULTS: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 16, "ofs_embed_dim": None, "out_channels": 16, "patch_size": 2, "patch_size_t": None,
        "sample_frames": 49, "sample_height": 60, "sample_width": 90, "text_embed_dim": 4096, "time_embed_dim": 512,
        "use_learned_positional_embeddings": False, "use_rotary_positional_embeddings": False,
    },
    "vae": {"block_out_channels": (128, 256, 256, 512), "latent_channels": 16, "temporal_compression_ratio": 4},
}
# fmt: on
"""By part, what is read here of a config, and what it means that a key is left out; diffusers' own defaults."""
# The same parts, put to different use; which of them a transformer serves, its channels say.
_PIPELINES = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline", "CogVideoXImageToVideoPipeline")
_SIZE_1_5 = (768, 1360)  # pixels; its configs name the end of the grid instead, of 2400 x 2400 pixels in some releases
_CONFIG_FILES = ["model_index.json", *(f"{part}/{file}" for part, file in CONFIGS.items())]
_WEIGHT_FILES = [f"{part}/{stem}{end}" for part, stem in WEIGHTS.items() for end in ("*.safetensors", "*.index.json")]


@dataclass(frozen=True)
class Checkpoint:
    """A `Checkpoint` is a pipeline folder that is a CogVideoX model.

    Args:
        folder: Where it lies on this machine.
        configs: By part, its config with `DEFAULTS` filled in.
    """

    folder: Path
    configs: dict[str, dict[str, Any]]


def resolve_model(model: str) -> Path | str:
    """Tell a folder from a hub id.

    Args:
        model: ``tiny`` for the bundled model, a folder, or a hub id ``owner/name``.

    Returns:
        The folder, or the hub id when no folder of that name is here.

    Raises:
        FileNotFoundError: A path that does not exist.
        NotADirectoryError: A file.
    """
    if model == "tiny":
        return BUNDLED
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"model: must be a pipeline folder or a hub id, got the file {model}")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is None:
        raise FileNotFoundError(f"model: no folder {model!r}: give 'tiny', a pipeline folder or a hub id 'owner/name'")
    return model


def find_lora(file: str) -> Path:
    """Find the safetensors file of a LoRA.

    Args:
        file: The file itself, or the folder that `save_lora_weights` or peft's ``save_pretrained`` wrote it into.

    Raises:
        OSError: Nothing of that name, or a folder without such a file.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        for name in LORA_FILES:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"lora: a folder must hold {' or '.join(LORA_FILES)}, got {file!r}")
    if not path.is_file():
        raise FileNotFoundError(f"lora: must be a safetensors file or a folder with one, got {file!r}")
    return path


def read_limits(model: str, *, require_rotary: bool = True) -> VideoLimits:
    """Read which videos a model accepts; see `read_checkpoint` for ``Args`` and ``Raises``."""
    configs = read_checkpoint(model, require_rotary=require_rotary).configs
    return make_limits(configs["transformer"], configs["vae"])


def make_limits(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> VideoLimits:
    """Make the limits from the configs of a transformer and a VAE; what they leave out is as in `DEFAULTS`.

    Source: of CogVideoX1.5's native size its model card, 768 x 1360 pixels.
    """
    config = DEFAULTS["transformer"] | dict(transformer)
    spatial = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = (config[side] * spatial for side in ("sample_height", "sample_width"))
    largest = None
    if config["patch_size_t"] is not None:
        largest = (height, width)
        height, width = min(height, _SIZE_1_5[0]), min(width, _SIZE_1_5[1])
    return VideoLimits(
        num_frames=config["sample_frames"],
        height=height,
        width=width,
        multiple=spatial * config["patch_size"],
        temporal=int(vae["temporal_compression_ratio"]),
        patch_frames=config["patch_size_t"] or 1,
        largest=largest,
        fixed=config["use_learned_positional_embeddings"],
        needs_image=config["in_channels"] != config["out_channels"],
    )


def read_checkpoint(model: str, *, weights: bool = False, require_rotary: bool = True) -> Checkpoint:
    """Read the configs of a model and check that it is one that can be inverted.

    Args:
        model: ``tiny``, a folder, or a hub id ``owner/name``.
        weights: Whether the weights are wanted too: they are fetched from the hub and their headers checked.
        require_rotary: Whether a transformer without rotary position embeddings is refused.

    Raises:
        FileNotFoundError: No such folder, or a part or a weight file of it is missing.
        NotADirectoryError: A file where a folder is needed.
        ValueError: Not a CogVideoX pipeline, one that is not supported, or files that cannot be read.
        OSError: The hub cannot be reached or has no such model.
    """
    source = resolve_model(model)
    folder = source if isinstance(source, Path) else _load_from_hub(source, weights=weights)
    _check_pipeline(model, folder)
    configs = {part: _read_config(model, folder, part) for part in CONFIGS}
    check_configs(model, configs, require_rotary=require_rotary)
    if weights or isinstance(source, Path):
        _check_files(model, folder)
    return Checkpoint(folder, configs)


def check_configs(model: str, configs: Mapping[str, Mapping[str, Any]], *, require_rotary: bool) -> None:
    """Raise a ValueError unless the configs, by part, are those of a CogVideoX that can be inverted."""
    _check_transformer(model, configs["transformer"], require_rotary=require_rotary)
    _check_parts_fit(model, configs)


def _load_from_hub(model: str, *, weights: bool) -> Path:
    files = [*_CONFIG_FILES, *_WEIGHT_FILES, "tokenizer/*"] if weights else _CONFIG_FILES
    try:
        return Path(snapshot_download(model, allow_patterns=files, ignore_patterns=["*.fp16.*", "*.bf16.*"]))
    except Exception as error:  # its transport errors are no OSErrors, and their home changes with the hub's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(f"model: no folder {model!r} here, and it cannot be had from the hub: {reason}") from error


def _check_pipeline(model: str, folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"model: {model} is no pipeline folder: it has no model_index.json beside transformer/, vae/ and the others"
        )
    kind = _read_json(index).get("_class_name")
    if kind not in _PIPELINES:
        raise ValueError(f"model: {model} is a {kind}, not a CogVideoXPipeline; use {RECOMMENDED}")


def _read_config(model: str, folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / CONFIGS[part]
    if not path.is_file():
        raise FileNotFoundError(f"model: {model} has no {part}: {path} is missing")
    config = _read_json(path)
    if quantized := config.get("quantization_config"):
        how = quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"model: the {part} of {model} was quantized by {how}, which is not supported; use the weights it was made "
            "from, or quantize the pipeline yourself and take it with from_pipeline and forward='diffusers'"
        )
    expected = _CLASSES.get(part)
    if expected is not None and config.get("_class_name", expected) != expected:
        raise ValueError(f"model: the {part} of {model} must be a {expected}, got a {config['_class_name']}")
    return DEFAULTS.get(part, {}) | config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model: {path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _check_transformer(model: str, config: Mapping[str, Any], *, require_rotary: bool) -> None:
    channels = config["out_channels"]
    if config["in_channels"] not in (channels, 2 * channels):
        raise ValueError(
            f"model: the transformer of {model} must take the {channels} channels of its velocities, or as many of an "
            f"image beside them, got in_channels {config['in_channels']}"
        )
    if config["ofs_embed_dim"] not in (None, config["time_embed_dim"]):
        raise ValueError(
            f"model: the transformer of {model} must have an ofs_embed_dim of its time_embed_dim "
            f"{config['time_embed_dim']}, got {config['ofs_embed_dim']}"
        )
    rotary_alone = config["use_rotary_positional_embeddings"] and not config["use_learned_positional_embeddings"]
    if config["patch_size_t"] is not None and not rotary_alone:
        raise ValueError(
            f"model: the transformer of {model} must have rotary position embeddings alone, for its patch_size_t is "
            f"{config['patch_size_t']}"
        )
    if require_rotary and not config["use_rotary_positional_embeddings"]:
        raise ValueError(
            f"model: {model} is refused because its transformer has no rotary position embeddings "
            f"(use_rotary_positional_embeddings is false), without which DDIM inversion is not known to hold; use "
            f"{RECOMMENDED}, or pass require_rotary=False to try"
        )


def _check_parts_fit(model: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    pairs = (("out_channels", "vae", "latent_channels"), ("text_embed_dim", "text_encoder", "d_model"))
    for ours, part, theirs in pairs:
        wanted, got = configs["transformer"][ours], configs[part].get(theirs)
        if wanted != got:
            raise ValueError(
                f"model: the parts of {model} do not fit: the transformer's {ours} is {wanted}, "
                f"the {theirs} of its {part} is {got}"
            )


def read_weight_shapes(folder: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of all weights of a part from the headers of its files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder / part, WEIGHTS[part]):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no dict
    return shapes


def list_text_files(folder: Path) -> list[Path]:
    """List the files of a pipeline folder that prompt embeddings depend on: tokenizer, text encoder, its weights."""
    texts = [path for path in sorted((folder / "tokenizer").iterdir()) if path.is_file()]
    config = folder / "text_encoder" / CONFIGS["text_encoder"]
    return [*texts, config, *_weight_files(folder / "text_encoder", WEIGHTS["text_encoder"])]


def _check_files(model: str, folder: Path) -> None:
    for part, stem in WEIGHTS.items():
        for path in _weight_files(folder / part, stem):
            _check_weight_file(model, path)
    if not any((folder / "tokenizer" / name).is_file() for name in TOKENIZERS):
        raise FileNotFoundError(
            f"model: {model} has no tokenizer: {folder / 'tokenizer'} needs {' or '.join(TOKENIZERS)}"
        )


def find_variant(folder: Path, stem: str) -> str | None:
    """Find out which variant of its weights a part has, ``fp16`` for example; ``None`` where the plain ones are there.

    Raises:
        ValueError: Several variants and no plain weights.
    """
    if (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.safetensors.index.json").is_file():
        return None
    whole = {
        path.name.removeprefix(f"{stem}.").removesuffix(".safetensors") for path in folder.glob(f"{stem}.*.safetensors")
    }
    start = f"{stem}.safetensors.index."
    sharded = {path.name.removeprefix(start).removesuffix(".json") for path in folder.glob(f"{start}*.json")}
    found = sorted(sharded | {name for name in whole if "." not in name and "-of-" not in name})
    if len(found) > 1:
        raise ValueError(f"model: {folder} must hold one variant of its weights, got {', '.join(found)}")
    return found[0] if found else None


def _weight_files(folder: Path, stem: str) -> list[Path]:
    variant = find_variant(folder, stem)
    index = folder / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
    if index.is_file():
        return [folder / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    return [folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"]


def _check_weight_file(model: str, path: Path) -> None:
    if not path.is_file() and any(path.parent.glob("*.bin")):
        raise ValueError(
            f"model: {model} has pickled weights only ({path.parent}/*.bin), which may run code when read; only "
            "safetensors are read: save it again with save_pretrained"
        )
    if not path.is_file():
        raise FileNotFoundError(f"model: {model} lacks weights: {path} is missing")
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening reads the header and compares it with the file's length
    except SafetensorError as error:
        raise ValueError(f"model: {path} is truncated or damaged: {error}") from error
