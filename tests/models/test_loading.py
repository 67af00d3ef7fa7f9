"""Loading real folders, and one clear line for each that cannot be used."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import sentencepiece
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, DDIMInverseScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5Tokenizer
from transformers.utils import logging as transformers_logging

import ddim_lightning.models.torch_pair
from ddim_lightning.models.checkpoint import DEFAULTS, read_limits
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.models.source import resolve_model
from ddim_lightning.types import VideoLimits
from tests.random_tiny import write_random_tiny

CPU = torch.device("cpu")
SIZES = {"sample_frames": 17, "sample_height": 20, "sample_width": 14}  # pairwise different, in latents
LIMITS = VideoLimits(num_frames=17, height=80, width=56, multiple=8, temporal=4)


def load(model, **options):
    return load_components(str(model), **{"device": CPU, "dtype": torch.float32, **options})


def load_text(model, **options):
    return load_text_encoder(str(model), **{"device": CPU, "dtype": torch.float32, **options})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_random_tiny(tmp_path_factory.mktemp("template"), transformer=SIZES)


@pytest.fixture
def folder(template, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(template, tmp_path / "model"))


@pytest.fixture(scope="module")
def published_layout(tmp_path_factory):
    """A miniature laid out as the published models: shards, ``spiece.model`` only, a DPM scheduler, SNR shift 3."""
    folder = write_random_tiny(
        tmp_path_factory.mktemp("published"),
        snr_shift_scale=3.0,
        scheduler="CogVideoXDPMScheduler",
        transformer=SIZES,
        max_shard_size="60KB",
    )
    edit_json(folder / "text_encoder" / "config.json", tie_word_embeddings=False)  # as T5 v1.1 says it
    sentences = folder.with_suffix(".txt")
    sentences.write_text("a red circle moving right on a blue background\na brown fox jumps over the lazy dog\n" * 20)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences),
        model_prefix=str(folder / "tokenizer" / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer" / "spiece.vocab").unlink()
    return folder


@pytest.fixture
def flat(tmp_path):
    return write_random_tiny(tmp_path / "CogVideoX-2b", rotary=False)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read_weights(folder):
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_gives_the_real_objects_frozen_in_their_dtype(template, dtype):
    before = torch.get_rng_state()
    parts = load(template, dtype=dtype)
    assert torch.equal(torch.get_rng_state(), before)
    kinds = {
        "transformer": CogVideoXTransformer3DModel,
        "vae": AutoencoderKLCogVideoX,
        "tokenizer": T5Tokenizer,
        "scheduler": CogVideoXDDIMScheduler,
        "inverse_scheduler": DDIMInverseScheduler,
    }
    assert {name: type(getattr(parts, name)) for name in kinds} == kinds
    encoder = load_text(template, dtype=dtype)
    assert type(encoder) is T5EncoderModel
    for name, module in {"transformer": parts.transformer, "vae": parts.vae, "text_encoder": encoder}.items():
        weights = module.state_dict()
        assert not module.training
        assert {(p.dtype, p.requires_grad, p.device.type) for p in module.parameters()} == {(dtype, False, "cpu")}
        assert not hasattr(module, "_hf_hook")  # no offload
        assert all(torch.equal(weights[k], v.to(dtype)) for k, v in read_weights(template / name).items())
    assert parts.limits == LIMITS


def test_the_published_layout_loads_whole(published_layout):
    assert len(list((published_layout / "transformer").glob("*.safetensors"))) > 3
    parts, encoder = load(published_layout), load_text(published_layout)
    for name, module in {"transformer": parts.transformer, "vae": parts.vae, "text_encoder": encoder}.items():
        weights = module.state_dict()
        written = read_weights(published_layout / name)
        assert weights.keys() - written.keys() <= {"encoder.embed_tokens.weight"}  # tied to shared.weight
        assert all(torch.equal(weights[key], value) for key, value in written.items())
    assert torch.equal(encoder.encoder.embed_tokens.weight, encoder.shared.weight)


def test_spiece_model_alone_gives_sentencepieces_ids(published_layout):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(published_layout / "tokenizer" / "spiece.model"))
    tokenizer = load(published_layout).tokenizer
    for text in ("a red circle", "the fox moving right", ""):
        assert tokenizer(text).input_ids == [*reference.encode(text), 1]


def test_a_dpm_folder_with_shift_3_gets_both_ddim_schedulers_on_its_schedule(published_layout):
    parts = load(published_layout)
    expected = CogVideoXDDIMScheduler.from_pretrained(published_layout, subfolder="scheduler")
    assert expected.config.snr_shift_scale == 3.0
    assert type(parts.scheduler) is CogVideoXDDIMScheduler
    assert torch.equal(parts.scheduler.alphas_cumprod, expected.alphas_cumprod)
    assert torch.equal(parts.inverse_scheduler.alphas_cumprod, expected.alphas_cumprod)
    assert parts.scheduler.config.timestep_spacing == parts.inverse_scheduler.config.timestep_spacing == "trailing"


def test_the_text_encoder_loads_alone(template, flat):
    """Of a model without rotary embeddings too: it is the transformer that is refused."""
    before = torch.get_rng_state()
    encoder = load_text(template, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert {(p.dtype, p.requires_grad) for p in encoder.parameters()} == {(torch.bfloat16, False)}
    assert load_text(flat).encoder is not None


def test_progress_bars_are_hidden_and_come_back(template, capfd):
    load(template), load_text(template)
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_limits_come_from_the_configs(template, published_layout):
    assert read_limits(str(template)) == read_limits(str(published_layout)) == LIMITS


def test_a_folder_that_has_one_variant_of_its_weights_is_loaded(folder, template):
    for name in (TRANSFORMER, "vae/diffusion_pytorch_model.safetensors", TEXT):
        (folder / name).rename(folder / name.replace(".safe", ".fp16.safe"))
    ours, theirs = (load(one).transformer.state_dict() for one in (folder, template))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    load_text(folder)


def test_a_sharded_variant_is_loaded(folder, template):
    shutil.rmtree(folder / "transformer")
    load(template).transformer.save_pretrained(folder / "transformer", variant="fp16", max_shard_size="50KB")
    ours, theirs = (load(one).transformer.state_dict() for one in (folder, template))
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_an_absent_key_means_is_what_it_means_to_diffusers():
    for part, kind in (("transformer", CogVideoXTransformer3DModel), ("vae", AutoencoderKLCogVideoX)):
        parameters = inspect.signature(kind).parameters
        assert DEFAULTS[part] == {name: parameters[name].default for name in DEFAULTS[part]}


def test_keys_absent_from_an_old_config_have_the_defaults_of_their_class(folder):
    path = folder / "transformer" / "config.json"
    absent = ("patch_size_t", "ofs_embed_dim", "patch_bias", "use_learned_positional_embeddings", "patch_size")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in absent}))
    assert read_limits(str(folder)) == LIMITS


@pytest.mark.filterwarnings("ignore:model. .* no rotary position embeddings")
@pytest.mark.parametrize(
    "use", [load, lambda model, **options: read_limits(str(model), **options)], ids=["load", "read"]
)
def test_a_model_without_rotary_embeddings_is_refused_unless_asked_for(flat, use):
    reason = r"^model: .*2b is refused .*rotary.*require_rotary=False"
    with pytest.raises(ValueError, match=reason):
        use(flat)
    assert use(flat, require_rotary=False) is not None


def test_a_model_is_tiny_or_a_folder_or_a_hub_id(template, monkeypatch):
    monkeypatch.setattr("ddim_lightning.models.source.BUNDLED", template)
    monkeypatch.setenv("HOME", str(template.parent))
    monkeypatch.chdir(template.parent)
    assert resolve_model("tiny") == resolve_model(str(template)) == template
    assert resolve_model(f"~/{template.name}") == template
    assert resolve_model(f"./{template.name}/transformer") == Path(template.name) / "transformer"
    assert resolve_model(f"{template.name}/transformer") == Path(template.name) / "transformer"
    assert resolve_model("zai-org/CogVideoX-5b") == "zai-org/CogVideoX-5b"


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./missing", "../a/b", "missing", "a/b/c", "~/missing/x", "a b/c", "a/"]
)
def test_a_missing_folder_is_not_looked_for_on_the_hub(model):
    with pytest.raises(FileNotFoundError, match=r"^model: no folder ") as caught:
        resolve_model(model)
    assert "\n" not in str(caught.value)


Break = Callable[[Path], None]


def drop(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def edit(name, **changes):
    return lambda folder: edit_json(folder / name, **changes)


def write(name, text):
    return lambda folder: (folder / name).write_text(text) and None


def pickle_only(part):
    def change(folder):
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".bin"))

    return change


def truncate(name):
    return lambda folder: os.truncate(folder / name, 5000)


def change_weights(name, change, key):
    def apply(folder):
        weights = load_file(folder / name)
        change(weights, key)
        save_file(weights, folder / name, {"format": "pt"})

    return apply


def clear_cache(weights, key):
    del weights[key]


def reshape(weights, key):
    weights[key] = torch.zeros(3)


def add_scale(weights, key):
    """As weights in 8 bits are saved beside their scales."""
    weights[key.replace("bias", "weight")] = weights[key.replace("bias", "weight")].to(torch.float8_e4m3fn)
    weights[key.replace("bias", "scale_weight")] = torch.ones(1)


def add_adapter(weights, key):
    weights[key.replace("bias", "base_layer.bias")] = weights.pop(key)
    weights[key.replace("bias", "lora_A.default.weight")] = torch.zeros(2, 32)


def two_variants(folder):
    for name in ("fp16", "bf16"):
        shutil.copy(folder / TRANSFORMER, folder / TRANSFORMER.replace(".safe", f".{name}.safe"))
    (folder / TRANSFORMER).unlink()


TRANSFORMER, TEXT = "transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
BIAS, QUERY = "transformer_blocks.1.attn1.to_q.bias", "encoder.block.1.layer.0.SelfAttention.q.weight"

WRONG_FOLDERS = {
    "no model_index.json": (
        drop("model_index.json"),
        FileNotFoundError,
        "no pipeline folder: .*model_index",
    ),
    "no transformer": (drop("transformer"), FileNotFoundError, r"has no transformer: .*config\.json is missing"),
    "no vae": (drop("vae"), FileNotFoundError, r"has no vae: .*config\.json is missing"),
    "no text encoder": (drop("text_encoder"), FileNotFoundError, r"has no text_encoder: .*config\.json is missing"),
    "no scheduler": (drop("scheduler"), FileNotFoundError, r"has no scheduler: .*scheduler_config\.json is missing"),
    "no tokenizer": (drop("tokenizer"), FileNotFoundError, "has no tokenizer: .*tokenizer.json or spiece.model"),
    "empty tokenizer": (
        drop("tokenizer/tokenizer.json"),
        FileNotFoundError,
        "has no tokenizer: .*tokenizer.json or spiece.model",
    ),
    "another pipeline": (
        edit("model_index.json", _class_name="StableDiffusionPipeline"),
        ValueError,
        "StableDiffusionPipeline, not a CogVideoXPipeline",
    ),
    "another transformer": (
        edit("transformer/config.json", _class_name="ConsisIDTransformer3DModel"),
        ValueError,
        "the transformer of .* must be a CogVideoXTransformer3DModel, got a ConsisIDTransformer3DModel",
    ),
    "channels of something else": (
        edit("transformer/config.json", in_channels=24),
        ValueError,
        "the 8 channels of its velocities, .*got in_channels 24",
    ),
    "an offset of another width": (
        edit("transformer/config.json", ofs_embed_dim=512),
        ValueError,
        "ofs_embed_dim of its time_embed_dim 20, got 512",
    ),
    "temporal patches at learned positions": (
        edit("transformer/config.json", patch_size_t=2, use_learned_positional_embeddings=True),
        ValueError,
        "rotary position embeddings alone, for its patch_size_t is 2",
    ),
    "index is not JSON": (write("model_index.json", "{'a'"), ValueError, r"model_index\.json is not valid JSON: "),
    "config is a list": (
        write("vae/config.json", "[1]"),
        ValueError,
        r"config\.json must hold a JSON object, got a list",
    ),
    "latents do not fit": (
        edit("vae/config.json", latent_channels=4),
        ValueError,
        "do not fit: the transformer's out_channels is 8, the latent_channels of its vae is 4",
    ),
    "text does not fit": (
        edit("text_encoder/config.json", d_model=32),
        ValueError,
        "do not fit: the transformer's text_embed_dim is 24, the d_model of its text_encoder is 32",
    ),
    "quantized by bitsandbytes": (
        edit("transformer/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ValueError,
        "the transformer of .* was quantized by bitsandbytes.*from_pipeline",
    ),
    "quantized text encoder": (
        edit("text_encoder/config.json", quantization_config={"quant_method": "torchao", "quant_type": "int8wo"}),
        ValueError,
        "the text_encoder of .* was quantized by torchao",
    ),
    "two variants": (two_variants, ValueError, "one variant of its weights, got bf16, fp16"),
    "pickled transformer": (
        pickle_only("transformer"),
        ValueError,
        r"pickled weights only \(.*transformer/\*\.bin\).*safetensors",
    ),
    "pickled text encoder": (
        pickle_only("text_encoder"),
        ValueError,
        r"pickled weights only \(.*text_encoder/\*\.bin\)",
    ),
    "no weights": (
        drop("vae/diffusion_pytorch_model.safetensors"),
        FileNotFoundError,
        r"lacks weights: .*safetensors is",
    ),
    "truncated transformer": (truncate(TRANSFORMER), ValueError, r"model\.safetensors is truncated or damaged: "),
    "truncated text encoder": (truncate(TEXT), ValueError, r"model\.safetensors is truncated or damaged: "),
}

WRONG_CONTENTS = {
    "unknown scheduler": (
        edit("scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"),
        ValueError,
        "scheduler: must be one of CogVideoXDDIMScheduler, CogVideoXDPMScheduler, got EulerDiscreteScheduler",
    ),
    "noise prediction": (
        edit("scheduler/scheduler_config.json", prediction_type="epsilon"),
        ValueError,
        "scheduler: prediction_type must be v_prediction, got epsilon",
    ),
    "a weight is missing": (
        change_weights(TRANSFORMER, clear_cache, BIAS),
        ValueError,
        f"transformer do not fit together: {BIAS} is missing",
    ),
    "no learned positions": (
        edit("transformer/config.json", use_learned_positional_embeddings=True),
        ValueError,
        r"patch_embed\.pos_embedding is missing",
    ),
    "a weight is misshapen": (
        change_weights(TRANSFORMER, reshape, BIAS),
        ValueError,
        rf"transformer do not fit together: {BIAS} is \(3,\), the config wants \(48,\)",
    ),
    "weights with scales": (
        change_weights(TRANSFORMER, add_scale, BIAS),
        ValueError,
        r"to_q\.scale_weight is no weight of the model; weights that are scaled",
    ),
    "an adapter inside": (change_weights(TRANSFORMER, add_adapter, BIAS), ValueError, "is of an adapter: merge it"),
    "an unexpected name": (
        change_weights(TEXT, lambda weights, key: weights.update(other=weights[key].clone()), QUERY),
        ValueError,
        "other is no weight of the model",
    ),
    "a text weight is missing": (
        change_weights(TEXT, clear_cache, QUERY),
        ValueError,
        f"text_encoder do not fit together: {QUERY} is missing",
    ),
    "a text weight is misshapen": (
        change_weights(TEXT, reshape, QUERY),
        ValueError,
        rf"text_encoder do not fit together: {QUERY} is \(3,\), the config wants \(32, 24\)",
    ),
    "a config that no class takes": (
        edit("vae/config.json", norm_num_groups=5),
        ValueError,
        r"vae do not fit together: num_channels \(8\) must be divisible by num_groups \(5\)",
    ),
    "a config of another type": (
        edit("transformer/config.json", num_layers="three"),
        ValueError,
        "transformer do not fit together: 'str' object cannot be interpreted as an integer",
    ),
    "tokenizer is not JSON": (write("tokenizer/tokenizer.json", "{"), ValueError, "tokenizer do not fit together: "),
}


@pytest.mark.parametrize(("change", "kind", "message"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS)
@pytest.mark.parametrize("use", [load, lambda folder: read_limits(str(folder))], ids=["load", "read"])
def test_a_wrong_folder_is_told_in_one_line(folder, change, kind, message, use):
    change(folder)
    with pytest.raises(kind, match=f"^model: .*{message}") as caught:
        use(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "kind", "message"), WRONG_CONTENTS.values(), ids=WRONG_CONTENTS)
def test_wrong_contents_are_told_in_one_line(folder, change, kind, message):
    change(folder)
    with pytest.raises(kind, match=message) as caught:
        load(folder), load_text(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(published_layout, tmp_path):
    folder = Path(shutil.copytree(published_layout, tmp_path / "model"))
    shard = sorted((folder / "transformer").glob("*.safetensors"))[2]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks weights: .*{shard.name} is missing"):
        load(folder)


def test_a_file_is_no_model(template):
    with pytest.raises(NotADirectoryError, match=r"got the file .*model_index\.json"):
        load(template / "model_index.json")


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """The hub's cache on this machine, with nothing behind it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_id_is_served_from_the_cache(offline_hub, template):
    repository, commit = offline_hub / "models--someone--a-model", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(template, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert read_limits("someone/a-model") == LIMITS
    weights = load("someone/a-model").transformer.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in read_weights(template / "transformer").items())


@pytest.mark.parametrize("model", ["zai-org/CogVideoX-5b", "a--b/c..d"])
def test_a_hub_that_does_not_answer_is_one_line(offline_hub, model):
    with pytest.raises(OSError, match=f"^model: no folder '{model}' .*hub: .+") as caught:
        load(model)
    assert "\n" not in str(caught.value)


def test_xformers_is_quiet_and_stays_so():
    assert not logging.getLogger("xformers").isEnabledFor(logging.WARNING)
    assert logging.getLogger("xformers").isEnabledFor(logging.ERROR)


def test_a_torchvision_that_does_not_fit_torch_is_told_by_name(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(ImportError, match=r"^torchvision .*torch 2\..*operator torchvision::nms") as caught:
        importlib.reload(ddim_lightning.models.torch_pair)
    assert "\n" not in str(caught.value)
