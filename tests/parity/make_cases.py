"""Make parity cases by running the reference script itself on random weights.

    python tests/parity/make_cases.py path/to/ddim_inversion.py OUTPUT

The script is zai-org/CogVideo's ``inference/ddim_inversion.py``; its ``sample`` and its attention processors are called
as they are, on diffusers' own classes in float32. Nothing of this package computes anything here: it only lends a
random tokenizer and text encoder.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel, DDIMInverseScheduler
from safetensors.torch import save_file

from tests.random_tiny import write_random_tiny

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 1.0,
}
CASES: dict[str, dict[str, Any]] = {
    "ddim-10-steps-dynamic": {"seed": 1, "steps": 10, "guidance": 6.0, "dynamic": True, "start": "random"},
    "ddim-20-steps-inverted-start": {"seed": 2, "steps": 20, "guidance": 6.0, "dynamic": False, "start": "inverted"},
}


def load_script(path: Path) -> Any:
    sys.modules["decord"] = types.ModuleType("decord")  # its video reader, which no case needs
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@torch.no_grad()
def make_case(script: Any, pipeline: CogVideoXPipeline, spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(spec["seed"])
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=pipeline.text_encoder.config.d_model,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=226,  # the script pads to it
        use_rotary_positional_embeddings=True,
    ).eval()
    for parameter in transformer.parameters():
        parameter.add_(0.15 * torch.randn_like(parameter))
    pipeline.transformer, pipeline.scheduler = transformer, CogVideoXDDIMScheduler(**SCHEDULER)
    latents, noise = torch.randn(1, 2, 4, 8, 12), torch.randn(1, 2, 4, 8, 12)
    settings = {"num_inference_steps": spec["steps"]}
    inverse = DDIMInverseScheduler(**pipeline.scheduler.config)
    trajectory = script.sample(pipeline, latents, inverse, prompt="", guidance_scale=spec["guidance"], **settings)
    plain = script.sample(pipeline, trajectory[-1], pipeline.scheduler, prompt="", guidance_scale=1.0, **settings)
    with script.OverrideAttnProcessors(transformer):
        injected = script.sample(
            pipeline,
            trajectory[-1] if spec["start"] == "inverted" else noise,
            pipeline.scheduler,
            prompt="a red circle",
            guidance_scale=spec["guidance"],
            use_dynamic_cfg=spec["dynamic"],
            reference_latents=reversed(trajectory),
            **settings,
        )
    empty, prompt = (pipeline.encode_prompt(text, None, False)[0] for text in ("", "a red circle"))
    return {f"transformer.{name}": value for name, value in transformer.state_dict().items()} | {
        "latents": latents,
        "noise": noise,
        "empty_embeds": empty,
        "prompt_embeds": prompt,
        "inverse_trajectory": trajectory,
        "plain_reconstruction": plain[-1],
        "injected_reconstruction": injected[-1],
        "injected_trajectory": injected,
    }


def main(script_path: str, output: str) -> None:
    script = load_script(Path(script_path))
    with tempfile.TemporaryDirectory() as folder:
        pipeline = CogVideoXPipeline.from_pretrained(write_random_tiny(Path(folder) / "tiny"))
    for name, spec in CASES.items():
        tensors = {key: value.contiguous().clone() for key, value in make_case(script, pipeline, spec).items()}
        entries = {"spec": spec, "scheduler": SCHEDULER, "transformer_config": dict(pipeline.transformer.config)}
        metadata = {key: json.dumps(value) for key, value in entries.items()}
        save_file(tensors, Path(output) / f"{name}.safetensors", metadata=metadata)


if __name__ == "__main__":
    main(*sys.argv[1:])
