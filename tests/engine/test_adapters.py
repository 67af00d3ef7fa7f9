"""An adapter that was trained for an editor acts in edits alone, and brings the settings it is used with."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
import yaml
from diffusers import CogVideoXPipeline
from lightning import Trainer
from torch.utils.data import DataLoader

from ddim_lightning import Clip, DDIMInversionModule, EditRequest, KVInjection, Runtime, Schedule, Training
from ddim_lightning.cli.main import main
from ddim_lightning.diffusion.editors import Denoise, FlowEdit
from ddim_lightning.engine.export import export_network
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.models.adapter_card import get_card_path
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.quantized import QuantizedNetwork
from ddim_lightning.network.source_mark import find_mark
from tests.adapters import KV_INJECTION, write_random_adapter
from tests.modules import make_module
from tests.network.test_adapters import TARGETS, write_lora
from tests.network.test_network import relative_error, run_diffusers

STEPS = Schedule(num_inference_steps=3)
EDITOR = KVInjection(kv_scale=0.5)
REQUEST = EditRequest("a red circle", source_prompt="a blue square", guidance_scale=1.5)
LATENTS = torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    module = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu")
    return write_random_adapter(tmp_path_factory.mktemp("adapter") / "edit.safetensors", module.transformer, mark=True)


def load(model, **options):
    return DDIMInversionModule.from_pretrained(str(model), device="cpu", **{"schedule": STEPS} | options)


def run(module):
    """Invert, reconstruct and edit, and invert once more behind the edit."""
    engine = module.engine
    inversion = engine.invert(LATENTS)
    made = inversion.levels, engine.reconstruct(inversion), engine.edit(inversion, REQUEST)
    assert torch.equal(engine.invert(LATENTS).levels, inversion.levels)
    return made


@pytest.fixture(scope="module")
def without(tiny_model):
    return run(load(tiny_model, editor=EDITOR))


@pytest.fixture(scope="module")
def edited(tiny_model, adapter):
    """The edit by weights that hold the adapter for good; of the trajectory of those without it."""
    module = load(tiny_model, editor=EDITOR)
    inversion = module.engine.invert(LATENTS)
    pipeline = module.to_pipeline()
    pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    pipeline.transformer.fuse_lora()
    pipeline.transformer.unload_lora()
    return module.engine.edit(inversion, REQUEST)


@pytest.mark.parametrize("offload", ["none", "model", "blocks"])
def test_it_acts_in_edits_alone(offload, tiny_model, adapter, without, edited):
    module = load(tiny_model, lora=str(adapter), runtime=Runtime(offload=offload))
    levels, reconstruction, edit = run(module)
    assert torch.equal(levels, without[0]) and torch.equal(reconstruction, without[1])
    assert relative_error(edit, edited) <= 1e-4
    assert relative_error(edit, without[2]) > 1e-2
    assert not any(weight.requires_grad for weight in module.transformer.parameters())


@pytest.mark.slow
def test_it_acts_in_compiled_blocks(tiny_model, adapter, without, edited):
    levels, _, edit = run(load(tiny_model, lora=str(adapter), runtime=Runtime(compile=True)))
    assert relative_error(levels, without[0]) <= 1e-4
    assert relative_error(edit, edited) <= 1e-4


def test_it_acts_in_eight_bits(tiny_model, adapter, edited):
    """As with ``precision="fp8"``, whose products a CPU can make, too."""
    engine = load(tiny_model, lora=str(adapter)).engine
    inversion = engine.invert(LATENTS)
    quantized = CogVideoXDenoiser(QuantizedNetwork(engine.network), engine.prompts)
    engine = replace(engine, edit_denoiser=quantized)
    assert torch.equal(engine.invert(LATENTS).levels, inversion.levels)
    assert relative_error(engine.edit(inversion, REQUEST), edited) < 0.2
    assert torch.equal(engine.invert(LATENTS).levels, inversion.levels)


def test_it_acts_in_edits_alone_by_diffusers_forward_pass(tiny_model, adapter, edited):
    runtime = Runtime(forward="diffusers")
    plain = run(load(tiny_model, editor=EDITOR, runtime=runtime))
    levels, reconstruction, edit = run(load(tiny_model, lora=str(adapter), runtime=runtime))
    assert torch.equal(levels, plain[0]) and torch.equal(reconstruction, plain[1])
    assert relative_error(edit, edited) <= 1e-4


def test_plain_diffusers_gives_the_velocity_of_an_edit(tiny_model, adapter):
    module = load(tiny_model, lora=str(adapter))
    embeds = module.engine.prompts("a red circle")
    with module.engine.stage("edit"), torch.no_grad():
        ours = module.engine.network(LATENTS, embeds, 500)
    pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
    pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    with torch.no_grad():
        assert relative_error(ours, run_diffusers(pipeline.transformer, LATENTS, embeds, 500)) <= 1e-5
        pipeline.transformer.disable_lora()
        assert relative_error(ours, run_diffusers(pipeline.transformer, LATENTS, embeds, 500)) > 1e-3


def test_its_mark_is_placed(tiny_model, adapter):
    module = load(tiny_model, lora=str(adapter))
    mark = find_mark(module.transformer)
    assert mark.weight.tolist() == pytest.approx(json.loads(get_card_path(adapter).read_text())["source_mark"])
    assert find_mark(load(tiny_model).transformer) is None


def test_plain_files_are_merged_beside_it(tiny_model, adapter, tmp_path):
    plain = load(tiny_model)
    write_lora(plain.transformer, TARGETS["attention"], tmp_path / "style")
    alone = run(load(tiny_model, lora=[str(tmp_path / "style")], editor=EDITOR))
    for files in ([f"{tmp_path / 'style'}", f"{adapter}:0.5"], [f"{adapter}:0.5", f"{tmp_path / 'style'}"]):
        levels, _, edit = run(load(tiny_model, lora=files))
        assert torch.equal(levels, alone[0])
        assert relative_error(edit, alone[2]) > 1e-2


def test_an_adapter_without_an_editor_is_merged(tiny_model, tmp_path):
    plain = load(tiny_model)
    nothing = {"editor": None, "num_inference_steps": None, "guidance_scale": None}
    path = write_random_adapter(tmp_path / "style.safetensors", plain.transformer, **nothing)
    module = load(tiny_model, lora=str(path))
    assert not hasattr(module.transformer, "peft_config") or not module.transformer.peft_config
    assert relative_error(module.engine.invert(LATENTS).levels, plain.engine.invert(LATENTS).levels) > 1e-3
    assert (module.guidance_scale, type(module.editor)) == (2.0, FlowEdit)


def test_settings_come_from_the_user_then_the_adapter_then_the_model(tiny_model, adapter):
    taken = DDIMInversionModule(str(tiny_model), lora=str(adapter))
    assert (taken.editor, taken.guidance_scale) == (EDITOR, 1.5)
    assert taken.schedule.num_inference_steps == 3
    assert DDIMInversionModule(**taken.hparams).hparams == taken.hparams
    given = DDIMInversionModule(
        str(tiny_model), lora=str(adapter), editor="Denoise", guidance_scale=4, schedule=Schedule(num_inference_steps=5)
    )
    assert (given.editor, given.guidance_scale, given.schedule.num_inference_steps) == (Denoise(), 4.0, 5)
    plain = DDIMInversionModule(str(tiny_model))
    assert (type(plain.editor), plain.guidance_scale, plain.schedule.num_inference_steps) == (FlowEdit, 2.0, 50)
    assert taken.inverter == plain.inverter


def test_records_say_where_settings_come_from_and_which_adapter_acted(tiny_model, adapter, tmp_path):
    module = load(tiny_model, lora=f"{adapter}:0.5", schedule=Schedule(), editor=EDITOR)
    settings = module.describe()
    assert set(settings["recommended"]) == {"num_inference_steps", "guidance_scale", "inverter"}
    assert str(adapter) in settings["recommended"]["num_inference_steps"]
    assert "tiny model" in settings["recommended"]["inverter"]
    assert (settings["adapter"]["file"], settings["adapter"]["scale"]) == (str(adapter), 0.5)
    assert "adapter" not in load(tiny_model).describe()
    other = write_random_adapter(tmp_path / "edit.safetensors", load(tiny_model).transformer, seed=1)
    again = load(tiny_model, lora=f"{other}:0.5").describe()
    assert again["adapter"]["digest"] != settings["adapter"]["digest"]


def predict(module, clip):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    return trainer.predict(module, DataLoader([clip], batch_size=None))[0]


def test_a_run_under_a_trainer_tells_it_by_its_content(tiny_model, adapter, tmp_path):
    frames = torch.randint(0, 256, (9, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clip = Clip("a", frames, prompts=("a red circle",), source_prompt="a blue square")
    options = {"num_inference_steps": 2, "guidance_scale": 1.5, "save_trajectory": True, "on_error": "raise"}
    plain = predict(make_module(str(tiny_model), editor=EDITOR, **options), clip)
    found = predict(make_module(str(tiny_model), lora=str(adapter), **options), clip)
    assert all(torch.equal(found.trajectory[name], plain.trajectory[name]) for name in plain.trajectory)
    assert torch.equal(found.reconstruction, plain.reconstruction)
    assert relative_error(found.edits[0].latents, plain.edits[0].latents) > 1e-3
    new, old = found.fingerprint, plain.fingerprint
    assert {name for name in new if new[name] != old.get(name)} == {"adapter"}
    copied = tmp_path / "another.safetensors"
    copied.write_bytes(adapter.read_bytes())
    get_card_path(copied).write_bytes(get_card_path(adapter).read_bytes())
    assert predict(make_module(str(tiny_model), lora=str(copied), **options), clip).fingerprint == new


def test_trajectories_do_not_depend_on_it(tiny_model, adapter):
    plain, adapted = load(tiny_model), load(tiny_model, lora=str(adapter))
    digests = [digest_model(module.components, module.engine.device) for module in (plain, adapted)]
    assert digests[0] == digests[1]


def test_another_editor_is_honored_with_a_warning(tiny_model, adapter):
    with pytest.warns(UserWarning, match=r"^editor: .*edit\.safetensors was trained for KVInjection.* with Denoise"):
        load(tiny_model, lora=str(adapter), editor="Denoise")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="editor: ")
        load(tiny_model, lora=str(adapter), editor="ddim_lightning.KVInjection")


@pytest.mark.parametrize("base", ["aaaaaaaa-bbbbbbbb", None])
def test_the_adapter_of_another_model_is_refused(base, tiny_model, tmp_path):
    """Another config is found out before weights are read, other weights of one config as soon as they are."""
    transformer = load(tiny_model).transformer
    if base is None:
        transformer.transformer_blocks[0].attn1.to_k.weight.data.add_(0.1)
    values = {} if base is None else {"base": base}
    path = write_random_adapter(tmp_path / "edit.safetensors", transformer, **values)
    with pytest.raises(ValueError, match=rf"^lora: {path} must be used with the model .*, got \S*random-tiny with \w+"):
        load(tiny_model, lora=str(path))


def test_a_refused_adapter_leaves_a_loaded_model_as_it_was(tiny_model, adapter, tmp_path):
    pipeline = CogVideoXPipeline.from_pretrained(tiny_model)
    write_lora(pipeline.transformer, TARGETS["attention"], tmp_path / "style")
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    card = json.loads(get_card_path(adapter).read_text())
    for change in ({"base": "aaaaaaaa-bbbbbbbb"}, {"source_mark": [1.0]}):
        path = tmp_path / "edit.safetensors"
        path.write_bytes(adapter.read_bytes())
        get_card_path(path).write_text(json.dumps(card | change))
        module = DDIMInversionModule.from_pipeline(pipeline, lora=[str(tmp_path / "style"), str(path)])
        with pytest.raises(ValueError, match=rf"^lora: {path}"):
            module.load("cpu")
        after = pipeline.transformer.state_dict()
        assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_other_adapters_in_the_transformer_are_refused(tiny_model, adapter, tmp_path):
    module = load(tiny_model, lora=str(adapter))
    state = write_lora(load(tiny_model).transformer, TARGETS["attention"], tmp_path)
    module.transformer.load_lora_adapter(state, prefix="transformer", adapter_name="style")
    with pytest.raises(ValueError, match=r"^lora: .*edit\.safetensors acts in edits alone .*got acts_in_edits, style"):
        module.engine.invert(LATENTS)


def test_whoever_switches_it_on_changes_no_inversion(tiny_model, adapter, without):
    module = load(tiny_model, lora=str(adapter))
    module.transformer.enable_lora()
    assert torch.equal(module.engine.invert(LATENTS).levels, without[0])


def test_what_cannot_switch_is_refused(tiny_model, adapter, tmp_path):
    with pytest.raises(ValueError, match=r"^lora: .*must be empty with exported"):
        DDIMInversionModule(str(tiny_model), lora=str(adapter), runtime=Runtime(exported=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^lora: .*edit\.safetensors acts in edits alone.*training"):
        DDIMInversionModule(str(tiny_model), lora=str(adapter), training=Training())
    engine = load(tiny_model, lora=str(adapter)).engine
    with pytest.raises(ValueError, match=r"^lora: .*got \S+edit\.safetensors"):
        export_network(engine, tmp_path / "out", "torch-export", size=(3, 8, 4, 6), guidance_scale=1.5)


def test_the_command_line_shows_what_an_adapter_recommends(tiny_model, adapter, tmp_path, capsys):
    words = ["clip.mp4", "--prompt", "x", "--output", "out", "--model", str(tiny_model), "--lora", str(adapter)]
    assert main(["edit", *words, "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    found = (shown["editor"], shown["guidance_scale"], shown["num_inference_steps"])
    assert found == (KV_INJECTION, 1.5, 3)
    assert main(["edit", *words, "--steps", "7", "--guidance-scale", "4", "--editor", "Denoise", "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["editor"], shown["guidance_scale"], shown["num_inference_steps"]) == ("Denoise", 4, 7)


@pytest.mark.parametrize("given", ["[{0}]", '["{0}:0.5"]', "[{{file: {0}, scale: 0.5}}]"])
def test_predict_shows_what_an_adapter_recommends(given, tiny_model, adapter, tmp_path, capsys):
    given = given.format(adapter)
    (tmp_path / "mine.yaml").write_text(f"model: {{init_args: {{lora: {given}, guidance_scale: 4}}}}")
    words = ["--config", "edit", "--config", str(tmp_path / "mine.yaml"), "--model.model", str(tiny_model)]
    assert main(["predict", *words, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    found = (shown["editor"], shown["guidance_scale"], shown["schedule"]["num_inference_steps"])
    assert found == (KV_INJECTION, 4, 3)


def test_a_broken_card_is_told_before_anything_is_loaded(tiny_model, adapter, tmp_path, capsys):
    path = tmp_path / "edit.safetensors"
    path.write_bytes(adapter.read_bytes())
    get_card_path(path).write_text('{"base": 5}')
    with pytest.raises(ValueError, match=r"^lora: \S+edit\.json: objectives: must have the keys"):
        DDIMInversionModule(str(tiny_model), lora=str(path))
    words = ["--prompt", "x", "--output", str(tmp_path / "out"), "--lora", str(path)]
    assert main(["edit", str(tmp_path), *words]) != 0
    assert "error: " in capsys.readouterr().err
