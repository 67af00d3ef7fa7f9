"""The pass of a training: rows of their own levels, rows that read others, and gradients that checkpointing keeps."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import FusedCogVideoXAttnProcessor2_0
from peft import LoraConfig

from ddim_lightning.diffusion.objectives import InContextEditing, Samples, TrainingLevels
from ddim_lightning.models.loading import load_components
from ddim_lightning.network.diffusers_network import ReadingProcessor
from ddim_lightning.network.network import Network
from ddim_lightning.network.predictor import TransformerPredictor

LORA = {"r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


@pytest.fixture
def parts(tiny_model):
    return load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encode(prompts):
    return torch.stack([draw(16, 24, seed=len(prompt)) for prompt in prompts])


def test_a_row_that_reads_at_one_level_has_the_velocity_of_the_network(parts):
    predict, network = TransformerPredictor(parts.transformer, encode), Network(parts.transformer)
    rows = draw(5, 3, 8, 16, 16)
    prompts, reads = ["", "a", "bc", "def", "ghij"], (3, 4, 3)
    with torch.no_grad():
        got = predict(rows, prompts, torch.full((5,), 400), reads=reads)
        wanted = network(rows, encode(prompts), 400, wanted=3, reads=reads)
        plain = network(rows, encode(prompts), 400)
    torch.testing.assert_close(got[:3], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(got[3:], plain[3:], rtol=0, atol=1e-5)
    assert not torch.allclose(got[:3], plain[:3], atol=1e-2)


class Lending(ReadingProcessor):
    """Keeps the keys and values of a pass, or lends those that it kept to every row of another."""

    def __init__(self, kept=None):
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        from ddim_lightning.network.diffusers_network import _rotate

        text, tokens = encoder_hidden_states.shape[1], torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(tokens).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            _rotate(norm(x), text, image_rotary_emb) for norm, x in ((attn.norm_q, query), (attn.norm_k, key))
        )
        if self.kept is None:
            self.kept = key, value
        else:
            key, value = (torch.cat([own, kept], dim=1) for own, kept in zip((key, value), self.kept, strict=True))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        attended = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value
        output = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return output[:, text:], output[:, :text]


def test_an_untrained_adapter_reads_as_keys_and_values_of_a_source_pass_of_its_own(parts):
    """The edit reads what one pass of the source at its own level leaves, whatever the edit's level."""
    transformer, edit, source = parts.transformer, draw(1, 3, 8, 16, 16), draw(1, 3, 8, 16, 16, seed=1)
    predict = TransformerPredictor(transformer, encode)
    transformer.add_adapter(LoraConfig(**LORA))
    with torch.no_grad():
        got = predict(torch.cat([edit, source]), ["edit", "source"], torch.tensor([700, 0]), reads=(1,))
        transformer.disable_adapters()
        again = predict(torch.cat([edit, source]), ["edit", "source"], torch.tensor([700, 0]), reads=(1,))
        attentions = [block.attn1 for block in transformer.transformer_blocks]
        for attention in attentions:
            attention.processor = Lending()
        predict(source, ["source"], torch.tensor([0]))
        wanted = predict(edit, ["edit"], torch.tensor([700]))
    assert torch.equal(got, again)
    torch.testing.assert_close(got[:1], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointing_keeps_the_gradients_of_adapters_and_leaves_the_model_as_it_was(parts, precision):
    transformer = parts.transformer
    transformer.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    trained = [weight for name, weight in transformer.named_parameters() if "lora_" in name]
    predict, levels = TransformerPredictor(transformer, encode), TrainingLevels.make(parts.scheduler.alphas_cumprod)
    pairs = Samples(draw(2, 3, 8, 16, 16), ["a", "b"], draw(1, 3, 8, 16, 16, seed=1), ["c"], (0, 0))
    seen, found = [], [block.attn1.processor for block in transformer.transformer_blocks]
    for checkpointing in (False, True):
        if checkpointing:
            transformer.enable_gradient_checkpointing()
            function = transformer._gradient_checkpointing_func
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = InContextEditing()(predict, pairs, levels, torch.Generator().manual_seed(0))
        seen.append([loss.detach(), *torch.autograd.grad(loss, trained)])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert all(bool(gradient.abs().max() > 0) for gradient in seen[0][1:])
    assert [block.attn1.processor for block in transformer.transformer_blocks] == found
    assert transformer._gradient_checkpointing_func is function


def test_a_processor_that_cannot_read_is_refused_by_name_and_stays(parts):
    attention = parts.transformer.transformer_blocks[1].attn1
    attention.processor = processor = FusedCogVideoXAttnProcessor2_0()
    predict = TransformerPredictor(parts.transformer, encode)
    with pytest.raises(ValueError, match=r"^objective: .*FusedCogVideoXAttnProcessor2_0"):
        predict(draw(2, 3, 8, 16, 16), ["", "a"], torch.tensor([1, 2]), reads=(1,))
    assert attention.processor is processor
