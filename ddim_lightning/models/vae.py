"""The VAE turns videos into latents and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from ddim_lightning.models.lean_vae import Coder, make_coder
from ddim_lightning.types import Latents, Video


def order_channels_last(vae: AutoencoderKLCogVideoX) -> None:
    """Store the weights of convolutions with their channels last, the order that tensor cores want them in.

    What a convolution returns then has that order too. The group norms of a GPU turn it back, and the next convolution
    turns it again, so that only a measurement tells whether it is faster. Results are the same up to rounding.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            order = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.to(memory_format=order)


def use_tiles(vae: AutoencoderKLCogVideoX) -> None:
    """Let a VAE encode and decode overlapping tiles of half a frame's height and width, and blend their seams.

    The overlap is a fifth of a tile in whole latents: with another one, diffusers' tiles of pixels and those of latents
    do not lie on each other.
    """
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    tiles, overlaps = [], []
    for size in (vae.config.sample_height, vae.config.sample_width):
        latents = size // scale // 2
        tiles.append(latents * scale)
        overlaps.append(-(-latents // 5) / latents)
    vae.enable_tiling(*tiles, *overlaps)


def encode_video(vae: AutoencoderKLCogVideoX, video: Video, generator: torch.Generator | None = None) -> Latents:
    """Encode a video, a few frames at a time as diffusers does; with tiles, all frames of a tile at a time.

    Args:
        vae: The autoencoder.
        video: (b, f, c, h, w), 0 .. 1, with f = 4k + 1; or uint8, 0 .. 255. On any device: only the frames under way
            come to the VAE's, unless it works on tiles.
        generator: Samples the posterior with it; without one the posterior's mode is taken, which is deterministic and
            does not move the latent by the posterior's spread.

    Returns:
        (b, f, c, h, w) float32 latents, scaled by the VAE's ``scaling_factor``.
    """
    latents: Tensor = _encode(vae, video, generator) * vae.config.scaling_factor
    return latents


def encode_first_frame(vae: AutoencoderKLCogVideoX, frame: Tensor, num_frames: int) -> Latents:
    """Make the image latents that an image-to-video model is shown: those of its first frame, then zeros.

    The posterior's mode is taken, where diffusers samples it: two runs then show the model the same image.

    Args:
        vae: The autoencoder.
        frame: (b, c, h, w), 0 .. 1; or uint8, 0 .. 255. On any device.
        num_frames: Latent frames of the video that it begins.

    Returns:
        (b, num_frames, c, h, w) float32 latents; the first is scaled by the VAE's ``scaling_factor``, by its inverse
        where the VAE is told to ``invert_scale_latents``, as CogVideoX1.5 was trained.

    Source: `CogVideoXImageToVideoPipeline.prepare_latents` in diffusers.
    """
    scale: float = vae.config.scaling_factor
    image = _encode(vae, frame[:, None])
    image = image / scale if vae.config.invert_scale_latents else image * scale
    return torch.cat([image, image.new_zeros(len(image), num_frames - 1, *image.shape[2:])], dim=1)


def _encode(vae: AutoencoderKLCogVideoX, video: Video, generator: torch.Generator | None = None) -> Latents:
    """Encode a video to float32 latents that are not scaled yet; see `encode_video`."""
    if vae.use_tiling:
        posterior = vae.encode(torch.cat([_prepare(vae, frame) for frame in video.split(1, dim=1)], dim=2)).latent_dist
    else:
        encoded, encode = [], _make_coder(vae, vae.encoder, video)
        for piece in split_frames(video.shape[1], vae.num_sample_frames_batch_size):
            moments = encode(_prepare(vae, video[:, piece]))
            encoded.append(moments if vae.quant_conv is None else vae.quant_conv(moments))
        posterior = DiagonalGaussianDistribution(torch.cat(encoded, dim=2))
    latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    return latents.transpose(1, 2).float()


def decode_latents(vae: AutoencoderKLCogVideoX, latents: Latents) -> Video:
    """Decode latents; see `stream_decoded`.

    Returns:
        (b, f, c, h, w) float32, clamped to 0 .. 1, not quantized.
    """
    return torch.cat(list(stream_decoded(vae, latents)), dim=1)


def stream_decoded(vae: AutoencoderKLCogVideoX, latents: Latents) -> Iterator[Video]:
    """Decode latents a few frames at a time as diffusers does; with tiles, all frames at once.

    Args:
        vae: The autoencoder.
        latents: (b, f, c, h, w), scaled; on any device.

    Yields:
        Pieces (b, f, c, h, w) of the video in order, float32, clamped to 0 .. 1, not quantized, on the VAE's device.
    """
    frames = (latents.shape[1] - 1) * vae.config.temporal_compression_ratio + 1
    if latents.shape[1] % 2 == 0:
        # diffusers decodes frames in pairs and keeps the first one single only where their number is odd: of two latent
        # frames it would make eight. The decoder is causal, so one more at the end makes the number odd and is cut off.
        latents = torch.cat([latents, latents[:, -1:]], dim=1)
    decode = _make_coder(vae, vae.decoder, latents)
    pieces = [slice(None)] if vae.use_tiling else split_frames(latents.shape[1], vae.num_latent_frames_batch_size)
    for piece in pieces:
        unscaled = (latents[:, piece].to(vae.device) / vae.config.scaling_factor).to(vae.dtype).transpose(1, 2)
        if vae.use_tiling:
            decoded = vae.decode(unscaled).sample
        else:
            unscaled = unscaled if vae.post_quant_conv is None else vae.post_quant_conv(unscaled)
            decoded = decode(unscaled)
        video = decoded.transpose(1, 2)[:, :frames].float()
        frames -= video.shape[1]
        yield (video / 2.0 + 0.5).clamp(0.0, 1.0)


def _make_coder(vae: AutoencoderKLCogVideoX, coder: Coder, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Make the function that takes videos through a coder piece by piece; with slices each of them for itself."""
    if not vae.use_slicing or len(inputs) == 1:
        return make_coder(coder, inputs)
    coders = [make_coder(coder, one) for one in inputs.split(1)]
    return lambda piece: torch.cat([code(one) for code, one in zip(coders, piece.split(1), strict=True)])


def split_frames(num_frames: int, size: int) -> list[slice]:
    """Return the pieces in which diffusers' VAE takes frames: the first has what is left over.

    Norms see one piece at a time, so that other pieces would give other latents.
    """
    ends = [*range(size + num_frames % size, num_frames, size), num_frames]
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def _prepare(vae: AutoencoderKLCogVideoX, video: Tensor) -> Tensor:
    """Bring frames (b, f, c, h, w) to the device, dtype, range -1 .. 1 and axes (b, c, f, h, w) of a VAE."""
    pixels = video.to(vae.device)
    pixels = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
    return (pixels * 2.0 - 1.0).to(vae.dtype).transpose(1, 2)


def quantize(video: Tensor) -> Tensor:
    """Round a video, floats in 0 .. 1 of any shape, to uint8 on the CPU."""
    return (video * 255.0).round().to(torch.uint8).cpu()
