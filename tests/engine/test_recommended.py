"""What is recommended for a model, and what is taken."""

from __future__ import annotations

import pytest
import yaml

from ddim_lightning import DDIMInversionModule
from ddim_lightning.diffusion.editors import FlowEdit
from ddim_lightning.diffusion.inverters import DDIM, UniInv
from ddim_lightning.engine.fast import FAST_STEP_CACHE
from ddim_lightning.engine.recommended import read_recommended


def write_model(folder, text):
    folder.mkdir()
    (folder / "recommended.yaml").write_text(text, encoding="utf-8")
    return str(folder)


def test_the_tiny_models_recommendation_is_its_own_and_no_classs_default():
    module = DDIMInversionModule("tiny")
    assert (module.guidance_scale, module.inverter) == (2.0, UniInv(extrapolate=True, extra_evals=0.12))
    assert module.editor != FlowEdit()
    assert module.editor.eval_every == 2 and FlowEdit().eval_every == 1


def test_released_models_get_what_is_published_with_its_source():
    found = read_recommended("zai-org/CogVideoX-5b")
    assert found == read_recommended("zai-org/CogVideoX1.5-5B")
    assert set(found["sources"]) == {"num_inference_steps", "guidance_scale", "inverter", "editor"}
    assert all("published, not validated here" in source for source in found["sources"].values())


def test_a_model_may_bring_some_of_its_own(tmp_path):
    model = write_model(tmp_path / "mine", "guidance_scale: 4.5\n")
    assert read_recommended(model) == read_recommended("zai-org/CogVideoX-5b") | {"guidance_scale": 4.5}


def test_what_is_asked_for_is_taken_and_the_rest_is_recommended(tiny_model):
    module = DDIMInversionModule(str(tiny_model), guidance_scale=3, inverter="DDIM")
    assert (module.guidance_scale, module.inverter) == (3.0, DDIM())
    taken = module.hparams["editor"]
    assert taken["class_path"].endswith(".FlowEdit") and taken["init_args"]["kv_scale"] == module.editor.kv_scale


def test_the_record_shows_what_was_taken(tiny_model):
    module = DDIMInversionModule(str(tiny_model), schedule={"fast": True})
    module.load("cpu")
    settings = module.describe()
    assert settings["guidance_scale"] == 2.0
    assert settings["editor"]["init_args"]["eval_every"] == module.editor.eval_every == 2
    assert settings["runtime"]["step_cache"] == FAST_STEP_CACHE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance: 3\n", r"model: .*recommended.yaml must have the keys editor, .*, got \{'guidance': 3\}"),
        ("[1, 2\n", "model: .*recommended.yaml is no YAML"),
        (yaml.safe_dump([1, 2]), "must have the keys"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_recommended(write_model(tmp_path / "mine", text))
