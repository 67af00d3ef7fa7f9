"""On a CUDA device: where the weights are, in what precision, and that the numbers are those of the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule
from ddim_lightning.models.attention import resolve_attention, sdpa_attention, xformers_attention

pytestmark = pytest.mark.gpu


def predict(model: Path, accelerator: str, **options: Any) -> tuple[DDIMInversionModule, Any]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (9, 3, 64, 64), generator=generator, dtype=torch.uint8)
    clip = Clip("clip", frames, prompts=("a red circle moving right",))
    module = DDIMInversionModule(str(model), **({"num_inference_steps": 5, "on_error": "raise"} | options))
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (result,) = trainer.predict(module, DataLoader([clip], batch_size=None))  # type: ignore[arg-type,misc]
    return module, result


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_weights_are_on_the_device_in_bfloat16_and_stay_there(tiny_model: Path) -> None:
    module, result = predict(tiny_model, "gpu")
    parts = module.components
    for part in (parts.transformer, parts.vae, parts.text_encoder):
        assert {p.device.type for p in part.parameters()} == {"cuda"}  # type: ignore[union-attr]
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert set(result.peak_gib) == set(result.seconds)
    assert result.edits[0].frames.device.type == "cpu" and result.clip.frames.device.type == "cpu"


def test_float32_on_the_device_agrees_with_the_cpu(tiny_model: Path) -> None:
    _, on_cpu = predict(tiny_model, "cpu", dtype="float32", save_trajectory=True)
    _, on_gpu = predict(tiny_model, "gpu", dtype="float32", save_trajectory=True)
    assert relative_error(on_gpu.trajectory["levels"], on_cpu.trajectory["levels"]) <= 1e-3
    assert relative_error(on_gpu.edits[0].latents, on_cpu.edits[0].latents) <= 1e-2


def test_bfloat16_comes_back(tiny_model: Path) -> None:
    _, result = predict(tiny_model, "gpu", num_inference_steps=25)
    assert result.metrics["reconstruction"]["psnr_vs_vae"] > 25.0


def test_compiled_blocks_agree_with_eager(tiny_model: Path) -> None:
    _, eager = predict(tiny_model, "gpu", dtype="float32")
    _, compiled = predict(tiny_model, "gpu", dtype="float32", compile=True)
    assert relative_error(compiled.edits[0].latents, eager.edits[0].latents) <= 1e-2


@pytest.mark.parametrize("with_bias", [False, True])
def test_xformers_by_name_runs_or_says_what_is_available(with_bias: bool) -> None:
    device = torch.device("cuda")
    try:
        attend = resolve_attention("xformers", device)
    except ValueError as error:
        assert "only 'auto' and 'sdpa' are available" in str(error)  # noqa: PT017
        return
    assert attend is xformers_attention
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(2, 3, 128, 64, generator=generator, device=device).bfloat16()
    key, value = torch.randn(2, 2, 3, 256, 64, generator=generator, device=device).bfloat16()
    bias = None
    if with_bias:  # a view of one row, as the processor makes it
        bias = torch.tensor([0.0, -1.0], device=device, dtype=torch.bfloat16).repeat_interleave(128)
        bias = bias.expand(1, 1, 128, 256)
    ours, theirs = attend(query, key, value, bias), sdpa_attention(query, key, value, bias)
    assert relative_error(ours.float(), theirs.float()) <= 1e-2
