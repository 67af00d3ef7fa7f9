"""In-context edits through the whole job: what they cost, where their context lies, what is said and refused."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning import Clip, DDIMInversionModule, InContextEdit, Outputs, Schedule, UniInv
from ddim_lightning.engine.build import build_engine
from ddim_lightning.engine.clip_job import ClipJob
from ddim_lightning.engine.config import Runtime
from ddim_lightning.engine.export import ArtifactNetwork, export_network, make_row_size
from ddim_lightning.engine.recording import record_layouts
from ddim_lightning.network.layout import RowLayout
from ddim_lightning.network.source_mark import add_mark
from tests.engine.test_offload import predict
from tests.modules import make_module
from tests.random_tiny import write_image_to_video

PROMPTS = ("a red circle moving right", "a blue square moving left", "a green cross")
CPU = torch.device("cpu")


def make_clip(num_frames=9, size=(24, 40), **fields):
    generator = torch.Generator().manual_seed(7)
    frames = torch.randint(0, 256, (num_frames, 3, *size), generator=generator, dtype=torch.uint8)
    return Clip(**({"id": "clip", "frames": frames, "prompts": PROMPTS, "source_prompt": "a circle"} | fields))


def load(model, editor=InContextEdit(), mark=True, **options):  # noqa: B008, frozen
    module = make_module(str(model), num_inference_steps=2, inverter=UniInv(), editor=editor, **options)
    module.load("cpu")
    if mark:
        weight = add_mark(module.transformer).weight
        weight.data.normal_(generator=torch.Generator().manual_seed(3))
    return module.engine


def run(engine, clip, guidance_scale=1.5, on_progress=lambda progress: None, batch_prompts=False, **outputs):
    wanted = Outputs(**{"reconstruct": False} | outputs)
    options = {"seed": 5, "guidance_scale": guidance_scale, "batch_prompts": batch_prompts}
    return ClipJob(engine, clip, outputs=wanted, on_progress=on_progress, **options).run()


@pytest.fixture(scope="module")
def engine(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def plain(engine):
    """The edits of the clip, one after the other."""
    return run(engine, make_clip())


def worst(result, other):
    pairs = zip(result.edits, other.edits, strict=True)
    return max(float((a.latents - b.latents).norm() / b.latents.norm()) for a, b in pairs)


@pytest.mark.parametrize(
    ("residual", "scale", "rows", "batch_prompts"),
    [(0.5, 1.5, 4, False), (0.5, 1.5, 4, True), (0.0, 1.0, 1, False)],
)
def test_one_context_serves_all_prompts_and_what_is_planned_is_what_is_counted(
    residual, scale, rows, batch_prompts, tiny_model
):
    engine, seen = load(tiny_model, InContextEdit(identity_residual=residual)), []
    result = run(engine, make_clip(), scale, seen.append, batch_prompts)
    assert result.nfe == {"edit": 1 + 3 * 2 * rows} == {"edit": engine.nfe}
    assert seen[0].nfe_left == 1 + 3 * 2 * rows and seen[-1].nfe_left == 0
    edits = [progress for progress in seen if progress.stage == "edit" and progress.done == 0]
    planned = [round(progress.nfe * progress.total) for progress in edits]
    assert planned == ([1 + 3 * 2 * rows] if batch_prompts else [1 + 2 * rows, 2 * rows, 2 * rows])


def test_together_or_one_after_the_other_they_are_the_same_edits(engine, plain):
    assert worst(run(engine, make_clip(), batch_prompts=True), plain) <= 1e-5
    assert worst(run(engine, make_clip(prompts=PROMPTS[::-1])), plain) > 0.01
    inverted = run(engine, make_clip(), reconstruct=True)
    assert inverted.nfe == {"invert": 3, "reconstruct": 2, "edit": 13}
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(inverted.edits, plain.edits, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"offload": "model"},
        {"offload": "blocks", "context": "host"},
    ],
    ids=str,
)
def test_wherever_weights_and_contexts_wait_the_bytes_are_the_same(options, tiny_model, plain):
    engine = load(tiny_model, mark=False, **options)
    # Before weights are streamed it would have been loaded with them.
    weight = add_mark(engine.components.transformer).weight
    weight.data.normal_(generator=torch.Generator().manual_seed(3))
    found = run(engine, make_clip())
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found.edits, plain.edits, strict=True))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"context": "fp8"}, 0.02),
        ({"forward": "diffusers", "context": "host"}, 1e-5),
        ({"dtype": "bfloat16"}, 0.2),
    ],
    ids=str,
)
def test_other_ways_to_run_it_are_near(options, most, tiny_model, plain):
    assert 0.0 < worst(run(load(tiny_model, **options), make_clip()), plain) <= most


@pytest.mark.parametrize("context", ["device", "host"])
def test_a_trainer_takes_several_clips(context, tiny_model):
    """Under inference mode."""
    options = {"num_inference_steps": 2, "on_error": "raise", "reconstruct": False, "context": context}
    module = make_module(str(tiny_model), editor=InContextEdit(), guidance_scale=1.5, **options)
    clips = [make_clip(size=(16, 24), id=name) for name in ("one", "two")]
    first, second = predict(module, *clips)
    assert first.nfe == second.nfe == {"edit": 13}
    assert first.settings["runtime"]["context"] == context
    assert first.edits[0].latents.isfinite().all() and not torch.equal(first.edits[0].latents, second.edits[0].latents)


def test_outside_a_mask_the_edit_is_the_source(engine):
    mask = torch.zeros(9, 24, 40, dtype=torch.bool)
    mask[:, :, :20] = True
    result = run(engine, make_clip(mask=mask))
    source = engine.encode(make_clip().frames)
    for edit in result.edits:
        assert torch.equal(edit.latents[..., 5:], source[..., 5:])
        assert not torch.allclose(edit.latents[..., :5], source[..., :5], atol=0.1)


def test_a_long_clip_holds_a_context_for_each_window(tiny_model):
    engine = load(tiny_model, context="host")
    result = run(engine, make_clip(21))
    assert result.windows["count"] == 4
    assert result.nfe == {"edit": 4 * (1 + 3 * 2 * 2)} and result.edits[0].latents.shape[1] == 6


def test_image_to_video_models_edit_from_another_first_frame(tmp_path):
    model = write_image_to_video(tmp_path / "model")
    engine = load(model, InContextEdit(identity_residual=1.0))
    clip = make_clip(size=(32, 48), prompts=("a circle", PROMPTS[0]))
    result = run(engine, clip)
    assert result.nfe == {"edit": 1 + 2 * 2 * 4}
    source = engine.encode(clip.frames)
    assert torch.equal(result.edits[0].latents, source)  # an edit to the source prompt
    shown = make_clip(size=(32, 48), prompts=("a circle",), first_frame=255 - clip.frames[0])
    assert not torch.allclose(run(engine, shown).edits[0].latents, source, atol=0.1)


def test_what_it_misses_is_said(tiny_model, engine):
    def tell(engine):
        return [one for one in run(engine, make_clip(prompts=PROMPTS[:1])).warnings if "height" not in one]

    assert tell(engine) == []
    (sentence,) = tell(load(tiny_model, mark=False))
    assert sentence.startswith("editor: InContextEdit") and "not trained" in sentence
    (sentence,) = tell(load(tiny_model, "Denoise", context="fp8"))
    assert sentence.startswith("context: has no effect with Denoise")


def test_artifacts_hold_nothing(tiny_model, engine, tmp_path):
    size = make_row_size(engine.components, 9, 24, 40)
    layouts = record_layouts(
        UniInv(), InContextEdit(identity_residual=0.5), engine.schedule, num_layers=3, size=size, channels=8,
        guidance_scale=2.0,
    )  # fmt: skip
    assert RowLayout(4, 4) in layouts
    with pytest.raises(ValueError, match=r"^exported: artifacts hold no keys and values .* got InContextEdit"):
        export_network(engine, tmp_path / "none", "torchscript", size=size, guidance_scale=2.0)
    assert not (tmp_path / "none").exists()
    export_network(load(tiny_model, "Denoise"), tmp_path / "some", "torchscript", size=size, guidance_scale=1.0)
    exported = Runtime(exported=str(tmp_path / "some"))
    with pytest.raises(ValueError, match=r"^exported: .* got InContextEdit"):
        build_engine(str(tiny_model), UniInv(), InContextEdit(), CPU, runtime=exported)
    with pytest.raises(ValueError, match=r"^exported: artifacts hold no keys and values"):
        ArtifactNetwork(tmp_path / "some", CPU).hold(torch.zeros(1, *size), torch.zeros(1, 16, 24), 0)


@pytest.mark.slow
def test_the_bundled_model_loses_next_to_nothing_by_a_context_in_8_bits():
    source = torch.randint(0, 256, (9, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clip = make_clip(size=(64, 64), frames=source, prompts=("a red circle moving right on a blue background",))
    engines = [
        DDIMInversionModule("tiny", editor=InContextEdit(), runtime=Runtime(context=context), schedule=Schedule(4))
        for context in ("device", "fp8")
    ]
    for module in engines:
        module.load("cpu")
    exact, near = (run(module.engine, clip) for module in engines)
    assert 0.0 < worst(near, exact) <= 0.02
