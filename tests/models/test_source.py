"""Where weights come from: what each option does, and a refusal where it would do nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddim_lightning import DDIMInversionModule
from ddim_lightning.models.checkpoint import read_checkpoint, read_limits
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.models.source import Source
from tests.random_tiny import write_random_tiny

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
QUERY = "transformer_blocks.1.attn1.to_q.weight"


def load(model, **fields):
    return load_components(str(model), Source(**fields), device=CPU, dtype=torch.float32)


def is_same(parts, weights):
    ours = parts.transformer.state_dict()
    return all(torch.equal(ours[name], weight) for name, weight in weights.items())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_tiny(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The pipeline folder of another transformer, which is larger by a layer."""
    return write_random_tiny(tmp_path_factory.mktemp("tuned") / "pipeline", seed=7, transformer={"num_layers": 4})


@pytest.fixture
def weights(model, tmp_path):
    """Write a single file of the model's weights, changed."""

    def write(change):
        tensors = load_file(model / "transformer" / WEIGHTS)
        change(tensors)
        save_file(tensors, tmp_path / "single.safetensors")
        return tmp_path / "single.safetensors"

    return write


def test_another_transformer_comes_from_its_folder_or_a_pipelines(model, tuned):
    wanted = load_file(tuned / "transformer" / WEIGHTS)
    for place in (tuned, tuned / "transformer"):
        parts = load(model, transformer=str(place))
        assert is_same(parts, wanted) and len(parts.transformer.transformer_blocks) == 4
    assert not is_same(load(model), {QUERY: wanted[QUERY]})


def test_a_single_file_has_the_config_of_the_pipeline(model, weights):
    path = weights(lambda tensors: tensors[QUERY].mul_(2.0))
    parts = load(model, transformer=str(path))
    assert is_same(parts, load_file(path))
    assert parts.transformer.config.num_layers == 3
    parts.transformer(
        torch.zeros(1, 3, 8, 16, 16), torch.zeros(1, 16, 24), torch.zeros(1), image_rotary_emb=None
    )  # nothing of it is left without values


def test_a_pipeline_without_a_transformer_takes_another(model, tuned, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("transformer")))
    assert load(folder, transformer=str(tuned)).transformer.config.num_layers == 4
    with pytest.raises(FileNotFoundError, match="has no transformer"):
        load(folder)


def test_the_pipeline_lies_in_a_subfolder_with_what_is_recommended_for_it(model):
    top = model.parent
    module = DDIMInversionModule.from_pretrained(str(top), subfolder="model", device="cpu")
    assert module.source == Source(subfolder="model")
    assert (
        module.guidance_scale == DDIMInversionModule("tiny").guidance_scale != DDIMInversionModule(".").guidance_scale
    )
    assert is_same(module, load_file(model / "transformer" / WEIGHTS))
    with pytest.raises(FileNotFoundError, match=r"^subfolder: .* has no 'gone'; it holds .*model"):
        read_limits(str(top), Source(subfolder="gone"))


@pytest.mark.parametrize("subfolder", ["/tmp", "../model", "a/../..", ""])
def test_a_subfolder_lies_inside(subfolder):
    with pytest.raises(ValueError, match=r"^subfolder: must be a folder inside"):
        Source(subfolder=subfolder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"revision": "v1"}, "revision: must be unset for a model in a folder, got 'v1'"),
        ({"revision": "v1", "transformer": "someone/else"}, "revision: must be unset for a model in a folder"),
        ({"cache_dir": "kept"}, "cache_dir: must be unset where nothing comes from the hub, got 'kept'"),
        ({"local_files_only": True}, "local_files_only: must be unset where nothing comes from the hub, got True"),
        ({"transformer": "gone.safetensors"}, "transformer: no folder or file 'gone.safetensors'"),
    ],
)
def test_what_has_no_effect_on_a_folder_is_refused(model, fields, said):
    with pytest.raises((ValueError, OSError), match=f"^{said}"):
        read_checkpoint(str(model), Source(**fields))


def test_a_token_without_a_hub_is_refused_and_not_shown(model):
    with pytest.raises(ValueError, match=r"^token: must be unset where nothing comes from the hub, got one$"):
        DDIMInversionModule.from_pretrained(str(model), device="cpu", token="hf_secret")


def test_from_pretrained_takes_the_fields_once(model):
    with pytest.raises(ValueError, match=r"^source: must be unset beside variant"):
        DDIMInversionModule.from_pretrained(str(model), variant="fp16", source=Source())
    parts = DDIMInversionModule.from_pretrained(str(model), device="cpu")
    with pytest.raises(ValueError, match=r"^source: must be unset for a model that is loaded already"):
        DDIMInversionModule.from_pipeline(parts.to_pipeline(), source={"subfolder": "a"})
    for loaded in (parts, DDIMInversionModule.from_pipeline(parts.to_pipeline())):
        with pytest.raises(ValueError, match=r"token: must be unset for a model that is loaded already"):
            loaded.load("cpu", token="hf_secret")


class TestVariants:
    """Variants of the weights, beside the plain ones."""

    @pytest.fixture
    def both(self, model, tmp_path):
        """A folder with plain weights, and with others as ``fp16``."""
        folder = Path(shutil.copytree(model, tmp_path / "both"))
        for part, name in (("transformer", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
            tensors = {key: tensor + 1.0 for key, tensor in load_file(folder / part / name).items()}
            variant = folder / part / name.replace(".safe", ".fp16.safe")
            save_file(tensors, variant, metadata={"format": "pt"})
        return folder

    def test_the_wanted_one_is_loaded(self, both):
        plain = load_file(both / "transformer" / WEIGHTS)
        assert is_same(load(both), plain)
        assert is_same(load(both, variant="fp16"), {name: tensor + 1.0 for name, tensor in plain.items()})
        encoders = [
            load_text_encoder(read_checkpoint(str(both), Source(variant=variant)), device=CPU, dtype=torch.float32)
            for variant in (None, "fp16")
        ]
        assert torch.equal(encoders[0].shared.weight + 1.0, encoders[1].shared.weight)

    def test_one_that_a_part_lacks_is_refused_with_what_is_there(self, both):
        with pytest.raises(ValueError, match=r"^variant: .*transformer must have .* 'bf16', got plain weights, fp16$"):
            read_checkpoint(str(both), Source(variant="bf16"))
        (both / "vae" / WEIGHTS.replace(".safe", ".fp16.safe")).unlink()
        with pytest.raises(ValueError, match=r"^variant: .*vae must have .* 'fp16', got plain weights$"):
            load(both, variant="fp16")

    def test_another_transformer_has_its_own(self, both, tuned):
        wanted = load_file(tuned / "transformer" / WEIGHTS)
        assert is_same(load(both, variant="fp16", transformer=str(tuned)), wanted)


def add_scale(tensors):
    tensors[QUERY] = tensors[QUERY].to(torch.float8_e4m3fn)
    tensors[QUERY.replace("weight", "scale_weight")] = torch.ones(1)


def make_integers(tensors):
    tensors[QUERY] = tensors[QUERY].to(torch.int8)


def add_adapter(tensors):
    tensors[QUERY.replace("weight", "lora_A.default.weight")] = torch.zeros(2, 48)


def rename(tensors):
    for name in list(tensors):
        tensors[f"model.diffusion_model.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_scale, "to_q.scale_weight is no weight of the model; weights that are scaled"),
        (make_integers, "to_q.weight is I8, no floating point"),
        (add_adapter, "holds an adapter beside its weights"),
        (rename, "in diffusers' names.* holds 88 tensors such as model.diffusion_model"),
        (lambda tensors: tensors.pop(QUERY), "to_q.weight is missing"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "other is no weight of the model"),
    ],
)
def test_a_single_file_that_would_load_wrong_is_refused(model, weights, change, said):
    with pytest.raises(ValueError, match=said):
        load(model, transformer=str(weights(change)))


def test_a_quantized_transformer_is_refused_by_its_place(model, tmp_path):
    folder = Path(shutil.copytree(model / "transformer", tmp_path / "quantized"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ValueError, match=r"transformer of .*quantized/config\.json\) was quantized by torchao"):
        read_limits(str(model), Source(transformer=str(folder)))
