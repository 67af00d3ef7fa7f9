"""On a CUDA device: where the weights are, in what precision, and that the numbers are those of the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, EditRequest, KVInjection, UniInv
from ddim_lightning.diffusion.editors import FlowEdit
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import invert
from ddim_lightning.engine.export import export_network
from ddim_lightning.network.attention import Attention
from ddim_lightning.network.kernels import CUDA_KERNELS, MeasuredAttention, get_memory_file, resolve_attention
from tests.modules import make_module

pytestmark = pytest.mark.gpu


@pytest.fixture
def exact_float32(monkeypatch):
    """Convolutions round their inputs to TF32 by default, with 10 bits behind the point: 1e-3 by itself."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def predict(model, accelerator, **options):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (9, 3, 64, 64), generator=generator, dtype=torch.uint8)
    clip = Clip("clip", frames, prompts=("a red circle moving right",))
    module = make_module(str(model), **({"num_inference_steps": 5, "on_error": "raise"} | options))
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
        (result,) = trainer.predict(module, DataLoader([clip], batch_size=None))
    return module, result


def relative_error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_weights_are_on_the_device_in_bfloat16_and_stay_there(tiny_model):
    module, result = predict(tiny_model, "gpu")
    parts = module.components
    for part in (parts.transformer, parts.vae, module.engine.prompts.load()):
        assert {p.device.type for p in part.parameters()} == {"cuda"}
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    assert set(result.peak_gib) == set(result.seconds)
    assert result.edits[0].frames.device.type == "cpu" and result.clip.frames.device.type == "cpu"


@pytest.mark.usefixtures("exact_float32")
def test_float32_on_the_device_agrees_with_the_cpu(tiny_model):
    _, on_cpu = predict(tiny_model, "cpu", dtype="float32", save_trajectory=True)
    _, on_gpu = predict(tiny_model, "gpu", dtype="float32", save_trajectory=True)
    assert relative_error(on_gpu.trajectory["levels"], on_cpu.trajectory["levels"]) <= 1e-3
    assert relative_error(on_gpu.edits[0].latents, on_cpu.edits[0].latents) <= 1e-2


def test_bfloat16_comes_back(tiny_model):
    _, result = predict(tiny_model, "gpu", num_inference_steps=25)
    assert result.metrics["reconstruction"]["psnr_vs_vae"] > 25.0


@pytest.mark.usefixtures("exact_float32")
def test_compiled_blocks_agree_with_eager(tiny_model):
    _, eager = predict(tiny_model, "gpu", dtype="float32")
    _, compiled = predict(tiny_model, "gpu", dtype="float32", compile=True)
    assert relative_error(compiled.edits[0].latents, eager.edits[0].latents) <= 1e-2


def make_attention_inputs():
    generator = torch.Generator("cuda").manual_seed(0)
    # Counts that no kernel pads to, and turned as blocks make them.
    query = torch.randn(2, 131, 3, 64, generator=generator, device="cuda").bfloat16().transpose(1, 2)
    key, value = torch.randn(2, 2, 259, 3, 64, generator=generator, device="cuda").bfloat16().transpose(2, 3)
    return query, key, value


@pytest.mark.parametrize("name", ["cudnn", "flash", "flash3", "flash4", "efficient", "xformers"])
def test_kernels_by_name_agree_and_say_their_log_sum_exp_or_what_is_available(name):
    try:
        attention = resolve_attention(name, torch.device("cuda"))
    except ValueError as error:
        assert str(error).startswith(f"attention: {name!r} needs ")  # noqa: PT017
        return
    assert isinstance(attention, Attention) and attention.attend_lse is not None
    query, key, value = make_attention_inputs()
    logits = query.float() @ key.float().transpose(-1, -2) / 8.0
    theirs, their_lse = logits.softmax(-1) @ value.float(), logits.logsumexp(-1)
    with attention.active():
        assert relative_error(attention.attend(query, key, value, None).float(), theirs) <= 1e-2
        ours, lse = attention.attend_lse(query, key, value)
    assert relative_error(ours.float(), theirs) <= 1e-2
    assert relative_error(lse, their_lse) <= 1e-2


def test_the_automatic_choice_is_measured_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choice = resolve_attention("auto", torch.device("cuda"))
    assert isinstance(choice, MeasuredAttention)
    kernel = choice.choose((1, 3, 256, 64), torch.bfloat16, torch.device("cuda"))
    assert kernel.name in CUDA_KERNELS and get_memory_file().is_file()


@pytest.mark.usefixtures("exact_float32")
def test_artifacts_leave_the_transformer_on_the_host(tiny_model, tmp_path):
    settings = {"num_inference_steps": 2, "dtype": "float32"}
    latents = torch.randn(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()
    eager = make_module(str(tiny_model), **settings)
    eager.load(torch.device("cuda"))
    export_network(eager.engine, tmp_path, "torchscript", size=(3, 8, 16, 16), guidance_scale=2.0)
    module = make_module(str(tiny_model), exported=str(tmp_path), **settings)
    module.load(torch.device("cuda"))
    assert module.components.transformer.device.type == "cpu" and module.engine.device.type == "cuda"
    with torch.inference_mode():
        ours, theirs = (one.engine.invert(latents).levels for one in (module, eager))
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.parametrize("editor", [KVInjection(kv_scale=0.5), FlowEdit()])
@pytest.mark.parametrize("inverter", [DDIM(), UniInv(extra_evals=0.0)])
def test_no_step_makes_the_host_wait(inverter, editor, tiny_model):
    """Once everything has been on the device, a whole edit asks nothing of it until its end."""
    module = make_module(str(tiny_model), num_inference_steps=4, editor=editor)
    module.load(torch.device("cuda"))
    engine = module.engine
    latents = torch.randn(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()
    request = EditRequest("a red circle", guidance_scale=3.0)
    with torch.inference_mode():
        inversion = invert(engine.denoiser, latents, engine.schedule, inverter)
        engine.edit(inversion, request)
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.edit(invert(engine.denoiser, latents, engine.schedule, inverter), request)
        finally:
            torch.cuda.set_sync_debug_mode("default")
