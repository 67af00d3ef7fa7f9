"""How much device memory a model needs is predicted from its configs, the headers of its weights and a size.

Weights are exact. What a pass needs beside them is a closed form. Its constants were counted, from the tensors that are
alive at once, on tensors without values: the published configurations of CogVideoX-5B and 2B in bfloat16, eager.
Nothing was measured on a device: what an allocator, the workspace of kernels and the CUDA context take comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from ddim_lightning.limits import VideoLimits
from ddim_lightning.models.weight_files import Header

BLOCK_TENSORS = 8.6
"""Tensors (tokens, width) that are alive at once, a row that is in a block, where it is at its widest."""
TOKEN_TENSORS, LENT_TENSORS = 1, 2
"""Tensors of each row of a pass, in the block or not; and of each row whose keys and values wait for another group."""
TRAINED_TENSORS = 43
"""Tensors (tokens, width), a row, beside the inputs of all blocks, where a training computes a block a second time.

It is that of LoRA layers in float32 in a transformer in bfloat16; in bfloat16 themselves they take 29.
"""
DECODER_TENSORS, ENCODER_TENSORS, DIVIDED_ENCODER_TENSORS = 8.6, 5.4, 6.5
"""Tensors (first channels, 9 frames, height, width) that are alive at once in the VAE, as `LeanCoder` runs it.

The encoder takes more where frames are so large that convolutions divide their input; the decoder does not.
"""
CHUNK_FRAMES = 9
"""Frames of the largest piece that the VAE takes at once, but for `LONG_PIECE`."""
LONG_PIECE = 1.17
"""Of clips of 8k + 5 frames the encoder takes 13 at first, and so many times as much."""
_BLOCKS, _TEXT_BLOCKS = "transformer_blocks.", "encoder.block."
_TOGETHER, _BY_ONE = "edit", "edit by 1"


@dataclass(frozen=True)
class Size:
    """A `Size` is what memory is predicted for.

    Args:
        num_frames: Frames of a clip, or of a window of it.
        height: In pixels.
        width: In pixels.
        rows: Rows of the widest pass of an edit.
        bytes_each: Of a value; 2 for bfloat16.
        holds: Whether the edit holds a context, and where: ``none``, or what `Runtime.context` says.
        sources: How many of the rows are read by others.
        rows_per_pass: Most rows that go through a block together; ``None`` for all.
    """

    num_frames: int
    height: int
    width: int
    rows: int
    bytes_each: int = 2
    holds: Literal["none", "device", "host", "fp8"] = "none"
    sources: int = 0
    rows_per_pass: int | None = None


def count_parameters(headers: Mapping[str, Header], prefix: str = "") -> int:
    """Count the values of all tensors whose names begin with a prefix."""
    return sum(prod(header.shape) for name, header in headers.items() if name.startswith(prefix))


def predict_peaks(
    headers: Mapping[str, Mapping[str, Header]],
    configs: Mapping[str, Mapping[str, Any]],
    limits: VideoLimits,
    size: Size,
) -> dict[str, dict[str, float]]:
    """Predict the peak of what is allocated, in GiB, by ``offload`` and by stage.

    Args:
        headers: By part, of its weights; without a text encoder no prompt is encoded.
        configs: By part.
        limits: Of the model.
        size: Of the clip and of the edit.

    Returns:
        By ``none``, ``model`` and ``blocks``: ``prompts`` of a run that lists them, which are encoded before the rest
        of the model is loaded, ``encode``, ``invert``, ``edit`` with the rows together as the size says, ``edit by 1``
        with one row at a time, and ``decode``.
    """
    gib = size.bytes_each / 2**30
    transformer, vae = (count_parameters(headers[part]) * gib for part in ("transformer", "vae"))
    text = count_parameters(headers.get("text_encoder", {})) * gib
    outside, block = (values * gib for values in _count_layers(headers["transformer"], _BLOCKS))
    streamed = outside + 2 * block
    text_layer = sum(_count_layers(headers.get("text_encoder", {}), _TEXT_BLOCKS)) * gib
    tensor = _count_tensor_values(configs["transformer"], limits, size) * gib
    row, together, by_one = (
        tensor * count_pass_tensors(rows, sources, most)
        for rows, sources, most in (
            (1, 0, None),
            (size.rows, size.sources, size.rows_per_pass),
            (size.rows, size.sources, 1),
        )
    )
    context = {"none": 0.0, **predict_context(configs["transformer"], limits, size)}[size.holds]
    picture = CHUNK_FRAMES * configs["vae"]["block_out_channels"][0] * size.height * size.width * gib
    divides = picture / gib * (CHUNK_FRAMES + 1) / CHUNK_FRAMES > 2**30
    encoder = DIVIDED_ENCODER_TENSORS if divides else ENCODER_TENSORS
    encoder *= LONG_PIECE if size.num_frames % 8 == 5 else 1.0
    peaks = {}
    for offload, (first, with_vae, with_transformer) in {
        "none": (text, transformer + vae, transformer + vae),
        "model": (text_layer, vae, transformer),
        "blocks": (text_layer, vae + outside, streamed),
    }.items():
        peaks[offload] = {
            "prompts": first,
            "encode": with_vae + encoder * picture,
            "invert": with_transformer + row,
            _TOGETHER: with_transformer + together + context,
            _BY_ONE: with_transformer + by_one + context,
            "decode": with_vae + DECODER_TENSORS * picture,
        }
    return peaks


def find_largest(needs: Mapping[str, float], rows_per_pass: int | None = None) -> float:
    """Find what the largest stage needs, in GiB.

    Args:
        needs: By stage, what `predict_peaks` returns of an offload.
        rows_per_pass: See `Runtime`; where it is ``None``, an edit whose rows do not fit together takes them in groups.
    """
    other = _TOGETHER if rows_per_pass is None else _BY_ONE
    return max(need for stage, need in needs.items() if stage != other)


def _count_layers(headers: Mapping[str, Header], prefix: str) -> tuple[int, int]:
    """Count the values outside the layers whose names begin with a prefix, and those of one of them."""
    layers: dict[str, int] = {}
    outside = 0
    for name, header in headers.items():
        if name.startswith(prefix):
            layer = name.removeprefix(prefix).partition(".")[0]
            layers[layer] = layers.get(layer, 0) + prod(header.shape)
        else:
            outside += prod(header.shape)
    return outside, max(layers.values(), default=0)


def predict_training(
    config: Mapping[str, Any],
    limits: VideoLimits,
    size: Size,
    *,
    frozen: int,
    trained: int,
    state_bytes: int = 8,
    processes: int = 1,
) -> dict[str, float]:
    """Predict what a training step with gradient checkpointing keeps on a device, in GiB.

    The VAE, the text encoder, the allocator and the CUDA context come on top.

    Args:
        config: Of the transformer.
        limits: Of the model.
        size: Of the clips; its rows are all edits and sources of a batch.
        frozen: Values of the transformer that are frozen.
        trained: Values that train, in float32, each with a gradient.
        state_bytes: What the optimizer keeps of each of them: 8 is AdamW, 2 is AdamW in 8 bits.
        processes: Over how many the weights are spread (FSDP2); 1 where each has them all.

    Returns:
        ``frozen``, ``trained`` (weights, gradients and the optimizer's states), ``blocks`` (the inputs of all blocks),
        ``block`` (what one block takes) and their ``sum``. Blocks that are gathered under FSDP2 are two.
    """
    layers = int(config.get("num_layers", 30))
    tensor = size.rows * _count_tensor_values(config, limits, size) * size.bytes_each
    gathered = 0.0 if processes == 1 else 2 * (frozen + trained) / layers * size.bytes_each
    parts = {
        "frozen": frozen * size.bytes_each / processes,
        "trained": trained * (4 + 4 + state_bytes) / processes,
        "blocks": layers * tensor,
        "block": TRAINED_TENSORS * tensor + gathered,
    }
    return {name: value / 2**30 for name, value in {**parts, "sum": sum(parts.values())}.items()}


def predict_context(config: Mapping[str, Any], limits: VideoLimits, size: Size) -> dict[str, float]:
    """Predict what the keys and values of a source that is held take on the device, in GiB, by `Runtime.context`.

    They are of every layer. From the host they come layer by layer, and two layers are on the device at a time.

    Args:
        config: Of the transformer.
        limits: Of the model.
        size: Of the clip, or of a window of it: each window holds as much.
    """
    layers = int(config.get("num_layers", 30))
    values = 2 * _count_tensor_values(config, limits, size)
    exact = values * size.bytes_each / 2**30
    return {"device": layers * exact, "host": 2 * exact, "fp8": layers * values / 2**30}


def count_pass_tensors(rows: int, sources: int = 0, rows_per_pass: int | None = None) -> float:
    """Count the tensors (tokens, width) of one row that a pass needs at its peak beside the weights.

    Where rows go through a block in groups, the tokens of all of them stay, and what is on its way is of one group.

    Args:
        rows: Of the pass.
        sources: How many of them others read.
        rows_per_pass: Most rows of a group; ``None`` for all.
    """
    if rows_per_pass is None or rows_per_pass >= rows:
        return rows * (TOKEN_TENSORS + BLOCK_TENSORS)
    lent = LENT_TENSORS * min(sources, rows_per_pass)
    return rows * TOKEN_TENSORS + rows_per_pass * BLOCK_TENSORS + lent


def fit_rows(rows: int, sources: int, room: float) -> int:
    """Return how many rows can go through a block together: all of them, or the largest group that fits, at least 1.

    Args:
        rows: Of the pass.
        sources: How many of them others read.
        room: Tensors (tokens, width) of one row that have room beside the weights.
    """
    fitting = (group for group in range(rows, 1, -1) if count_pass_tensors(rows, sources, group) <= room)
    return next(fitting, 1)


def _count_tensor_values(config: Mapping[str, Any], limits: VideoLimits, size: Size) -> int:
    """Count the values of a tensor (tokens, width) of one row."""
    width = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)  # diffusers' defaults
    latents = 1 + (size.num_frames - 1) // limits.temporal
    frames = -(-latents // (config.get("patch_size_t") or 1))
    video = frames * (size.height // limits.multiple) * (size.width // limits.multiple)
    return int(width) * (int(config.get("max_text_seq_length", 226)) + video)
