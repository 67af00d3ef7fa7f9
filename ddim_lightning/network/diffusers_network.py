"""The rows of a pass are evaluated by diffusers' own blocks, with an attention processor that lets rows read others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention as AttentionModule
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ddim_lightning.network.attention import Attention, KeyValue, attend_reading
from ddim_lightning.network.held import Held, HeldRows, Storage, hold_layers
from ddim_lightning.network.kernels import MeasuredAttention
from ddim_lightning.network.over_model import OverModel
from ddim_lightning.network.source_mark import marked
from ddim_lightning.network.split_tokens import TokenSplit, check_whole_tokens
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
        self.held: Callable[[], KeyValue] | None = None
        """Returns keys and values that all rows attend to as well; ``None`` where none are held."""
        self.held_rows: tuple[int, ...] = ()
        """For each row the held row that it attends to."""
        self.lend: Callable[[Tensor, Tensor], None] | None = None
        """Called with the keys and values of the pass at hand, where they are to be held."""
        self.split: TokenSplit | None = None
        """Brings together what processes have of the tokens; ``None`` where this one has all."""

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
        if self.split is not None:  # from here on all tokens of some heads
            num_text = self.split.num_text
            query, key, value = map(self.split.to_heads, (query, key, value))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_rotate(x, num_text, image_rotary_emb) for x in (query, key))
        shape = (query.shape[0], query.shape[2], query.shape[1], query.shape[3])
        kernel = self.attention.choose(shape, query.dtype, query.device)
        if self.lend is not None:
            self.lend(key, value)
        held = None if self.held is None else self.held()
        attended = attend_reading(query, key, value, self.reads, self.kv_scale, kernel, held, self.held_rows)
        attended = attended if self.split is None else self.split.to_tokens(attended, attn.heads)
        output = attn.to_out[1](attn.to_out[0](attended.flatten(2)))
        num_text = encoder_hidden_states.shape[1]
        return output[:, num_text:], output[:, :num_text]


class DiffusersNetwork(OverModel):
    """A `DiffusersNetwork` evaluates the rows of a pass by `CogVideoXTransformer3DModel.forward` itself.

    Hooks, caches, adapters, compiled blocks, quantized and sharded weights act in it. It computes every row in every
    layer. The attention processors of the blocks are replaced by a `ReadingProcessor`; one that is set afterwards is
    left alone, and acts as long as no row reads another.

    Args:
        transformer: The model.
        attention: The kernel, or a choice of kernels.
        context: See `OverModel`.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        attention: Attention | MeasuredAttention,
        context: Storage = "device",
    ) -> None:
        super().__init__(transformer, attention, context)
        self._seen: dict[str, tuple[int, int]] = {}
        """For each form of a pass the last timestep, and how many passes there were at it."""
        for block in transformer.transformer_blocks:
            if type(block.attn1.processor) in (CogVideoXAttnProcessor2_0, ReadingProcessor):
                block.attn1.set_processor(ReadingProcessor(attention))

    def start_stage(self, timesteps: tuple[int, ...] = ()) -> None:
        """Let caches forget what they hold of the stage before; see also `check_whole_tokens`.

        Args:
            timesteps: Of no use here; see `Network.start_stage`.
        """
        check_whole_tokens(self.transformer)
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
        held: HeldRows | None = None,
        masks: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Evaluate the rows; see `Network`. All of them have all tokens.

        Raises:
            ValueError: Masks.
        """
        if any(mask is not None for mask in masks):
            raise ValueError("masks: must be none with forward='diffusers', whose blocks compute all tokens, got some")
        try:
            self._place_reads(reads, kv_scale, latents.device)
            self._place_held(held)
            form = f"{tuple(latents.shape)} {reads} {() if held is None else held.rows}"
            output = self._run(latents, prompt_embeds, timestep, form)
        finally:  # whoever calls the model next reads nothing
            self._place_reads((), None, latents.device)
            self._place_held(None)
        return output[:wanted]

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Evaluate rows and hold their keys and values; see `Network`.

        Raises:
            ValueError: A layer whose attention processor lends none, or that a cache has skipped.
        """
        processors = [block.attn1.processor for block in self.transformer.transformer_blocks]
        for k, processor in enumerate(processors):
            if not isinstance(processor, ReadingProcessor):
                raise ValueError(_name_processor(processor, k))
        layers: list[list[KeyValue]] = [[] for _ in processors]
        try:
            for processor, layer in zip(processors, layers, strict=True):
                processor.lend = lambda key, value, layer=layer: layer.append((key, value))
            with marked(self.transformer, range(latents.shape[0]), prompt_embeds.shape[1]):
                self._run(latents, prompt_embeds, timestep, f"{tuple(latents.shape)} held")
        finally:
            for processor in processors:
                processor.lend = None
        if not all(layers):
            k = layers.index([])
            raise ValueError(f"editor: holds the keys and values of every layer, which a cache skips in layer {k}")
        return hold_layers((layer.pop() for layer in layers), self.context)

    def _run(self, latents: Tensor, prompt_embeds: Tensor, timestep: int, form: str) -> Tensor:
        """Evaluate all rows; a cache carries over from one timestep to the next what is of the same form."""
        self.check_rows(latents)
        table = self.get_rotary(latents)
        text = prompt_embeds.shape[1]
        kernel = self.choose_attention(latents, prompt_embeds)  # the one that every processor chooses, too
        with kernel.active(), self.transformer.cache_context(self._name_pass(form, timestep)):
            output: Tensor = self.transformer(
                latents,
                prompt_embeds,
                torch.full(latents.shape[:1], timestep, device=latents.device),
                ofs=self.make_ofs(latents),
                image_rotary_emb=None if table is None else (table[0][text:], table[1][text:]),
                return_dict=False,
            )[0]
        return output

    def _name_pass(self, form: str, timestep: int) -> str:
        """Name what a cache carries over from one timestep to the next: the rows of one form, of one window."""
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
                raise ValueError(_name_processor(processor, k))

    def _place_held(self, held: HeldRows | None) -> None:
        """Tell the processors of all layers what they attend to of former passes."""
        for k, block in enumerate(self.transformer.transformer_blocks):
            processor = block.attn1.processor
            if isinstance(processor, ReadingProcessor):
                processor.held = None if held is None else partial(held.__getitem__, k)
                processor.held_rows = () if held is None else held.rows
            elif held is not None:
                raise ValueError(_name_processor(processor, k))


def _name_processor(processor: object, layer: int) -> str:
    return (
        "editor: reads keys and values of another row, which the attention processor "
        f"{type(processor).__name__} of transformer_blocks.{layer} cannot; use its own, or another editor"
    )


def _rotate(x: Tensor, num_text: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channels of the video tokens of (rows, tokens, heads, channels)."""
    video = apply_rotary_emb(x[:, num_text:], rotary, sequence_dim=1)
    return torch.cat([x[:, :num_text], video], dim=1)
