"""LoRA files of diffusers and of peft give the velocity that plain diffusers gives with them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ddim_lightning import DDIMInversionModule, Runtime, Schedule
from ddim_lightning.engine.config import Lora
from ddim_lightning.models.lora import merge_loras
from tests.network.test_adapters import TARGETS, write_lora
from tests.network.test_network import VARIANTS, make_rows, make_variant, relative_error, run_diffusers

FILE = "pytorch_lora_weights.safetensors"


def run_with_diffusers(files):
    """Load files as a user of plain diffusers does, and keep them active."""
    transformer = make_variant(**VARIANTS["5B"])
    names = [f"a{k}" for k in range(len(files))]
    for name, (folder, _) in zip(names, files, strict=True):
        state, metadata = CogVideoXPipeline.lora_state_dict(str(folder), weight_name=FILE, return_lora_metadata=True)
        CogVideoXPipeline.load_lora_into_transformer(state, transformer, adapter_name=name, metadata=metadata)
    transformer.set_adapters(names, [scale for _, scale in files])
    return run_diffusers(transformer, *make_rows(2), 500)


@pytest.fixture
def folders(tmp_path):
    plain = make_variant(**VARIANTS["5B"])
    for k, targets in enumerate(("attention", "norms")):
        write_lora(plain, TARGETS[targets], tmp_path / str(k), seed=k)
    return tmp_path / "0", tmp_path / "1"


@pytest.mark.parametrize("scales", [(1.0,), (0.4,), (0.8, -0.5)])
def test_files_of_diffusers(folders, scales):
    files = list(zip(folders, scales, strict=False))
    transformer = make_variant(**VARIANTS["5B"])
    plain = run_diffusers(transformer, *make_rows(2), 500)
    merge_loras(transformer, [(str(folder), scale) for folder, scale in files])
    ours = run_diffusers(transformer, *make_rows(2), 500)
    assert relative_error(ours, run_with_diffusers(files)) <= 1e-5
    assert relative_error(ours, plain) > 1e-3
    assert not any("lora" in name for name, _ in transformer.named_parameters())
    assert not any(weight.requires_grad for weight in transformer.parameters())


def test_files_of_peft(tmp_path):
    """Their alpha, which scales, stands in a file beside the weights."""
    transformer = make_variant(**VARIANTS["5B"])
    config = LoraConfig(r=3, lora_alpha=12, target_modules=TARGETS["attention"], init_lora_weights=False)
    theirs = get_peft_model(copy.deepcopy(transformer), config)
    theirs.save_pretrained(tmp_path)
    merge_loras(transformer, [(str(tmp_path), 1.0)])
    wanted = run_diffusers(theirs.base_model.model, *make_rows(2), 500)
    assert relative_error(run_diffusers(transformer, *make_rows(2), 500), wanted) <= 1e-5
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"^lora: .*adapter_config\.json beside it"):
        merge_loras(make_variant(**VARIANTS["5B"]), [(str(tmp_path / "adapter_model.safetensors"), 1.0)])


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "must be a safetensors file"),
        (lambda file: save_file({}, file), "must hold weights, got none"),
        (lambda file: save_file({"transformer.proj_out.weight": torch.zeros(2, 2)}, file), "plain LoRA .*proj_out"),
        (
            lambda file: save_file(load_file(file) | {"transformer.proj_out.lora_magnitude": torch.zeros(2)}, file),
            "must hold plain LoRA .* got 'transformer.proj_out.lora_magnitude'",
        ),
        (
            lambda file: save_file({k.replace("to_k", "to_kk"): v for k, v in load_file(file).items()}, file),
            "which has no layer for 'transformer.transformer_blocks.0.attn1.to_kk",
        ),
        (
            lambda file: save_file({k: v[..., :2].contiguous() for k, v in load_file(file).items()}, file),
            "must be of this transformer",
        ),
    ],
)
def test_a_file_that_is_no_lora_of_the_model_is_refused(folders, break_it, said):
    break_it(folders[0] / FILE)
    with pytest.raises(ValueError, match=f"^lora: .*{FILE}.*{said}"):
        merge_loras(make_variant(**VARIANTS["5B"]), [(str(folders[0]), 1.0)])


def test_a_file_that_does_not_fit_leaves_nothing_of_the_others(folders):
    transformer = make_variant(**VARIANTS["5B"])
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    file = folders[1] / FILE
    save_file({name: weight[..., :2].contiguous() for name, weight in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"^lora: .*must be of this transformer"):
        merge_loras(transformer, [(str(folder), 1.0) for folder in folders])
    after = transformer.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_adapters_that_are_there_are_kept(folders):
    transformer = make_variant(**VARIANTS["5B"])
    state = CogVideoXPipeline.lora_state_dict(str(folders[0]), weight_name=FILE)
    CogVideoXPipeline.load_lora_into_transformer(state, transformer, adapter_name="style")
    with pytest.raises(ValueError, match=r"^lora: .*style.* got .*1'"):
        merge_loras(transformer, [(str(folders[1]), 1.0)])
    assert list(transformer.peft_config) == ["style"]


def test_weights_with_lora_take_no_other(folders):
    """A second module of one pipeline would have the file twice."""
    transformer = make_variant(**VARIANTS["5B"])
    merge_loras(transformer, [(str(folders[0]), 0.5)])
    before = run_diffusers(transformer, *make_rows(2), 500)
    for again in (transformer, copy.deepcopy(transformer)):
        with pytest.raises(ValueError, match=rf"^lora: .*{folders[0]} in its weights already.*got {folders[1]}"):
            merge_loras(again, [(str(folders[1]), 1.0)])
        assert torch.equal(run_diffusers(again, *make_rows(2), 500), before)


def test_a_module_takes_files_with_their_scales(tiny_model, tmp_path):
    folder = tmp_path / "lora"
    pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
    write_lora(pipeline.transformer, TARGETS["attention"], folder)
    options = {"schedule": Schedule(num_inference_steps=2)}
    latents = torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(0))

    def invert(lora, **more):
        module = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu", lora=lora, **options, **more)
        return module.engine.invert(latents).levels

    plain = invert([])
    found = [invert(lora) for lora in ([f"{folder}:0.5"], [{"file": str(folder), "scale": 0.5}], f"{folder}:0.5")]
    assert all(torch.equal(one, found[0]) for one in found)
    assert relative_error(found[0], plain) > 1e-3
    assert torch.equal(invert([str(folder)], runtime=Runtime(offload="blocks")), invert([str(folder)]))
    pipeline.load_lora_weights(str(folder))
    pipeline.transformer.set_adapters(["default_0"], [0.5])
    theirs = DDIMInversionModule.from_pipeline(pipeline, **options)
    theirs.load("cpu")
    assert relative_error(theirs.engine.invert(latents).levels, found[0]) <= 1e-5


def test_files_are_looked_for_before_weights_are_loaded(tiny_model):
    module = DDIMInversionModule(str(tiny_model), lora="gone.safetensors:0.5")
    with pytest.raises(FileNotFoundError, match=r"^lora: must be a safetensors file .*'gone\.safetensors'"):
        module.load("cpu")
    assert json.loads(json.dumps(dict(module.hparams)))["lora"] == [{"file": "gone.safetensors", "scale": 0.5}]


@pytest.mark.parametrize(
    ("spec", "file", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("a:0.8", "a", 0.8), ("C:\\a", "C:\\a", 1.0), ("a:-1e-1", "a", -0.1)],
)
def test_a_scale_follows_a_colon(spec, file, scale):
    assert Lora.make(spec) == Lora(file, scale)


@pytest.mark.parametrize("spec", [{"scale": 1.0}, {"file": "a", "weight": 2}, 3, {"file": "a", "scale": float("nan")}])
def test_other_words_are_refused(spec):
    with pytest.raises(ValueError, match=r"^lora: "):
        Lora.make(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: dict(list(state.items())[1:]), "must hold lora_A and lora_B of each layer"),
        (lambda state: {key: torch.cat([one, one], dim=1) for key, one in state.items()}, "whose .* has 32, got"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(change, message, folders):
    state = load_file(folders[0] / FILE)
    save_file({key: one.contiguous() for key, one in change(state).items()}, folders[0] / FILE)
    with pytest.raises(ValueError, match=rf"^lora: .*{message}") as caught:
        merge_loras(make_variant(**VARIANTS["5B"]), [(str(folders[0]), 1.0)])
    assert len(str(caught.value)) < 400
