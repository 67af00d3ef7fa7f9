"""The weights of a transformer are gathered once as plain tensors, for a forward pass of our own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ddim_lightning.network.adapters import Linear, State, read_change, read_own, read_state, take_linear


class Projection(Protocol):
    """A `Projection` is a linear layer, in whatever form its weight is kept."""

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """(out,), or ``None``."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in)."""
        ...

    def take(self, start: int, stop: int | None = None) -> Projection:
        """Return the part that makes the outputs from ``start`` to ``stop``, without a copy."""
        ...


class Norm(NamedTuple):
    """A `Norm` is a layer norm over the last axis.

    Args:
        weight: (width,), or ``None``.
        bias: (width,), or ``None``.
        eps: Added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., width)."""
        return layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class BlockWeights(NamedTuple):
    """`BlockWeights` are what one block multiplies by; its two modulated norms are in the `Modulation`.

    Args:
        qkv: Queries, keys and values of a token, (3 width, width), in this order.
        norm_query: Over the channels of a head.
        norm_key: Likewise.
        out: After attention, (width, width).
        up: Into the feed-forward part, (4 width, width).
        down: Out of it, (width, 4 width).
    """

    qkv: Projection
    norm_query: Norm
    norm_key: Norm
    out: Linear
    up: Projection
    down: Projection


def gather_block(block: Any, own: BlockWeights | None = None) -> BlockWeights:
    """Gather the weights of a `CogVideoXBlock`.

    The query, key and value projections become three parts of one matrix: the parameters of the block are made views
    of it, so that nothing is held twice and optimisers, checkpoints and state dicts see what they saw before. Of a
    projection with adapters the sum is taken, which is a copy.

    Args:
        block: The block; its parameters keep their values.
        own: What was gathered of it without adapters, where its weights are elsewhere now; sums start from these.

    Raises:
        ValueError: A projection that is neither a plain linear layer nor one with plain LoRA.
    """
    attn = block.attn1
    held = {} if own is None else _list_linears(own)
    linears = {name: take_linear(module, name, held.get(name)) for name, module in list_projections(block).items()}
    fused = ("to_q", "to_k", "to_v")
    return BlockWeights(
        own.qkv
        if own is not None and all(linears[name] is held[name] for name in fused)
        else _fuse([attn.to_q, attn.to_k, attn.to_v], [linears[name] for name in fused]),
        _take_norm(attn.norm_q) if own is None else own.norm_query,
        _take_norm(attn.norm_k) if own is None else own.norm_key,
        linears["to_out"],
        linears["ff up"],
        linears["ff down"],
    )


def list_projections(block: Any) -> dict[str, nn.Module]:
    """Return the large linear layers of a `CogVideoXBlock` by name."""
    # From the dictionaries that attributes are looked for in: every pass lists those of every block.
    attn, feed_forward = block.attn1._modules, block.ff.net._modules
    return {
        "to_q": attn["to_q"], "to_k": attn["to_k"], "to_v": attn["to_v"], "to_out": attn["to_out"]._modules["0"],
        "ff up": feed_forward["0"]._modules["proj"], "ff down": feed_forward["2"],
    }  # fmt: skip


def _list_linears(weights: BlockWeights) -> dict[str, Any]:
    """Return what was gathered of the layers of `list_projections`, by the same names."""
    width = weights.out.weight.shape[0]
    parts = {name: weights.qkv.take(k * width, (k + 1) * width) for k, name in enumerate(("to_q", "to_k", "to_v"))}
    return parts | {"to_out": weights.out, "ff up": weights.up, "ff down": weights.down}


def place_block(block: Any, weights: BlockWeights) -> None:
    """Make the parameters of a block those of a copy of what was gathered from it: `gather_block` backwards."""
    held = _list_linears(weights)
    for name, module in list_projections(block).items():
        _place(module, held[name])
    _place(block.attn1.norm_q, weights.norm_query)
    _place(block.attn1.norm_k, weights.norm_key)


class ModulatedNorm(NamedTuple):
    """A `ModulatedNorm` holds the weights that make a norm out of a timestep, named as in `CogVideoXLayerNormZero`.

    Args:
        norm: The norm with its learnt affine part.
        linear: From the timestep's embedding to shift, scale and gate of video and text, (6 width, time width).
    """

    norm: Norm
    linear: Linear


NormPair = tuple[ModulatedNorm, ModulatedNorm]
"""Of one block: before attention, and before the feed-forward part."""


def gather_norms(block: Any, own: NormPair | None = None) -> NormPair:
    """Gather the weights of a block's modulated norms; see `gather_block`."""
    first, second = (
        ModulatedNorm(_take_norm(norm.norm), take_linear(norm.linear, "norm"))
        if held is None
        else ModulatedNorm(held.norm, take_linear(norm.linear, "norm", held.linear))
        for norm, held in zip((block.norm1, block.norm2), own or (None, None), strict=True)
    )
    return first, second


def place_norms(block: Any, norms: NormPair) -> None:
    """Make the parameters of a block's modulated norms those of others, as `place_block` does."""
    for module, norm in zip((block.norm1, block.norm2), norms, strict=True):
        _place(module.norm, norm.norm)
        _place(module.linear, norm.linear)


class Modulation(NamedTuple):
    """A `Modulation` is all that a timestep decides, for every row alike.

    A norm with a learnt affine part followed by scale and shift is one norm with another affine part.

    Args:
        blocks: (layers, 2, 2, 3, width): before attention and before the feed-forward part; of video and text; the
            norm's weight, its bias, and the gate of what comes back.
        final: (2, width): weight and bias of the norm before the output projection.
    """

    blocks: Tensor
    final: Tensor


OFS = 2.0
"""What a model with ``ofs_embed_dim`` is told beside the timestep: the constant of `CogVideoXImageToVideoPipeline`."""


@torch.no_grad()
def make_modulations(
    transformer: CogVideoXTransformer3DModel, timesteps: Tensor, norms: Iterable[NormPair] | None = None
) -> list[Modulation]:
    """Work out what timesteps decide, for each of them; together, since reading the weights is what takes the time.

    Args:
        transformer: The model.
        timesteps: (n,) int64 on its device.
        norms: The modulated norms of every block, where they are not to be those of the model.

    Source: Peebles and Xie 2022, "Scalable diffusion models with transformers" (adaLN-Zero), arXiv:2212.09748, in the
    form of `CogVideoXLayerNormZero`, which has a set for the video tokens and one for the text tokens.
    """
    # In the dtype of the layer that it enters: `transformer.dtype` walks over all modules.
    dtype = transformer.time_embedding.linear_1.weight.dtype
    embedded = transformer.time_embedding(transformer.time_proj(timesteps).to(dtype))
    if transformer.ofs_embedding is not None:
        offset = transformer.ofs_proj(torch.full((1,), OFS, device=timesteps.device))
        embedded = embedded + transformer.ofs_embedding(offset.to(dtype))
    condition = torch.nn.functional.silu(embedded)
    parts, learnt = [], []
    for pair in norms or ((block.norm1, block.norm2) for block in transformer.transformer_blocks):
        for norm in pair:  # streamed weights are here now, and not behind the loop
            parts.append(norm.linear(condition))
            if norm.norm.weight is not None and norm.norm.bias is not None:
                learnt.append(torch.stack([norm.norm.weight, norm.norm.bias]))
    # (n, norms, video and text, width) each.
    shift, scale, gate = torch.stack(parts, dim=1).unflatten(-1, (2, 3, -1)).unbind(3)
    affine = torch.stack(learnt, dim=1)[:, :, None] if learnt else None
    blocks = torch.stack([*_fold(affine, shift, 1.0 + scale), gate], dim=3).unflatten(1, (-1, 2))
    shift, scale = transformer.norm_out.linear(condition).chunk(2, dim=-1)
    last = transformer.norm_out.norm
    affine = None if last.weight is None else torch.stack([last.weight, last.bias])
    final = torch.stack(_fold(affine, shift, 1.0 + scale), dim=1)
    return [Modulation(*made) for made in zip(blocks.unbind(), final.unbind(), strict=True)]


def read_modulation_state(transformer: CogVideoXTransformer3DModel) -> State:
    """Read what changes when the weights do that `make_modulations` computes with; see `read_state`."""
    blocks = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm2)]
    embeddings = filter(None, (transformer.time_embedding, transformer.ofs_embedding))
    linears = [layer for embedding in embeddings for layer in (embedding.linear_1, embedding.linear_2)]
    linears += [norm.linear for norm in (*blocks, transformer.norm_out)]
    layers = [*linears, *(norm.norm for norm in blocks)]
    tensors = [read_own(layer, name) for layer in layers for name in ("weight", "bias")]
    changes = [read_change(tensor) for tensor in tensors if tensor is not None]
    return [*read_state(linears), *changes]


def _fold(affine: Tensor | None, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Fold shift and scale into what a norm has learnt, (2, ...) weight and bias; return the new weight and bias."""
    return (scale, shift) if affine is None else (affine[0] * scale, affine[1] * scale + shift)


def _take_norm(module: Any) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


@torch.inference_mode(False)
def _place(module: Any, weights: Projection | Norm) -> None:
    for parameter, weight in ((module.weight, weights.weight), (module.bias, weights.bias)):
        if parameter is not None:
            parameter.data = weight


def _fuse(modules: list[Any], linears: list[Linear]) -> Linear:
    """Put linear layers of equal size one below the other; ``linears`` are what was taken of the modules."""
    own = all(linear.weight is module.weight for module, linear in zip(modules, linears, strict=True))
    join = _join if own else torch.cat
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Linear(join([linear.weight for linear in linears]), join(biases) if biases else None)


@torch.no_grad()
def _join(parameters: list[Tensor]) -> Tensor:
    """Return one tensor of which the parameters are views, one behind the other, making them so if they are not yet."""
    first = parameters[0]
    whole = torch.Size([sum(parameter.shape[0] for parameter in parameters), *first.shape[1:]])
    if (
        all(
            parameter.is_contiguous() and parameter.data_ptr() == first.data_ptr() + k * first.nbytes
            for k, parameter in enumerate(parameters)
        )
        and first.untyped_storage().nbytes() >= whole.numel() * first.element_size()
    ):
        return first.detach().as_strided(whole, first.stride())
    joined = torch.cat(parameters)
    for parameter, part in zip(parameters, joined.split([parameter.shape[0] for parameter in parameters]), strict=True):
        parameter.data = part
    return joined
