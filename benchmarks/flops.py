"""The work of a CogVideoX pass is counted in closed form: floating-point operations of products and attention.

A multiply-add is two. Norms, activations, rotary embeddings and additions are not counted: it is the convention of
`torch.utils.flop_counter.FlopCounterMode`, whose counts these are, to the last operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddim_lightning.types import KVScale


@dataclass(frozen=True)
class Flops:
    """`Flops` are operations, by what a GPU spends them in.

    Args:
        linear: Products with weights, convolutions included.
        attention: Products of queries and keys, and of their weights and the values.
    """

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.linear * times, self.attention * times)

    __rmul__ = __mul__


@dataclass(frozen=True)
class TransformerSizes:
    """`TransformerSizes` are what the work of a transformer depends on.

    Args:
        layers: Blocks.
        width: Channels of a token; four times as many in the feed-forward part.
        patch: Side of a square patch, in latent pixels.
        in_channels: Of the latents that go in.
        out_channels: Of the velocity that comes out.
        text_width: Channels of a prompt embedding's token.
        time_width: Channels of the time embedding.
        video_tokens: Patches of all latent frames.
        text_tokens: Tokens of a prompt embedding, padding included.
    """

    layers: int
    width: int
    patch: int
    in_channels: int
    out_channels: int
    text_width: int
    time_width: int
    video_tokens: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        """Text and video tokens of a row."""
        return self.text_tokens + self.video_tokens


def make_sizes(
    config: Mapping[str, Any], latents: Sequence[int] | None = None, text_tokens: int | None = None
) -> TransformerSizes:
    """Read the sizes from a config.

    Args:
        config: Of a `CogVideoXTransformer3DModel`.
        latents: (f, c, h, w) or (rows, f, c, h, w); ``None`` for the config's own size.
        text_tokens: Of a prompt; ``None`` for the config's ``max_text_seq_length``.

    Raises:
        ValueError: A model with patches in time, or latents that patches do not divide.
    """
    if config.get("patch_size_t") is not None:
        raise ValueError(f"config: patches in time are not counted, got patch_size_t={config['patch_size_t']}")
    patch = config["patch_size"]
    if latents is None:
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        height, width = config["sample_height"], config["sample_width"]
    else:
        frames, _, height, width = latents[-4:]
    if height % patch or width % patch:
        raise ValueError(f"latents: height and width must be multiples of {patch}, got {height} x {width}")
    return TransformerSizes(
        layers=config["num_layers"],
        width=config["num_attention_heads"] * config["attention_head_dim"],
        patch=patch,
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        text_width=config["text_embed_dim"],
        time_width=config["time_embed_dim"],
        video_tokens=frames * (height // patch) * (width // patch),
        text_tokens=config["max_text_seq_length"] if text_tokens is None else text_tokens,
    )


def count_linear(tokens: int, inputs: int, outputs: int) -> int:
    """Return the operations of one linear layer, from ``inputs`` to ``outputs`` channels."""
    return 2 * tokens * inputs * outputs


def count_attention(queries: int, keys: int, width: int) -> int:
    """Return the operations of attention over all heads of one row; nothing is masked.

    Args:
        queries: Tokens that attend.
        keys: Tokens that are attended to.
        width: Channels of all heads together.
    """
    return 4 * queries * keys * width


def count_modulation(sizes: TransformerSizes) -> Flops:
    """Count what a timestep decides: its embedding, and scale, shift and gate of every norm.

    diffusers works it out for each row of each pass, `Network` once a timestep, kept for the passes that follow.
    """
    width, time = sizes.width, sizes.time_width
    embedding = count_linear(1, width, time) + count_linear(1, time, time)
    blocks = sizes.layers * 2 * count_linear(1, time, 6 * width)
    return Flops(embedding + blocks + count_linear(1, time, 2 * width))


def count_pass(
    sizes: TransformerSizes,
    rows: int,
    *,
    wanted: int | None = None,
    reads: tuple[int, ...] = (),
    kv_scale: KVScale | None = None,
    held: bool = False,
    inside: Sequence[int | None] = (),
) -> Flops:
    """Count one pass of `ddim_lightning.network.network.Network`, without the modulation of its timestep.

    Rows that are only read end at the last layer that reads them, before its queries; a layer of kv_scale 0 reads
    nothing. What is read costs a reading row a second attention, however the kernel comes by it; in groups or all at
    once, it is the same work. A row under a mask is work for its own tokens alone: they attend to those of its source
    that it has not, and where it reads to the others of it once more. Its source then stays up to the last layer.

    Args:
        sizes: Of the model and its latents.
        rows: Rows that go in.
        wanted: How many of them, the first, are wanted; ``None`` for all.
        reads: For each of the first rows the row it reads.
        kv_scale: How much they attend to what they read, by layer; ``None`` is 1 in every layer.
        held: Whether all rows also attend to a held one.
        inside: For each of the first rows its own video tokens, fewer than all under a mask; ``None`` for all of them.
    """
    kept, width, tokens = rows if wanted is None else wanted, sizes.width, sizes.tokens
    video = [sizes.video_tokens if n is None else n for n in (*inside, *[None] * (rows - len(inside)))]
    own = [sizes.text_tokens + n for n in video]
    reading = [bool(reads) and (kv_scale is None or float(kv_scale[k]) > 0.0) for k in range(sizes.layers)]
    masked = any(n is not None for n in inside)
    last = sizes.layers - 1 if masked else max((k for k in range(sizes.layers) if reading[k]), default=-1)
    work = rows * _count_embedding(sizes)
    for k in range(sizes.layers):
        goes_on = rows if k < last else kept
        # Keys and values of all; query and output, and up and down at four widths each, of those that go on.
        linear = sum((2 + (2 + 8) * (row < goes_on)) * count_linear(own[row], width, width) for row in range(rows))
        keys = [tokens * (1 + held) + reading[k] * (own[row] if row < len(reads) else 0) for row in range(goes_on)]
        work += Flops(linear, sum(count_attention(own[row], keys[row], width) for row in range(goes_on)))
        rows = goes_on
    return work + Flops(sum(_count_output(sizes, n) for n in video[:kept]))


def count_hold(sizes: TransformerSizes, rows: int) -> Flops:
    """Count what `ddim_lightning.network.network.Network.hold` computes: it ends at the keys and values of a layer."""
    tokens, width = sizes.tokens, sizes.width
    product, whole = count_linear(tokens, width, width), sizes.layers - 1
    layers = Flops((12 * whole + 2) * product, whole * count_attention(tokens, tokens, width))
    return rows * _count_embedding(sizes) + rows * layers


def count_diffusers_pass(sizes: TransformerSizes, rows: int, *, readers: int = 0) -> Flops:
    """Count one pass of `CogVideoXTransformer3DModel.forward`, the modulation of every row included.

    Args:
        sizes: Of the model and its latents.
        rows: Rows that go in; all come out.
        readers: How many of them see twice the keys, as an attention processor may arrange it.
    """
    work = count_pass(sizes, rows) + rows * count_modulation(sizes)
    reading = readers * sizes.layers * count_attention(sizes.tokens, sizes.tokens, sizes.width)
    return work + Flops(attention=reading)


def count_reference_inversion_step(sizes: TransformerSizes) -> Flops:
    """Count an inversion step of the reference script: two rows, which are equal.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``.
    """
    return count_diffusers_pass(sizes, 2)


def count_reference_reconstruction_step(sizes: TransformerSizes) -> Flops:
    """Count a reconstruction step of the reference script: two guided rows, and two of the source that they read.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``.
    """
    return count_diffusers_pass(sizes, 4, readers=2)


def count_text_encoder(config: Mapping[str, Any], tokens: int) -> Flops:
    """Count the encoding of one prompt by a T5 encoder.

    Args:
        config: Of a `T5EncoderModel`, with its ``feed_forward_proj``.
        tokens: Of the prompt, padding included.

    Source: Raffel et al. 2020, "Exploring the limits of transfer learning", arXiv:1910.10683; Shazeer 2020, "GLU
    variants improve transformer", arXiv:2002.05202, for the third product of a gated feed-forward part.
    """
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    products = 3 if config["feed_forward_proj"].startswith("gated") else 2
    linear = 4 * count_linear(tokens, width, inner) + products * count_linear(tokens, width, config["d_ff"])
    layer = Flops(linear, count_attention(tokens, tokens, inner))
    layers: int = config["num_layers"]
    return layers * layer


def count_encoding(config: Mapping[str, Any], frames: int, height: int, width: int) -> Flops:
    """Count the encoding of one video by the VAE, without tiles.

    Args:
        config: Of an `AutoencoderKLCogVideoX`.
        frames: 4k + 1, or k times the config's ``temporal_compression_ratio`` and one.
        height: In pixels, a multiple of what the VAE divides it by.
        width: Likewise.

    Source: Yang et al. 2024, "CogVideoX", arXiv:2408.06072, section 2.1, as diffusers builds it.
    """
    channels, resnets = tuple(config["block_out_channels"]), config["layers_per_block"]
    halvings = _count_halvings(config)
    linear, before = _convolve(frames * height * width, 27, config["in_channels"], channels[0]), channels[0]
    for k, after in enumerate(channels):
        linear += _count_resnets(frames * height * width, resnets, before, after)
        if k < len(channels) - 1:
            frames, height, width = (frames - 1) // 2 + 1 if k < halvings else frames, height // 2, width // 2
            linear += _convolve(frames * height * width, 9, after, after)
        before = after
    linear += _count_resnets(frames * height * width, 2, before, before)
    return Flops(linear + _convolve(frames * height * width, 27, before, 2 * config["latent_channels"]))


def count_decoding(config: Mapping[str, Any], frames: int, height: int, width: int) -> Flops:
    """Count the decoding of one video by the VAE, without tiles.

    Args:
        config: Of an `AutoencoderKLCogVideoX`.
        frames: Latent frames; an even number is one more, as `ddim_lightning.models.vae.decode_latents` decodes it.
        height: In latent pixels.
        width: Likewise.

    Source: Yang et al. 2024, "CogVideoX", arXiv:2408.06072, section 2.1, as diffusers builds it: each norm scales and
    shifts by the latents, two products with them at its own size.
    """
    channels, latent = tuple(reversed(config["block_out_channels"])), config["latent_channels"]
    resnets, doublings = config["layers_per_block"] + 1, _count_halvings(config)
    frames += 1 - frames % 2
    linear, before = _convolve(frames * height * width, 27, latent, channels[0]), channels[0]
    linear += _count_resnets(frames * height * width, 2, before, before, latent)
    for k, after in enumerate(channels):
        linear += _count_resnets(frames * height * width, resnets, before, after, latent)
        if k < len(channels) - 1:
            frames, height, width = (frames - 1) * 2 + 1 if k < doublings else frames, height * 2, width * 2
            linear += _convolve(frames * height * width, 9, after, after)
        before = after
    voxels = frames * height * width
    linear += 2 * _convolve(voxels, 1, latent, before)
    return Flops(linear + _convolve(voxels, 27, before, config["out_channels"]))


def _count_embedding(sizes: TransformerSizes) -> Flops:
    """Count what makes tokens of one row: the convolution over patches and the projection of the text."""
    patches = count_linear(sizes.video_tokens, sizes.in_channels * sizes.patch**2, sizes.width)
    return Flops(patches + count_linear(sizes.text_tokens, sizes.text_width, sizes.width))


def _count_output(sizes: TransformerSizes, video_tokens: int) -> int:
    """Count what makes the velocity of one row from so many video tokens."""
    return count_linear(video_tokens, sizes.width, sizes.out_channels * sizes.patch**2)


def _convolve(voxels: int, taps: int, inputs: int, outputs: int) -> int:
    """Count a convolution: a linear layer from ``taps`` neighbors to each of the voxels that come out."""
    return count_linear(voxels, taps * inputs, outputs)


def _count_resnets(voxels: int, number: int, before: int, after: int, latent: int = 0) -> int:
    """Count residual blocks of two 3 x 3 x 3 convolutions, the first of which changes the number of channels.

    Args:
        voxels: That go in and come out.
        number: Of blocks.
        before: Channels that go in.
        after: Channels that come out.
        latent: Channels of the latents that each norm is told; 0 for norms that are told nothing.
    """
    linear = 0
    for inputs in (before, *[after] * (number - 1)):
        linear += _convolve(voxels, 27, inputs, after) + _convolve(voxels, 27, after, after)
        linear += 2 * (_convolve(voxels, 1, latent, inputs) + _convolve(voxels, 1, latent, after))
        linear += _convolve(voxels, 1, inputs, after) if inputs != after else 0
    return linear


def _count_halvings(config: Mapping[str, Any]) -> int:
    """Return how many levels of the VAE halve the frames."""
    return int(math.log2(config["temporal_compression_ratio"]))
