"""The stages are composed as diffusers composes blocks, and make what the module makes."""

from __future__ import annotations

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks

from ddim_lightning import (
    BDIA,
    Clip,
    DDIMInversionModule,
    DecodeBlock,
    EditBlock,
    EncodeBlock,
    FlowEdit,
    InvertBlock,
    ReconstructBlock,
    Schedule,
)
from ddim_lightning.models.vae import quantize

STAGES = {
    "encode": EncodeBlock,
    "invert": InvertBlock,
    "reconstruct": ReconstructBlock,
    "edit": EditBlock,
    "decode": DecodeBlock,
}
CALL = {"prompt": "a red circle", "source_prompt": "a blue square", "guidance_scale": 3.0, "seed": 7}
METHODS = {
    "published": {},
    "instances": {"inverter": BDIA(), "editor": FlowEdit()},
    "names": {
        "inverter": "EditFriendly",
        "editor": {"class_path": "KVInjection", "init_args": {"initial": "random", "layers": [0, 0.5]}},
    },
}


@pytest.fixture
def parts(tiny_model):
    pipeline = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu").to_pipeline()
    return dict(pipeline.components)


@pytest.fixture
def video():
    return torch.randint(0, 256, (9, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def compose(parts, names=tuple(STAGES), **configs):
    pipeline = SequentialPipelineBlocks.from_blocks_dict({name: STAGES[name] for name in names}).init_pipeline()
    pipeline.update_components(**parts, **configs)
    return pipeline


@pytest.mark.parametrize("methods", METHODS.values(), ids=list(METHODS))
def test_composed_stages_make_what_the_module_makes(parts, video, methods):
    made = compose(parts, **methods)(video=video, num_inference_steps=4, **CALL)

    module = DDIMInversionModule.from_components(
        **parts, schedule=Schedule(num_inference_steps=4), guidance_scale=3.0, **methods
    )
    module.load("cpu")
    inversion = module.engine.invert(module.engine.encode(video), seed=7)
    assert type(made.inversion.inverter) is type(module.inverter)
    assert torch.equal(made.inversion.levels, inversion.levels)
    assert torch.equal(made.reconstructed_latents, module.engine.reconstruct(inversion))
    result = module.predict_step(Clip("a", video, prompts=("a red circle",), source_prompt="a blue square", seed=7), 0)
    assert torch.equal(made.edited_latents, result.edits[0].latents)
    assert torch.equal(quantize(made.reconstructed_video[0]), result.reconstruction)
    assert torch.equal(quantize(made.edited_video[0]), result.edits[0].frames)


def test_stages_work_alone_and_one_inversion_serves_many_edits(parts, video):
    inverted = compose(parts, ("encode", "invert"))(video=video, num_inference_steps=3)
    edit = compose(parts, ("edit", "decode"))
    first, again, other = (
        edit(inversion=inverted.inversion, guidance_scale=2.0, prompt=prompt)
        for prompt in ("a red circle", "a red circle", "a green square")
    )
    assert torch.equal(first.edited_latents, again.edited_latents)
    assert not torch.allclose(first.edited_latents, other.edited_latents)
    assert first.edited_video.shape == (1, 9, 3, 32, 48)
    assert first.reconstructed_video is None


def test_a_mask_keeps_the_source_outside(parts, video):
    mask = torch.zeros(1, 3, 1, 8, 12)
    made = compose(parts, ("encode", "invert", "edit"))(video=video, num_inference_steps=3, mask=mask, **CALL)
    assert torch.equal(made.edited_latents, made.latents)


def test_a_folder_names_its_parts_and_methods(tiny_model, tmp_path, video):
    blocks = SequentialPipelineBlocks.from_blocks_dict({name: STAGES[name] for name in ("encode", "invert")})
    pipeline = blocks.init_pipeline(str(tiny_model))
    pipeline.load_components()
    pipeline.update_components(inverter="BDIA")
    wanted = pipeline(video=video, num_inference_steps=2).inversion
    pipeline.save_pretrained(str(tmp_path / "saved"), overwrite_modular_index=True)
    again = ModularPipeline(blocks=blocks, pretrained_model_name_or_path=str(tmp_path / "saved"))
    again.load_components()
    found = again(video=video, num_inference_steps=2).inversion
    assert isinstance(found.inverter, BDIA)
    assert torch.equal(found.levels, wanted.levels)


def test_switches_of_diffusers_act_or_are_refused_by_name(parts, video):
    plain = compose(parts, ("encode", "invert"))(video=video, num_inference_steps=2).inversion
    layer = parts["transformer"].transformer_blocks[1].ff
    handle = layer.register_forward_hook(lambda layer, inputs, output: 0.5 * output)
    pipeline = compose(parts, ("encode", "invert"))
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.ff"):
        pipeline(video=video, num_inference_steps=2)
    pipeline.update_components(forward="diffusers")
    hooked = pipeline(video=video, num_inference_steps=2).inversion
    assert not torch.allclose(hooked.x_T, plain.x_T)
    handle.remove()
    pipeline.update_components(forward="fused")
    assert torch.equal(pipeline(video=video, num_inference_steps=2).inversion.levels, plain.levels)


def test_a_part_that_is_missing_is_named(parts, video):
    parts["vae"] = None
    with pytest.raises(ValueError, match=r"^vae: .*update_components"):
        compose(parts)(video=video, **CALL)


@pytest.mark.parametrize(
    ("configs", "inputs", "name"),
    [
        ({"inverter": "Nobody"}, {}, "inverter"),
        ({"editor": BDIA()}, {}, "editor"),
        ({"forward": "both"}, {}, "forward"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps"),
        ({}, {"guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_options_out_of_range_are_named(parts, video, configs, inputs, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        compose(parts, **configs)(**({"video": video, "num_inference_steps": 2, **CALL} | inputs))


def test_inputs_of_another_kind_are_named(parts, video):
    encode = EncodeBlock().init_pipeline()
    encode.update_components(**parts)
    with pytest.raises(TypeError, match=r"^video: must be a tensor, .* got a str"):
        encode(video="clip.mp4")
    pipeline = SequentialPipelineBlocks.from_blocks_dict({"invert": InvertBlock, "edit": EditBlock}).init_pipeline()
    pipeline.update_components(**parts)
    with pytest.raises(TypeError, match=r"^prompt: must be one text, .*\['a', 'b'\]"):
        pipeline(latents=torch.zeros(1, 2, 8, 4, 6), prompt=["a", "b"], num_inference_steps=2)
