"""What large trainings need, on one process: averaged weights, mixed precision, cached prompts, others' optimizers."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from ddim_lightning import DDIMInversionModule, Training
from ddim_lightning.engine.config import Runtime
from ddim_lightning.models.text import PromptEncoder
from tests.test_module import Latents
from tests.test_training_module import IN_CONTEXT, Pairs, fit, make_module

DECAY = 0.6


class Average(Callback):
    """Averages weights after every step as the callback of Lightning should, and keeps what validates."""

    def __init__(self):
        self.average, self.validated = None, []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        now = take(pl_module)
        old = now if self.average is None else self.average
        self.average = {name: DECAY * old[name] + (1 - DECAY) * weight for name, weight in now.items()}

    def on_validation_batch_start(self, trainer, pl_module, *rest):
        self.validated.append(take(pl_module))


def take(module):
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-6)


def test_averaged_weights_validate_and_are_kept_and_a_resumed_training_averages_on(tiny_model, tmp_path):
    def run(module, **settings):
        ema, average = EMAWeightAveraging(decay=DECAY), Average()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        return average, fit(module, Pairs(), average, ema, keep, **settings)[1]

    module = make_module(tiny_model, IN_CONTEXT)
    average, losses = run(module)
    assert "lora.source_mark.weight" in average.average
    for kept in (take(module), average.validated[-1]):
        assert_close(average.average, kept)
    assert_close(average.average, torch.load(tmp_path / "step=6.ckpt", weights_only=True)["state_dict"])
    loaded = DDIMInversionModule.load_from_checkpoint(tmp_path / "step=6.ckpt", weights_only=True)
    assert_close(average.average, take(loaded))
    shutil.move(tmp_path / "step=3.ckpt", tmp_path / "middle.ckpt")
    resumed = make_module(tiny_model, IN_CONTEXT)
    _, rest = run(resumed, ckpt_path=tmp_path / "middle.ckpt")
    assert rest == losses[3:]
    for name, weight in take(module).items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_a_copy_has_its_own_lora_and_shares_the_memory_of_frozen_weights(tiny_model):
    module = make_module(tiny_model)
    module.load("cpu")
    copied = copy.deepcopy(module)
    pairs = zip(module.transformer.parameters(), copied.transformer.parameters(), strict=True)
    for weight, other in pairs:
        assert weight is not other and torch.equal(weight, other)
        assert (weight.data_ptr() == other.data_ptr()) == (not weight.requires_grad)
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in module.named_parameters()]
    own = {weight.data_ptr() for weight in copied.transformer.parameters()}
    assert all(weight.data_ptr() in own for weight in copied.parameters())  # what trains is what computes
    untrained = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu")
    first, other = (next(one.transformer.parameters()) for one in (untrained, copy.deepcopy(untrained)))
    assert first.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("parts", [("lora",), ("transformer",)])
def test_mixed_precision_rounds_losses_and_keeps_float32_weights(tiny_model, parts):
    _, exact = fit(make_module(tiny_model, IN_CONTEXT, parts=parts), Pairs())
    module = make_module(tiny_model, IN_CONTEXT, parts=parts)
    _, losses = fit(module, Pairs(), precision="bf16-mixed")
    assert losses != exact and losses == pytest.approx(exact, rel=0.05)
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


def test_checkpointing_keeps_the_weights_of_a_whole_transformer(tiny_model):
    modules = [make_module(tiny_model, IN_CONTEXT, parts=("transformer",)) for _ in range(2)]
    fit(modules[0], Pairs(), max_steps=2)
    checkpointed = make_module(tiny_model, IN_CONTEXT, parts=("transformer",), gradient_checkpointing=True)
    fit(checkpointed, Pairs(), max_steps=2)
    assert_close(take(modules[0]), take(checkpointed))


def test_a_training_under_cached_prompts_has_no_text_encoder(tiny_model, tmp_path, monkeypatch):
    class Listed(Pairs):
        def all_prompts(self):
            return ["a circle", "a red circle", "a square", "a cross"]

    def make():
        options = {"rank": 4, "learning_rate": 1e-2, "warmup_steps": 0, "objectives": (IN_CONTEXT,)}
        runtime = Runtime(prompt_cache=str(tmp_path))
        return DDIMInversionModule(str(tiny_model), runtime=runtime, training=Training(("lora",), **options))

    first = make()
    _, losses = fit(first, Listed())
    assert first.engine.prompts.text_encoder is None and len(list(tmp_path.iterdir())) == 5  # with the empty one
    _, plain = fit(make_module(tiny_model, IN_CONTEXT), Pairs())
    assert losses == pytest.approx(plain, rel=1e-5)
    monkeypatch.setattr(PromptEncoder, "load", lambda self: pytest.fail("the text encoder was loaded"))
    _, again = fit(make(), Listed())
    assert again == losses


@pytest.mark.parametrize("optimizer", ["torch.optim.Adam", "torch.optim.NAdam"])
def test_an_optimizer_is_found_by_its_dotted_path(tiny_model, optimizer):
    module = make_module(tiny_model, optimizer=optimizer)
    trainer, losses = fit(module, Latents())
    assert type(trainer.optimizers[0]).__name__ == optimizer.rpartition(".")[2]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        ("bitsandbytes_of_nobody.optim.AdamW8bit", "No module named 'bitsandbytes_of_nobody'"),
        ("torch.optim.AdamW9bit", "no attribute 'AdamW9bit'"),
        ("torch.nn.Linear", "torch.nn.Linear"),
        ("torch.optim.SGD", "'betas'"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_refused_before_anything_is_loaded(optimizer, got):
    with pytest.raises(ValueError, match=rf"^training\.optimizer: .*{got}") as refused:
        DDIMInversionModule("tiny", training=Training(optimizer=optimizer))
    assert "\n" not in str(refused.value)
