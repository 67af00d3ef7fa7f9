"""A pipeline folder is read and checked before any weight is loaded, and before torch is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.contents import describe_folder
from ddim_lightning.models.hub import describe_repository, fetch, list_patterns
from ddim_lightning.models.source import Source, check_source, find_transformer, resolve_model, resolve_transformer
from ddim_lightning.models.weight_files import check_weight_file, list_weight_files

RECOMMENDED = "zai-org/CogVideoX-5b"

CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
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
_WITHOUT_TEXT = "; it can be left out with a prompt_cache that holds every prompt"
# The same parts, put to different use; which of them a transformer serves, its channels say.
_PIPELINES = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline", "CogVideoXImageToVideoPipeline")
_SIZE_1_5 = (768, 1360)  # pixels; its configs name the end of the grid instead, of 2400 x 2400 pixels in some releases


@dataclass(frozen=True)
class Checkpoint:
    """A `Checkpoint` is a pipeline folder that is a CogVideoX model.

    Args:
        model: Its name, for messages.
        folder: Where it lies on this machine.
        configs: By part, its config with `DEFAULTS` filled in; without the text encoder where it was left out.
        transformer: Another transformer than the folder's own: its folder, or a safetensors file.
        variant: Of the weights in the pipeline folder, where one was asked for.
    """

    model: str
    folder: Path
    configs: dict[str, dict[str, Any]]
    transformer: Path | None = None
    variant: str | None = None

    def get_place(self, part: str) -> Path:
        """Return the folder of a part, or the file of another transformer."""
        return self.transformer if part == "transformer" and self.transformer is not None else self.folder / part

    def list_weights(self, part: str) -> list[Path]:
        """List the files of a part's weights; see `list_weight_files` for ``Raises``."""
        return list_weight_files(self.get_place(part), WEIGHTS[part], self.get_variant(part))

    def get_variant(self, part: str) -> str | None:
        """Return the variant that was asked for of a part; another transformer has its own."""
        return None if part == "transformer" and self.transformer is not None else self.variant

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer is there."""
        return any((self.folder / "tokenizer" / name).is_file() for name in TOKENIZERS)

    @property
    def has_text_encoder(self) -> bool:
        """Whether the text encoder and its tokenizer are there, so that prompts can be encoded."""
        if "text_encoder" not in self.configs or not self.has_tokenizer:
            return False
        place = self.folder / "text_encoder"
        return any(place.glob("*.bin")) or any(place.glob("*.safetensors"))


def read_limits(
    model: str,
    source: Source = Source(),  # noqa: B008, frozen
    *,
    require_rotary: bool = True,
    require_text: bool = True,
    token: str | None = None,
) -> VideoLimits:
    """Read which videos a model accepts; see `read_checkpoint` for ``Args`` and ``Raises``."""
    configs = read_checkpoint(
        model, source, require_rotary=require_rotary, require_text=require_text, token=token
    ).configs
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


def read_checkpoint(
    model: str,
    source: Source = Source(),  # noqa: B008, frozen
    *,
    weights: bool = False,
    require_rotary: bool = True,
    require_text: bool = True,
    token: str | None = None,
) -> Checkpoint:
    """Read the configs of a model and check that it is one that can be inverted.

    Args:
        model: ``tiny``, a folder, or a hub id ``owner/name``.
        source: Where its weights come from beside its name.
        weights: Whether the weights are wanted too: they are fetched from the hub and their headers checked.
        require_rotary: Whether a transformer without rotary position embeddings is refused.
        require_text: Whether a model without a text encoder or a tokenizer is refused.
        token: Of the hub; ``None`` takes what ``HF_TOKEN`` or a login says.

    Raises:
        FileNotFoundError: No such folder, or a part or a weight file of it is missing.
        NotADirectoryError: A file where a folder is needed.
        ValueError: Not a CogVideoX pipeline, one that is not supported, files that cannot be read, or an
            option of the source that has no effect on this model.
        OSError: The hub cannot be reached or has no such model.
    """
    where = resolve_model(model)
    other = None if source.transformer is None else resolve_transformer(source.transformer)
    check_source(where, other, source, token)
    folder = where if isinstance(where, Path) else _fetch_pipeline(where, source, weights=weights, token=token)
    transformer = _fetch_transformer(other, source, weights=weights, token=token) if isinstance(other, str) else other
    if source.subfolder is not None:
        inside = folder / source.subfolder
        if not inside.is_dir():
            raise FileNotFoundError(f"subfolder: {model} has no {source.subfolder!r}; {describe_folder(folder)}")
        folder = inside
    _check_pipeline(model, folder)
    checkpoint = Checkpoint(model, folder, {}, transformer, source.variant)
    for part, file in CONFIGS.items():
        place = checkpoint.get_place(part)
        path = (folder / part if place.is_file() else place) / file  # a single file has the pipeline's config
        if part != "text_encoder" or require_text or path.is_file():
            checkpoint.configs[part] = _read_config(model, path, part)
    check_configs(model, checkpoint.configs, require_rotary=require_rotary)
    if isinstance(where, Path):
        _check_files(checkpoint, require_text=require_text)
    elif weights:
        try:
            _check_files(checkpoint, require_text=require_text)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error}{describe_repository(where, source, token)}") from error
    return checkpoint


def check_configs(model: str, configs: Mapping[str, Mapping[str, Any]], *, require_rotary: bool) -> None:
    """Raise a ValueError unless the configs, by part, are those of a CogVideoX that can be inverted."""
    _check_transformer(model, configs["transformer"], require_rotary=require_rotary)
    _check_parts_fit(model, configs)


def _fetch_pipeline(model: str, source: Source, *, weights: bool, token: str | None) -> Path:
    inside = "" if source.subfolder is None else f"{source.subfolder.strip('/')}/"
    files = [f"{inside}model_index.json", *(f"{inside}{part}/{file}" for part, file in CONFIGS.items())]
    if weights:
        parts = [part for part in WEIGHTS if part != "transformer" or source.transformer is None]
        files += list_patterns([(f"{inside}{part}/", WEIGHTS[part]) for part in parts], source.variant)
        files.append(f"{inside}tokenizer/*")
    return fetch(model, files, source, argument="model", revision=source.revision, token=token)


def _fetch_transformer(transformer: str, source: Source, *, weights: bool, token: str | None) -> Path:
    places = ("", "transformer/")
    files = [f"{place}config.json" for place in places]
    if weights:
        files += list_patterns([(place, WEIGHTS["transformer"]) for place in places], None)
    folder = fetch(transformer, files, source, argument="transformer", revision=None, token=token)
    return find_transformer(folder, transformer)


def _check_pipeline(model: str, folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"model: {model} is no pipeline folder: it has no model_index.json beside transformer/, vae/ and the others"
            f"; {describe_folder(folder)}"
        )
    kind = _read_json(index).get("_class_name")
    if kind not in _PIPELINES:
        raise ValueError(f"model: {model} is a {kind}, not a CogVideoXPipeline; use {RECOMMENDED}")


def _read_config(model: str, path: Path, part: str) -> dict[str, Any]:
    if not path.is_file():
        hint = _WITHOUT_TEXT if part == "text_encoder" else ""
        raise FileNotFoundError(f"model: {model} has no {part}: {path} is missing{hint}")
    config = _read_json(path)
    if quantized := config.get("quantization_config"):
        how = quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"model: the {part} of {model} ({path}) was quantized by {how}, which is not supported; use the weights it "
            "was made from, or quantize the pipeline yourself and take it with from_pipeline and forward='diffusers'"
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
        if part not in configs:
            continue
        wanted, got = configs["transformer"][ours], configs[part].get(theirs)
        if wanted != got:
            raise ValueError(
                f"model: the parts of {model} do not fit: the transformer's {ours} is {wanted}, "
                f"the {theirs} of its {part} is {got}"
            )


def list_text_files(checkpoint: Checkpoint) -> list[Path]:
    """List the files of a model that prompt embeddings depend on: tokenizer, text encoder, its weights."""
    texts = [path for path in sorted((checkpoint.folder / "tokenizer").iterdir()) if path.is_file()]
    config = checkpoint.folder / "text_encoder" / CONFIGS["text_encoder"]
    return [*texts, config, *checkpoint.list_weights("text_encoder")]


def _check_files(checkpoint: Checkpoint, *, require_text: bool) -> None:
    for part in WEIGHTS:
        if part != "text_encoder" or require_text or checkpoint.has_text_encoder:
            for path in checkpoint.list_weights(part):
                check_weight_file(checkpoint.model, path, _WITHOUT_TEXT if part == "text_encoder" else "")
    if require_text and not checkpoint.has_tokenizer:
        raise FileNotFoundError(
            f"model: {checkpoint.model} has no tokenizer: {checkpoint.folder / 'tokenizer'} needs "
            f"{' or '.join(TOKENIZERS)}{_WITHOUT_TEXT}"
        )
