"""The folders that the bundled model's training starts from and ends in are written here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER
from ddim_lightning.tiny.shapes import VOCABULARY

TRANSFORMER: dict[str, Any] = {
    "num_layers": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 32,  # 2.5 million weights
    "time_embed_dim": 128,
    "text_embed_dim": 64,
    "max_text_seq_length": 16,  # a caption has 10 words and an end
    "patch_size": 2,  # 3 x 8 x 8 tokens
    "sample_frames": 9,
    "use_rotary_positional_embeddings": True,
}

TEXT_ENCODER: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",  # as T5-XXL v1.1
    "dropout_rate": 0.0,
}

_TRAINED = ("vae", "transformer", "text_encoder")


def make_tokenizer() -> T5Tokenizer:
    """Make a tokenizer with one piece for each word of the `VOCABULARY`; any other word becomes ``<unk>``."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((f"▁{word}", -2.0) for word in VOCABULARY), ("▁", -6.0)], extra_ids=0)


def write_untrained_tiny(folder: Path, vae: Path, *, seed: int = 0) -> Path:
    """Write the pipeline that the transformer and the text encoder of the bundled model are trained in.

    Every block of the transformer starts as the identity, and the velocity as zero (adaLN-zero).

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        vae: Folder of the trained VAE, in diffusers' layout; a copy of it goes into the pipeline.
        seed: Of the weights; the global random state is not touched.

    Returns:
        The folder.

    Raises:
        OSError: A ``vae`` without config or weights.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-zero).
    """
    autoencoder = AutoencoderKLCogVideoX.from_pretrained(vae, use_safetensors=True)
    config = autoencoder.config
    shrink = 2 ** (len(config.block_out_channels) - 1)
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):  # the libraries draw their initial weights from the global state
        torch.manual_seed(seed)
        text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT_ENCODER))
        transformer = CogVideoXTransformer3DModel(
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            sample_height=config.sample_height // shrink,
            sample_width=config.sample_width // shrink,
            temporal_compression_ratio=int(config.temporal_compression_ratio),
            **TRANSFORMER,
        )
    _apply_zeros(transformer)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "transformer": transformer,
        "vae": autoencoder,
        "scheduler": CogVideoXDDIMScheduler(**COGVIDEOX_5B_SCHEDULER),
    }
    write_pipeline(folder, parts)
    return folder


def write_trained_tiny(folder: Path, start: Path, checkpoints: Sequence[Path]) -> Path:
    """Write a pipeline with the weights of Lightning checkpoints, small enough to ship.

    VAE and transformer are written in float16. The text encoder stays in float32: transformers loads weights as they
    are stored, diffusers in float32, and a pipeline loaded without a ``dtype`` would mix the two.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        start: The pipeline that was trained in, as `write_untrained_tiny` makes it.
        checkpoints: Lightning checkpoints of what was trained; parts that none of them holds stay as in ``start``.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: No such checkpoint or folder.
        ValueError: A checkpoint without weights of the model, or a VAE whose encoder is not that of ``start``.
    """
    on_cpu: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    loaded, text_encoder = load_components(str(start), **on_cpu), load_text_encoder(str(start), **on_cpu)
    modules = {"vae": loaded.vae, "transformer": loaded.transformer, "text_encoder": text_encoder}
    for path in checkpoints:
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        if not any(name.startswith(tuple(f"{part}." for part in _TRAINED)) for name in weights):
            raise ValueError(f"checkpoints: must hold weights of {', '.join(_TRAINED)}, got {path}")
        for part in _TRAINED:
            _apply_weights(modules[part], part, weights, path)
    parts = {
        "tokenizer": loaded.tokenizer,
        "text_encoder": text_encoder,
        "transformer": nn.Module.to(loaded.transformer, torch.float16),
        "vae": nn.Module.to(loaded.vae, torch.float16),
        "scheduler": loaded.scheduler,
    }
    write_pipeline(folder, parts)
    # A tokenizer that was loaded writes into its config how that was done; only the original is clean.
    shutil.copytree(start / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return folder


def write_pipeline(folder: Path, parts: Mapping[str, Any], max_shard_size: str = "5GB") -> None:
    """Write a CogVideoX pipeline in diffusers' layout.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        parts: ``tokenizer``, ``text_encoder``, ``transformer``, ``vae`` and ``scheduler``, by these names.
        max_shard_size: Weights above it are split into several files with an index.
    """
    for name, part in parts.items():
        shards = {"max_shard_size": max_shard_size} if isinstance(part, nn.Module) else {}
        part.save_pretrained(folder / name, **shards)
        config = folder / name / "config.json"
        if config.is_file():  # where a part was loaded from, a path of this machine, is nobody's business
            content = json.loads(config.read_text(encoding="utf-8"))
            content.pop("_name_or_path", None)
            _write_json(config, content)
    index = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    sizes = parts["transformer"].config
    kind = "CogVideoXPipeline" if sizes.in_channels == sizes.out_channels else "CogVideoXImageToVideoPipeline"
    _write_json(folder / "model_index.json", {"_class_name": kind, **index})


@torch.no_grad()
def _apply_zeros(transformer: CogVideoXTransformer3DModel) -> None:
    """Zero what modulates the blocks and what comes out, which diffusers leaves to the default initialization."""
    last = [transformer.norm_out.linear, transformer.proj_out]
    for linear in [*(n.linear for b in transformer.transformer_blocks for n in (b.norm1, b.norm2)), *last]:
        linear.weight.zero_()
        linear.bias.zero_()


def _apply_weights(module: nn.Module, part: str, weights: dict[str, Tensor], path: Path) -> None:
    """Give a part its weights of a checkpoint, if there are any."""
    found = {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name.startswith(f"{part}.")}
    if not found:
        return
    if part == "vae":
        # The transformer knows the latents of this encoder, at the scale that the config says. A frozen encoder comes
        # out of weight averaging with other last bits, so the one of ``start`` is kept.
        for name, weight in module.state_dict().items():
            if name.startswith("encoder."):
                if (found[name] - weight).norm() > 1e-3 * weight.norm():
                    raise ValueError(f"checkpoints: the VAE's encoder must be that of start, {name} differs in {path}")
                found[name] = weight
    module.load_state_dict(found)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
