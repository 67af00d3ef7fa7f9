"""One pass through a CogVideoX transformer, with what each layer may read as data."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor


def run_network(
    transformer: CogVideoXTransformer3DModel,
    latents: Tensor,
    prompt_embeds: Tensor,
    timestep: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    reads: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """Evaluate the transformer as `CogVideoXTransformer3DModel.forward` does, giving each layer its own strength.

    Args:
        transformer: With our attention processor in every block.
        latents: (rows, f, c, h, w) in the transformer's dtype.
        prompt_embeds: (rows, tokens, width), same dtype.
        timestep: (rows,) int64.
        rotary: cos and sin over text and video tokens, or ``None`` for a model without rotary embeddings.
        reads: See `ReadingAttnProcessor`.
        strength: (layers,) on the latents' device, or ``None`` for full strength everywhere.

    Returns:
        (rows, f, c, h, w) velocities, same dtype.
    """
    _, frames, _, height, width = latents.shape
    num_text, patch = prompt_embeds.shape[1], transformer.config.patch_size
    time_embeds = transformer.time_embedding(transformer.time_proj(timestep).to(latents.dtype))
    tokens = transformer.embedding_dropout(transformer.patch_embed(prompt_embeds, latents))
    # Copies with the strides of what the blocks return: given views, the first block would be compiled for itself. A
    # view of a single row counts as contiguous whatever its strides, hence no `contiguous()`.
    text, video = (
        part.clone(memory_format=torch.contiguous_format) for part in (tokens[:, :num_text], tokens[:, num_text:])
    )
    log_strength = None if strength is None else strength.log()
    for layer, block in enumerate(transformer.transformer_blocks):
        kwargs = None
        if reads is not None:
            kwargs = {"reads": reads, "log_strength": None if log_strength is None else log_strength[layer]}
        arguments = (video, text, time_embeds, rotary, kwargs)
        if transformer.gradient_checkpointing and torch.is_grad_enabled():
            video, text = transformer._gradient_checkpointing_func(block, *arguments)
        else:
            video, text = block(*arguments)
    video = transformer.proj_out(transformer.norm_out(transformer.norm_final(video), temb=time_embeds))
    patches = video.unflatten(1, (frames, height // patch, width // patch)).unflatten(-1, (-1, patch, patch))
    output: Tensor = patches.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
    return output
