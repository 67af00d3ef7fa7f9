"""The encoder and the decoder of diffusers' VAE run with the same operations on the same values, in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXDecoder3D,
    CogVideoXDownBlock3D,
    CogVideoXEncoder3D,
    CogVideoXMidBlock3D,
    CogVideoXResnetBlock3D,
    CogVideoXSafeConv3d,
    CogVideoXSpatialNorm3D,
    CogVideoXUpBlock3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu
from torch.nn.modules import module as every_module

from ddim_lightning.runtime.autocast import has_autocast

Coder: TypeAlias = CogVideoXEncoder3D | CogVideoXDecoder3D
Layer: TypeAlias = tuple[Any, CogVideoXCausalConv3d]  # a group norm or a spatial norm, and what reads it

_KNOWN: dict[type[nn.Module], Any] = {
    kind: kind.forward
    for kind in (
        CogVideoXCausalConv3d,
        CogVideoXDecoder3D,
        CogVideoXDownBlock3D,
        CogVideoXDownsample3D,
        CogVideoXEncoder3D,
        CogVideoXMidBlock3D,
        CogVideoXResnetBlock3D,
        CogVideoXSafeConv3d,
        CogVideoXSpatialNorm3D,
        CogVideoXUpBlock3D,
        CogVideoXUpsample3D,
        nn.Conv2d,
        nn.Dropout,
        nn.GroupNorm,
        nn.ModuleList,
        nn.SiLU,
    )
}


def make_coder(coder: Coder, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Make the function that takes a video through an encoder or a decoder, piece by piece and in order.

    It remembers the frames that convolutions want of the piece before. It is a `LeanCoder`, unless somebody wants
    gradients or has changed a module: then it is diffusers' own forward pass, with hooks, compiled graphs and the like.

    Args:
        coder: The encoder, or the decoder.
        inputs: What the pieces are of.
    """
    wants_gradients = torch.is_grad_enabled() and any(one.requires_grad for one in (inputs, *coder.parameters()))
    mixes_dtypes = has_autocast(next(coder.parameters()).device)
    return LeanCoder(coder) if _is_plain(coder) and not wants_gradients and not mixes_dtypes else _TheirCoder(coder)


class LeanCoder:
    """A `LeanCoder` is the forward pass of an encoder or a decoder without gradients, in little memory.

    Every kernel is called with the values, shapes and layouts that diffusers calls it with, so that results are the
    same bytes on any device. What differs is how long tensors live: activations and sums work in place, what a layer
    has read is let go before the next one allocates, and remembered frames are consumed as they are used.

    Args:
        coder: The encoder, or the decoder.

    Source: `CogVideoXEncoder3D`, `CogVideoXDecoder3D` and `CogVideoXResnetBlock3D` in diffusers.
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._remembered: dict[nn.Module, Tensor] = {}

    def __call__(self, piece: Tensor) -> Tensor:
        """Encode or decode the next piece, (b, c, f, h, w)."""
        coder = self.coder
        z = piece if isinstance(coder, CogVideoXDecoder3D) else None
        x = _convolve(coder.conv_in.conv, self._extend(coder.conv_in, piece))
        for module in _list_modules(coder):
            if isinstance(module, CogVideoXDownsample3D | CogVideoXUpsample3D):
                x = _straighten(module(x))
                continue
            residual, layers = _split(module, x)
            # All in this frame: a function's caller would hold its input for as long as it runs.
            for norm, conv in layers:
                x = (norm if z is None else norm.norm_layer)(x)
                if z is not None:
                    _modulate(x, norm, z)
                x = self._extend(conv, silu(x, inplace=True))
                x = _convolve(conv.conv, x)
            if residual is not None:
                x += residual
                del residual
        return x

    def _extend(self, conv: CogVideoXCausalConv3d, x: Tensor) -> Tensor:
        """Put the frames of before in front of a convolution's input, and remember its last ones."""
        if conv.time_kernel_size == 1:
            return x
        before = self._remembered.pop(conv, None)
        x = torch.cat([x[:, :, :1]] * (conv.time_kernel_size - 1) + [x] if before is None else [before, x], dim=2)
        del before
        self._remembered[conv] = x[:, :, 1 - conv.time_kernel_size :].clone()
        return x


class _TheirCoder:
    """A `_TheirCoder` is the forward pass of diffusers' own modules."""

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._remembered: Any = None

    def __call__(self, piece: Tensor) -> Tensor:
        x: Tensor
        x, self._remembered = self.coder(piece, conv_cache=self._remembered)
        return x


def _is_plain(coder: Coder) -> bool:
    """Whether all modules are those of diffusers, and nothing but their own forward pass acts when they are called."""
    if every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return False
    for module in coder.modules():
        own = _KNOWN.get(type(module)) is type(module).forward and "forward" not in vars(module)
        hooked = module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl is not None
        drops = isinstance(module, nn.Dropout) and module.training and module.p > 0
        repeats = isinstance(module, CogVideoXCausalConv3d) and module.pad_mode == "replicate"
        if not own or hooked or drops or repeats:
            return False
    return True


def _list_modules(coder: Coder) -> Iterator[nn.Module]:
    """List residual blocks and samplers in the order in which they act, and last the coder itself for its output."""
    down = isinstance(coder, CogVideoXEncoder3D)
    for block in [*coder.down_blocks, coder.mid_block] if down else [coder.mid_block, *coder.up_blocks]:
        yield from block.resnets
        yield from getattr(block, "downsamplers" if down else "upsamplers", None) or ()
    yield coder


def _split(module: nn.Module, x: Tensor) -> tuple[Tensor | None, tuple[Layer, ...]]:
    """Return what is added to the output of a residual block, and its norms with their convolutions."""
    if not isinstance(module, CogVideoXResnetBlock3D):
        return None, ((module.norm_out, module.conv_out),)
    residual = x if module.in_channels == module.out_channels else _convolve(module.conv_shortcut, x)
    return residual, ((module.norm1, module.conv1), (module.norm2, module.conv2))


def _modulate(x: Tensor, norm: CogVideoXSpatialNorm3D, z: Tensor) -> None:
    """Scale and shift normalized values by what a spatial norm makes of the latents, in place.

    Source: `CogVideoXSpatialNorm3D.forward`.
    """
    frames, *size = x.shape[2:]
    if frames > 1 and frames % 2 == 1:
        rest = interpolate(z[:, :, 1:], size=(frames - 1, *size))
        z = torch.cat([interpolate(z[:, :, :1], size=(1, *size)), rest], dim=2)
        del rest
    else:
        z = interpolate(z, size=x.shape[2:])
    x *= _convolve(norm.conv_y.conv, z)
    x += _convolve(norm.conv_b.conv, z)


def _convolve(conv: CogVideoXSafeConv3d, x: Tensor) -> Tensor:
    """Convolve; an input of more than 2**30 values in the parts that diffusers makes of it, but one at a time.

    Source: `CogVideoXSafeConv3d.forward`.
    """
    if x.numel() <= 2**30:
        whole: Tensor = conv(x)
        return whole
    parts, before = x.chunk(int(x.numel() / 2**30) + 1, dim=2), conv.kernel_size[0] - 1
    convolved = [nn.Conv3d.forward(conv, parts[0])]
    for last, part in pairwise(parts):
        convolved.append(nn.Conv3d.forward(conv, torch.cat([last[:, :, -before:], part], dim=2) if before else part))
    return torch.cat(convolved, dim=2)


def _straighten(x: Tensor) -> Tensor:
    """Lay out values once that samplers return frame by frame, instead of in every layer that reads them."""
    return x if x.is_contiguous(memory_format=torch.channels_last_3d) else x.contiguous()
