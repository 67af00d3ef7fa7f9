"""A script with the interface of the reference's ``ddim_inversion.py``, written again, for the benchmark's own test.

The reference itself is not part of this project; the benchmark takes it from a path.
"""

from __future__ import annotations

from typing import Any

import decord  # noqa: F401 - the reference imports it, and the benchmark has to do without
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn.functional import scaled_dot_product_attention


class CogVideoXAttnProcessor2_0ForDDIMInversion:
    """The first half of the rows also reads the second half."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key = (
            torch.cat([x[:, :, :num_text], apply_rotary_emb(x[:, :, num_text:], image_rotary_emb)], dim=2)
            for x in (query, key)
        )
        readers = len(query) // 2
        keys, values = (torch.cat([x[:readers], x[readers:]], dim=2) for x in (key, value))
        output = torch.cat(
            [
                scaled_dot_product_attention(query[:readers], keys, values),
                scaled_dot_product_attention(query[readers:], key[readers:], value[readers:]),
            ]
        )
        output = attn.to_out[0](output.transpose(1, 2).flatten(2))
        return output[:, num_text:], output[:, :num_text]


class OverrideAttnProcessors:
    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __enter__(self) -> None:
        self.before = self.transformer.attn_processors
        self.transformer.set_attn_processor(CogVideoXAttnProcessor2_0ForDDIMInversion())

    def __exit__(self, *_: object) -> None:
        self.transformer.set_attn_processor(dict(self.before))


def sample(
    pipeline, latents, scheduler, prompt, num_inference_steps, guidance_scale, generator, reference_latents=None
):
    positive, negative = pipeline.encode_prompt(prompt, None, True, device=latents.device)
    copies = 1 if reference_latents is None else 2
    embeds = torch.cat([negative, positive] * copies)
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    _, frames, _, height, width = latents.shape
    factor = pipeline.vae_scale_factor_spatial
    rotary = pipeline._prepare_rotary_positional_embeddings(height * factor, width * factor, frames, latents.device)
    trajectory = []
    for i, timestep in enumerate(scheduler.timesteps):
        rows = torch.cat([latents] * 2)
        if reference_latents is not None:
            rows = torch.cat([rows, reference_latents[i], reference_latents[i]])
        velocity = pipeline.transformer(
            rows, embeds, timestep.expand(len(rows)), image_rotary_emb=rotary, return_dict=False
        )[0]
        negative, positive = velocity[:2].chunk(2)
        guided = negative + guidance_scale * (positive - negative)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        trajectory.append(latents)
    return torch.stack(trajectory)
