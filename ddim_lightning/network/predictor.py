"""The rows of a training pass are evaluated by diffusers' own forward pass, each at its own level, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch import Tensor, nn

from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.diffusers_network import ReadingProcessor
from ddim_lightning.network.rotary import RotaryTables
from ddim_lightning.network.source_mark import marked


class TransformerPredictor:
    """A `TransformerPredictor` is a CogVideoX transformer as training objectives see it.

    It computes by the transformer's own blocks, with all that acts in them: adapters of peft, autocast, gradient
    checkpointing, hooks. Rows enter in the transformer's dtype and their velocities leave in that of the latents.

    Args:
        transformer: The model, of anybody's; nothing of it is changed for longer than a pass.
        encode_prompts: Prompts to embeddings, (rows, tokens, width).
        get_rotary: Where the rotary table comes from; ``None`` makes and keeps them here.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        encode_prompts: Callable[[Sequence[str]], Tensor],
        get_rotary: Callable[[Tensor], tuple[Tensor, Tensor] | None] | None = None,
    ) -> None:
        self.transformer = transformer
        self.encode_prompts = encode_prompts
        self.get_rotary = get_rotary or RotaryTables(transformer).get

    def __call__(
        self, latents: Tensor, prompts: Sequence[str], timesteps: Tensor, *, reads: tuple[int, ...] = ()
    ) -> Tensor:
        """Predict velocities; see `diffusion.objectives.Predict`.

        Raises:
            ValueError: Rows that read others through an attention processor that cannot.
        """
        embeds = self.encode_prompts(prompts).to(latents.device, self.transformer.dtype)
        table, text = self.get_rotary(latents), embeds.shape[1]
        with _reading(self.transformer, reads), marked(self.transformer, reads, text):
            velocity: Tensor = self.transformer(
                latents.to(self.transformer.dtype),
                embeds,
                timesteps.to(latents.device),
                image_rotary_emb=None if table is None else (table[0][text:], table[1][text:]),
                return_dict=False,
            )[0]
        return velocity.to(latents.dtype)


@contextmanager
def _reading(transformer: CogVideoXTransformer3DModel, reads: tuple[int, ...]) -> Iterator[None]:
    """Let the first rows of the pass read others, in the forward pass and where checkpointing repeats it."""
    if not reads:
        yield
        return
    checkpoint = transformer._gradient_checkpointing_func if transformer.gradient_checkpointing else None

    def run_again(block: nn.Module, *arguments: Any) -> Any:
        def run(*again: Any) -> Any:
            with _placed(block, reads=reads):
                return block(*again)

        assert checkpoint is not None
        return checkpoint(run, *arguments)

    with _placed(*transformer.transformer_blocks, reads=reads):
        if checkpoint is not None:
            transformer._gradient_checkpointing_func = run_again
        try:
            yield
        finally:
            if checkpoint is not None:
                transformer._gradient_checkpointing_func = checkpoint


@contextmanager
def _placed(*blocks: Any, reads: tuple[int, ...]) -> Iterator[None]:
    """Have processors that read in blocks, and afterwards those that were there."""
    found = [block.attn1.processor for block in blocks]
    for processor in found:
        if type(processor) not in (CogVideoXAttnProcessor2_0, ReadingProcessor):
            raise ValueError(
                "objective: reads keys and values of another row, which the attention processor "
                f"{type(processor).__name__} cannot; use the transformer's own, or another objective"
            )
    reading = ReadingProcessor(Attention("sdpa", sdpa_attention))
    reading.reads = reads
    try:
        for block in blocks:
            block.attn1.processor = reading
        yield
    finally:
        for block, processor in zip(blocks, found, strict=True):
            block.attn1.processor = processor
