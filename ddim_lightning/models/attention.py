"""The attention processor: one kernel chosen by name, and rows that read the keys and values of other rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value, bias) -> output. Query, key, value: (rows, heads, tokens, channels); the bias is added to the
logits and broadcasts to (rows, heads, query tokens, key tokens), or is None."""


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Run PyTorch's scaled-dot-product attention, which picks a kernel itself."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)


def xformers_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Run xformers' memory-efficient attention; CUDA only."""
    from xformers.ops import memory_efficient_attention

    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if bias is not None:
        rows, tokens, heads, _ = query.shape
        bias = bias.expand(rows, heads, tokens, key.shape[1])  # a view: at full size a copy would take 100 GB
    output: Tensor = memory_efficient_attention(query, key, value, attn_bias=bias)
    return output.transpose(1, 2)


def resolve_attention(name: str, device: torch.device) -> AttentionFn:
    """Return an attention function by name.

    Args:
        name: ``auto`` (PyTorch's choice), ``sdpa``, ``xformers``, or the dotted path of a function of your own with the
            signature of `AttentionFn`.
        device: Where the model will run.

    Raises:
        ValueError: A backend that is unknown, not installed, or has no kernel for the device; says what is available.
    """
    if name in ("auto", "sdpa"):
        return sdpa_attention
    if name == "xformers":
        if device.type != "cuda" or not _xformers_runs():
            raise ValueError(
                f"attention: 'xformers' needs a CUDA device and an xformers build with kernels for this torch; on "
                f"{device.type} here only 'auto' and 'sdpa' are available"
            )
        return xformers_attention
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise ValueError(
            f"attention: must be 'auto', 'sdpa', 'xformers' or the dotted path of a function, got {name!r}"
        )
    try:
        function: AttentionFn = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"attention: {name!r} could not be imported ({error})") from error
    if not callable(function):
        raise ValueError(f"attention: must be the dotted path of a function, got {name!r}")
    return function


def _xformers_runs() -> bool:
    """Whether xformers can attend on this GPU; its operators are registered even where their kernels are missing."""
    try:
        probe = torch.zeros(1, 1, 8, 64, dtype=torch.bfloat16, device="cuda")
        xformers_attention(probe, probe, probe, None)
    except (ImportError, NotImplementedError, RuntimeError):
        return False
    return True


class ReadingAttnProcessor:
    """Attention over text and video tokens in which the first rows may also read rows behind them.

    Does what diffusers' `CogVideoXAttnProcessor2_0` does, except that the rotary table covers the whole sequence
    (identity for the text tokens), the kernel is chosen by name, and rows can read other rows.
    ``set_attention_backend`` has no effect on CogVideoX and ``enable_xformers_memory_efficient_attention`` breaks it;
    hence a processor of our own.

    Args:
        attend: The kernel.
    """

    def __init__(self, attend: AttentionFn) -> None:
        self.attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        reads: Tensor | None = None,
        log_strength: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            attn: The layer whose projections and norms are used.
            hidden_states: (rows, video tokens, width).
            encoder_hidden_states: (rows, text tokens, width).
            attention_mask: Not supported; CogVideoX attends without one.
            image_rotary_emb: cos and sin, (text + video tokens, channels) each.
            reads: (n,) int64: row ``k < n`` also attends to the keys and values of row ``reads[k]``.
            log_strength: Scalar added to the logits of keys that are read, ``None`` for 0.

        Returns:
            Video and text tokens, shaped as they came.
        """
        assert attention_mask is None
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = apply_rotary_emb(query, image_rotary_emb), apply_rotary_emb(key, image_rotary_emb)
        if reads is None:
            output = self.attend(query, key, value, None)
        else:
            output = self._attend_reading(query, key, value, reads, log_strength)
        output = attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2)))
        return output[:, num_text:], output[:, :num_text]

    def _attend_reading(
        self, query: Tensor, key: Tensor, value: Tensor, reads: Tensor, log_strength: Tensor | None
    ) -> Tensor:
        readers, tokens, bias = reads.shape[0], key.shape[2], None
        keys, values = (torch.cat([kv[:readers], kv[reads]], dim=2) for kv in (key, value))
        if log_strength is not None:
            bias = torch.cat([query.new_zeros(tokens), log_strength.to(query.dtype).expand(tokens)])
            bias = bias.expand(1, 1, tokens, 2 * tokens)
        reading = self.attend(query[:readers], keys, values, bias)
        if readers == query.shape[0]:
            return reading
        return torch.cat([reading, self.attend(query[readers:], key[readers:], value[readers:], None)])


def apply_attention(transformer: CogVideoXTransformer3DModel, attend: AttentionFn) -> None:
    """Give every block of a transformer our attention processor.

    Which layers and steps read is data of each call, never another processor: swapping processors would recompile.

    Args:
        transformer: Changed in place.
        attend: The kernel, from `resolve_attention`.
    """
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(ReadingAttnProcessor(attend))
