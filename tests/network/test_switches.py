"""What acts on a transformer in plain diffusers acts in our two forward passes, or raises by its name."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, ContextParallelConfig, FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parametrize

from ddim_lightning import DirectInversion, EditRequest, FlowEdit, KVInjection, UniInv
from ddim_lightning.engine.config import Runtime, Schedule
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.network import Network
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error, run_diffusers


class OtherProcessor(CogVideoXAttnProcessor2_0):
    """Attends twice as sharply."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, **options):
        return super().__call__(attn, 2.0 * hidden_states, encoder_hidden_states, **options)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


def add_hook(transformer):
    transformer.transformer_blocks[1].register_forward_hook(lambda _, __, output: (2.0 * output[0], output[1]))


def add_cache(transformer):
    # Once the first block's output is like the step's before, the others are skipped.
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))


def replace_forward(transformer):
    """As cache-dit does."""
    block = transformer.transformer_blocks[0]
    real = block.forward
    block.forward = lambda *arguments, **named: tuple(2.0 * one for one in real(*arguments, **named))


def set_processor(transformer):
    transformer.transformer_blocks[0].attn1.set_processor(OtherProcessor())


def parametrize_weight(transformer):
    parametrize.register_parametrization(transformer.transformer_blocks[1].attn1.to_q, "weight", Doubled())


def cast_layers(transformer):
    apply_layerwise_casting(transformer, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def offload_groups(transformer):
    on_cpu = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    apply_group_offloading(transformer, **on_cpu, offload_type="block_level", num_blocks_per_group=1)


def compile_blocks(transformer):
    """As `compile_repeated_blocks` does where a class names its blocks."""
    for block in transformer.transformer_blocks:
        block.compile(backend="eager")


class Scaled(torch.Tensor):
    """A tensor subclass, as those of torchao are."""


def subclass_weights(transformer):
    layer = transformer.transformer_blocks[0].attn1.to_q
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Scaled), requires_grad=False)


SWITCHES = {
    "forward hook": (add_hook, "a forward hook"),
    "first-block cache": (add_cache, "the hook fbc_leader_block_hook"),
    "replaced forward": (replace_forward, "the forward method"),
    "attention processor": (set_processor, "the attention processor OtherProcessor"),
    "parametrization": (parametrize_weight, "a parametrization"),
    "layerwise casting": (cast_layers, "the hook layerwise_casting"),
    "group offload": (offload_groups, "the hook group_offloading"),
    "compiled blocks": (compile_blocks, "torch.compile"),
    "tensor subclass": (subclass_weights, "the Scaled weights"),
}
SAME_NUMBERS = {"group offload", "compiled blocks", "tensor subclass"}


def run_twice(run, rows):
    """The second pass is that in which a cache acts."""
    run(*rows, 500)
    return run(*(2.0 * one for one in rows), 400)


@pytest.mark.parametrize("name", list(SWITCHES))
def test_a_switch_acts_as_in_diffusers_or_raises(name):
    switch, said = SWITCHES[name]
    transformer, rows = make_variant(**VARIANTS["5B"]), make_rows(2)
    fused, theirs = Network(transformer, SDPA), DiffusersNetwork(make_variant(**VARIANTS["5B"]), SDPA)
    fused.start_stage()
    plain = run_twice(fused, rows)
    for one in (transformer, theirs.transformer):
        switch(one)
    with pytest.raises(ValueError, match=f"^forward: fused .* would ignore {said}.*forward='diffusers'"):
        fused.start_stage()
    theirs.start_stage()
    found = run_twice(theirs, rows)
    reference = make_variant(**VARIANTS["5B"])
    switch(reference)
    if name == "first-block cache":
        with reference.cache_context("plain"):
            wanted = run_twice(lambda *given: run_diffusers(reference, *given), rows)
    else:
        wanted = run_twice(lambda *given: run_diffusers(reference, *given), rows)
    assert relative_error(found, wanted) <= 1e-5
    if name not in SAME_NUMBERS:
        assert relative_error(found, plain) > 1e-3


@pytest.mark.parametrize("reads", [(), (2, 2)])
@pytest.mark.parametrize("kv_scale", [None, [0.5, 0.0, 1.0]])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_both_forward_passes_agree(variant, kv_scale, reads):
    transformer = make_variant(**VARIANTS[variant])
    rows = make_rows(3, transformer.config)
    scale = None if kv_scale is None else torch.tensor(kv_scale)
    options = {"wanted": 2, "reads": reads, "kv_scale": scale}
    fused = Network(transformer, SDPA)(*rows, 500, **options)
    theirs = DiffusersNetwork(transformer, SDPA)
    assert relative_error(theirs(*rows, 500, **options), fused) <= 1e-5
    # What one pass read, the next does not.
    assert (
        relative_error(
            run_diffusers(transformer, *rows, 500), Network(make_variant(**VARIANTS[variant]), SDPA)(*rows, 500)
        )
        <= 1e-5
    )


def test_a_processor_that_cannot_read_is_named_where_an_editor_reads():
    theirs = DiffusersNetwork(make_variant(**VARIANTS["5B"]), SDPA)
    set_processor(theirs.transformer)
    theirs(*make_rows(2), 500)
    with pytest.raises(ValueError, match=r"^editor: reads .*OtherProcessor of transformer_blocks\.0"):
        theirs(*make_rows(2), 500, wanted=1, reads=(1,))


def test_no_processor_keeps_what_a_pass_that_failed_would_have_read():
    theirs = DiffusersNetwork(make_variant(**VARIANTS["5B"]), SDPA)
    theirs.transformer.transformer_blocks[2].attn1.set_processor(OtherProcessor())
    wanted = run_diffusers(theirs.transformer, *make_rows(2), 500)
    with pytest.raises(ValueError, match=r"^editor: reads"):
        theirs(*make_rows(2), 500, wanted=1, reads=(1,))
    assert torch.equal(run_diffusers(theirs.transformer, *make_rows(2), 500), wanted)


def test_a_cache_carries_over_to_rows_of_the_same_form_and_window():
    theirs = DiffusersNetwork(make_variant(**VARIANTS["5B"]), SDPA)
    first, second = make_rows(2), [2.0 * one for one in make_rows(2)]
    plain = {timestep: [theirs(*rows, timestep) for rows in (first, second)] for timestep in (500, 400)}
    add_cache(theirs.transformer)
    theirs.start_stage()
    for timestep in (500, 400):
        found = [theirs(*rows, timestep) for rows in (first, second)]
        # At the first timestep there is nothing to carry over, not even from one window to the next.
        near = [relative_error(ours, wanted) <= 1e-5 for ours, wanted in zip(found, plain[timestep], strict=True)]
        assert near == [timestep == 500] * 2
        theirs(*make_rows(3), timestep)  # of another form
        theirs(*make_rows(2), timestep, wanted=1, reads=(1,))


def test_sharded_weights_are_named_or_act(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        transformer, rows = make_variant(**VARIANTS["5B"]), make_rows(2)
        wanted = run_diffusers(transformer, *rows, 500)
        theirs = DiffusersNetwork(transformer, SDPA)
        for block in (*transformer.transformer_blocks, transformer):
            fsdp.fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"^forward: fused .*forward='diffusers'"):
            Network(transformer, SDPA).start_stage()
        assert relative_error(theirs(*rows, 500), wanted) <= 1e-5
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("editor", [FlowEdit(), DirectInversion(), KVInjection()])
def test_a_job_by_diffusers_forward_gives_the_same_latents(tiny_model, editor):
    def run(forward):
        module = DDIMInversionModule.from_pretrained(
            str(tiny_model), device="cpu", inverter=UniInv(), editor=editor, guidance_scale=2.0,
            schedule=Schedule(num_inference_steps=4), runtime=Runtime(forward=forward),
        )  # fmt: skip
        latents = torch.randn(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(0))
        inversion = module.engine.invert(latents)
        request = EditRequest("a red circle", source_prompt="a square", guidance_scale=2.0)
        return inversion.levels, module.engine.reconstruct(inversion), module.engine.edit(inversion, request)

    for ours, theirs in zip(run("fused"), run("diffusers"), strict=True):
        assert relative_error(ours, theirs) <= 1e-4


def test_a_scheduler_and_a_transformer_cannot_be_replaced_in_silence(tiny_model):
    module = DDIMInversionModule.from_pretrained(str(tiny_model), device="cpu")
    other = CogVideoXDDIMScheduler.from_config(module.scheduler.config, snr_shift_scale=3.0)
    for name, value in (("scheduler", other), ("transformer", module.transformer)):
        with pytest.raises(AttributeError):
            setattr(module.components, name, value)
    before = module.engine.schedule
    module.scheduler = other
    assert module.engine.schedule != before


@pytest.mark.parametrize("option", [{"precision": "fp8"}, {"exported": "folder"}, {"offload": "blocks"}])
def test_what_only_our_forward_pass_can_do_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name}: must be .* with forward='diffusers'"):
        Runtime(forward="diffusers", **option)


def test_context_parallelism_of_diffusers_is_refused():
    """Its attention of CogVideoX would attend to the tokens of one process alone."""
    transformer = make_variant()
    plan = {"transformer_blocks.0": {"hidden_states": ContextParallelInput(1, 3)}, "proj_out": ContextParallelOutput(1)}
    apply_context_parallel(transformer, ContextParallelConfig(ulysses_degree=2), plan)
    for kind in (DiffusersNetwork, Network):
        with pytest.raises(ValueError, match=r"^forward: .* transformer\.transformer_blocks\.0"):
            kind(transformer, SDPA).start_stage()
