"""Edits in 8 bits: what changes, what must not, and what a result says about it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule, EditRequest, KVInjection
from ddim_lightning.cli.main import main, make_parser
from ddim_lightning.engine.trajectory import make_fingerprint
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.network.quantized import Int8Linear
from ddim_lightning.network.weights import Linear
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}

INT8_EDIT = {"float32": 0.02, "bfloat16": 0.06}
"""Largest relative L2 distance of an edit in int8 from the exact one, on the random tiny model; about twice what was
found. In bfloat16 most of it is another rounding of the same numbers."""


def make_clip(**fields: object) -> Clip:
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    values = {"prompts": ("a red circle", "a blue cross"), "source_prompt": "a square"} | fields
    return Clip("clip", frames, **values)  # type: ignore[arg-type]


def make_module(model: Path, **options: Any) -> DDIMInversionModule:
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "on_error": "raise", "save_trajectory": True}
    return DDIMInversionModule(str(model), **settings | options)


def predict(module: DDIMInversionModule, clip: Clip | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data: Any = DataLoader([clip or make_clip()], batch_size=None)  # type: ignore[arg-type]
        return Trainer(**QUIET).predict(module, data)[0]  # type: ignore[index]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def equal_inversions(one: Any, other: Any) -> bool:
    names = set(one.trajectory) | set(other.trajectory)
    same = all(torch.equal(one.trajectory[name], other.trajectory[name]) for name in names)
    return same and torch.equal(one.reconstruction, other.reconstruction)


@pytest.mark.parametrize("batch_prompts", [False, True])
@pytest.mark.parametrize("editor", [None, KVInjection()])
def test_only_the_edits_change_and_by_little(tiny_model: Path, editor: Any, batch_prompts: bool) -> None:
    exact = predict(make_module(tiny_model, editor=editor, batch_prompts=batch_prompts))
    module = make_module(tiny_model, editor=editor, batch_prompts=batch_prompts, precision="int8")
    ours = predict(module)
    assert equal_inversions(ours, exact)
    assert ours.metrics == exact.metrics and ours.fingerprint == exact.fingerprint
    for edited, theirs in zip(ours.edits, exact.edits, strict=True):
        assert 0.0 < relative_error(edited.latents, theirs.latents) <= INT8_EDIT["float32"]
    assert ours.calls == exact.calls and ours.calls["edit"] > 0
    assert (ours.settings["precision"], ours.settings["quantize_inversion"]) == ("int8", False)
    assert exact.settings["precision"] == "none" and ours.warnings == exact.warnings
    # Once the edits are made, the engine is as it was.
    assert module.engine.denoiser.network is module.engine.network
    assert module.engine.quantized is not None
    assert all(type(block.qkv) is Int8Linear for block in module.engine.quantized.blocks)
    assert all(type(block.qkv) is Linear for block in module.engine.network.blocks)


def test_the_inversion_too_on_request(tiny_model: Path) -> None:
    exact, edits = predict(make_module(tiny_model)), predict(make_module(tiny_model, precision="int8"))
    module = make_module(tiny_model, precision="int8", quantize_inversion=True)
    ours = predict(module)
    assert not equal_inversions(ours, exact)
    assert 0.0 < relative_error(ours.trajectory["levels"], exact.trajectory["levels"]) <= INT8_EDIT["float32"]
    assert ours.calls == exact.calls and ours.settings["quantize_inversion"] is True
    assert not torch.equal(ours.edits[0].latents, exact.edits[0].latents)
    # A trajectory in 8 bits is not taken for an exact one, nor the other way round.
    frames = make_clip().frames
    assert make_fingerprint(module.engine, frames, "")["model"] != edits.fingerprint["model"]


def test_the_exact_network_comes_back_after_an_edit_that_fails(tiny_model: Path) -> None:
    module = make_module(tiny_model, precision="int8")
    module.load(torch.device("cpu"))
    engine = module.engine

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    inversion = engine.invert(torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError, match="stop"):
        engine.edit(inversion, EditRequest("a red circle", source_prompt="a square"), callback=fail)
    assert engine.denoiser.network is engine.network


def test_compiled_edits_agree_with_eager_ones(tiny_model: Path) -> None:
    torch._dynamo.reset()
    settings = {"precision": "int8", "num_inference_steps": 2, "reconstruct": False}
    eager = predict(make_module(tiny_model, **settings))
    compiled = predict(make_module(tiny_model, compile=True, **settings))
    for ours, theirs in zip(compiled.edits, eager.edits, strict=True):
        assert relative_error(ours.latents, theirs.latents) <= 1e-4


def test_in_bfloat16(tiny_model: Path) -> None:
    exact = predict(make_module(tiny_model, dtype="bfloat16"))
    ours = predict(make_module(tiny_model, dtype="bfloat16", precision="int8"))
    assert equal_inversions(ours, exact)
    assert 0.0 < relative_error(ours.edits[0].latents, exact.edits[0].latents) <= INT8_EDIT["bfloat16"]


def test_the_bundled_model_loses_next_to_nothing() -> None:
    (clip,) = ShapesDataModule(predict_clips=1, edits=("color",)).predict_dataloader()
    exact, ours = (
        predict(DDIMInversionModule("tiny", num_inference_steps=10, reconstruct=False, precision=precision), clip)
        for precision in ("none", "int8")
    )
    edited, theirs = ours.edits[0], exact.edits[0]
    assert 0.0 < relative_error(edited.latents, theirs.latents) <= 0.01
    assert psnr(edited.frames / 255, theirs.frames / 255) >= 50.0


def test_a_clip_without_prompts_is_told_so(tiny_model: Path) -> None:
    clip = make_clip(prompts=())
    said = "precision: has no effect on a clip without prompts, unless with quantize_inversion"
    assert said in predict(make_module(tiny_model, precision="int8"), clip).warnings
    assert said not in predict(make_module(tiny_model, precision="int8", quantize_inversion=True), clip).warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision: must be one of none, int8, fp8, got 'int4'"),
        ({"precision": "int8", "runtime": "x"}, "precision: .* must be none with runtime, got 'int8'"),
        ({"precision": "fp8", "training": {}}, "precision: .* must be none with training, got 'fp8'"),
        ({"quantize_inversion": True}, "quantize_inversion: must be false with a precision of none, got True"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDIMInversionModule("tiny", **options)


def test_fp8_is_refused_on_a_cpu_before_anything_is_loaded(tmp_path: Path) -> None:
    module = DDIMInversionModule(str(tmp_path / "no model"), precision="fp8")
    with pytest.raises(ValueError, match=r"precision: fp8 needs a CUDA device of .* 8\.9 or more, got cpu"):
        module.load(torch.device("cpu"))


@pytest.mark.gpu
def test_fp8_edits_on_the_device(tiny_model: Path) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "reconstruct": False}
    modules = [make_module(tiny_model, precision=precision, **options) for precision in ("none", "fp8")]
    for module in modules:
        module.load(torch.device("cuda"))
    latents = torch.randn(1, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0)).cuda()
    request = EditRequest("a red circle", source_prompt="a square", guidance_scale=3.0)
    with torch.inference_mode():
        inversions = [module.engine.invert(latents) for module in modules]
        exact, ours = (module.engine.edit(inversions[0], request) for module in modules)
    assert torch.equal(inversions[0].levels, inversions[1].levels)
    assert 0.0 < relative_error(ours, exact) <= 0.2


def test_the_command_line_hands_it_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", "clip.mp4", "--prompt", "a red circle", "--output", str(tmp_path)]
    assert make_parser().parse_args(words).precision == "none"
    assert make_parser().parse_args([*words, "--precision", "int8"]).precision == "int8"
    assert main([*words, "--precision", "int8", "--runtime", "x"]) == 1
    assert "must be none with runtime, got 'int8'" in capsys.readouterr().err
