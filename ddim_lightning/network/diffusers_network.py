"""The rows of a pass are evaluated by diffusers' own blocks, with an attention processor that lets rows read others."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention as AttentionModule
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ddim_lightning.network.attention import Attention, attend_reading
from ddim_lightning.network.kernels import MeasuredAttention
from ddim_lightning.network.over_model import OverModel
from ddim_lightning.types import KVScale


class ReadingProcessor:
    """A `ReadingProcessor` is diffusers' attention of CogVideoX, in which the first rows can also attend to others.

    Args:
        attention: The kernel, or a choice of kernels.
    """

    def __init__(self, attention: Attention | MeasuredAttention) -> None:
        self.attention = attention
        self.reads: tuple[int, ...] = ()
        """For each of the first rows the row it reads in the pass at hand."""
        self.kv_scale: Tensor | None = None
        """How much they attend to what they read; ``None`` is 1."""

    def __call__(
        self,
        attn: AttentionModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend, with the arguments and results of `CogVideoXAttnProcessor2_0`."""
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_rotate(x, num_text, image_rotary_emb) for x in (query, key))
        shape = (query.shape[0], query.shape[2], query.shape[1], query.shape[3])
        kernel = self.attention.choose(shape, query.dtype, query.device)
        attended = attend_reading(query, key, value, self.reads, self.kv_scale, kernel).flatten(2)
        output = attn.to_out[1](attn.to_out[0](attended))
        return output[:, num_text:], output[:, :num_text]


class DiffusersNetwork(OverModel):
    """A `DiffusersNetwork` evaluates the rows of a pass by `CogVideoXTransformer3DModel.forward` itself.

    Hooks, caches, adapters, compiled blocks, quantized and sharded weights act in it. It computes every row in every
    layer. The attention processors of the blocks are replaced by a `ReadingProcessor`; one that is set afterwards is
    left alone, and acts as long as no row reads another.

    Args:
        transformer: The model.
        attention: The kernel, or a choice of kernels.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, attention: Attention | MeasuredAttention) -> None:
        super().__init__(transformer, attention)
        self._seen: dict[str, tuple[int, int]] = {}
        """For each form of a pass the last timestep, and how many passes there were at it."""
        for block in transformer.transformer_blocks:
            if type(block.attn1.processor) in (CogVideoXAttnProcessor2_0, ReadingProcessor):
                block.attn1.set_processor(ReadingProcessor(attention))

    def start_stage(self) -> None:
        """Let caches forget what they hold of the stage before."""
        self._seen.clear()
        self.transformer._reset_stateful_cache()

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        timestep: int,
        *,
        wanted: int | None = None,
        reads: tuple[int, ...] = (),
        kv_scale: KVScale | None = None,
    ) -> Tensor:
        """Evaluate the rows; see `Network`."""
        self.check_rows(latents)
        table = self.get_rotary(latents)
        text = prompt_embeds.shape[1]
        try:
            self._place_reads(reads, kv_scale, latents.device)
            with self.transformer.cache_context(self._name_pass(latents, reads, timestep)):
                output: Tensor = self.transformer(
                    latents,
                    prompt_embeds,
                    torch.full(latents.shape[:1], timestep, device=latents.device),
                    ofs=self.make_ofs(latents),
                    image_rotary_emb=None if table is None else (table[0][text:], table[1][text:]),
                    return_dict=False,
                )[0]
        finally:
            self._place_reads((), None, latents.device)  # whoever calls the model next reads nothing
        return output[:wanted]

    def _name_pass(self, latents: Tensor, reads: tuple[int, ...], timestep: int) -> str:
        """Name what a cache carries over from one timestep to the next: the rows of one form, of one window."""
        form = f"{tuple(latents.shape)} {reads}"
        before, count = self._seen.get(form, (timestep, 0))
        count = count if before == timestep else 0
        self._seen[form] = (timestep, count + 1)
        return f"{form} {count}"

    def _place_reads(self, reads: tuple[int, ...], kv_scale: KVScale | None, device: torch.device) -> None:
        """Tell the processors of all layers who reads whom."""
        for k, block in enumerate(self.transformer.transformer_blocks):
            processor = block.attn1.processor
            scale = 1.0 if kv_scale is None else float(kv_scale[k])
            if isinstance(processor, ReadingProcessor):
                processor.reads = reads if scale > 0 else ()
                processor.kv_scale = None if scale == 1.0 else torch.full((), scale, device=device)
            elif reads and scale > 0:
                raise ValueError(
                    "editor: reads keys and values of another row, which the attention processor "
                    f"{type(processor).__name__} of transformer_blocks.{k} cannot; use its own, or another editor"
                )


def _rotate(x: Tensor, num_text: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channels of the video tokens of (rows, tokens, heads, channels)."""
    video = apply_rotary_emb(x[:, num_text:], rotary, sequence_dim=1)
    return torch.cat([x[:, :num_text], video], dim=1)
