"""How a benchmark on the CPU loads a model: in float32, ready to attend."""

from __future__ import annotations

import torch

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inverters import UniInv
from ddim_lightning.engine import InversionEngine
from ddim_lightning.models.conditioning import PromptEncoder
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.schedulers import make_step_table


def load_engine(model: str, num_inference_steps: int) -> InversionEngine:
    """Load a model onto the CPU in float32, with the default inverter and editor.

    Args:
        model: ``tiny`` or a folder.
        num_inference_steps: Steps of its table.
    """
    device = torch.device("cpu")
    parts = load_components(model, device=device, dtype=torch.float32)
    assert parts.tokenizer is not None
    assert parts.text_encoder is not None
    prompts = PromptEncoder(parts.tokenizer, parts.text_encoder, parts.transformer.config.max_text_seq_length)
    table = make_step_table(parts.scheduler, num_inference_steps)
    return InversionEngine(parts, prompts, table, UniInv(), KVInjection())
