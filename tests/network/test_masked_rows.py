"""Rows of the tokens inside a mask alone, against all of their tokens with the others overwritten in each layer."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.block import run_block
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.held import HeldRows
from ddim_lightning.network.network import Network
from ddim_lightning.network.token_masks import split_tokens
from ddim_lightning.runtime.compile import apply_compile
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error

BUFFERED = Attention("buffered", sdpa_attention)
PASSES = {
    "guided": {"wanted": 2, "reads": (2, 2), "kv_scale": torch.zeros(3)},
    "guided, and reading": {"wanted": 2, "reads": (2, 2), "kv_scale": None},
    "reading a little in one layer": {"reads": (2, 2), "kv_scale": torch.tensor([0.0, 0.3, 0.0])},
    "paired": {"wanted": 2, "reads": (2, 3), "kv_scale": torch.tensor([1.0, 0.5, 0.2])},
    "under two noises": {"reads": (4, 4, 5, 5), "kv_scale": torch.full((3,), 0.08)},
}


def make_mask(transformer, *boxes):
    """One box of latents a frame; a latent of a patch is enough."""
    mask = torch.zeros(1, 3 + -3 % (transformer.config.patch_size_t or 1), 1, 8, 12)
    for frame, (top, bottom, left, right) in enumerate(boxes):
        mask[0, frame, 0, top:bottom, left:right] = 1.0
    return mask


SMALL = ((1, 3, 2, 7), (3, 4, 5, 6))
LARGE = ((0, 8, 0, 10), (1, 7, 2, 12), (5, 8, 0, 3))


def evaluate_everywhere(network, latents, embeds, masks, **options):
    """Evaluate all tokens of all rows, those outside of a mask overwritten by the source's before each layer."""
    splits = [None if mask is None else split_tokens(network.transformer.config, mask) for mask in masks]

    def overwrite(video, *arguments):
        video = video.clone()
        for row, split in enumerate(splits):
            if split is not None:
                video[row, split.outside] = video[options["reads"][row], split.outside]
        return run_block(video, *arguments)

    network = Network(network.transformer, network.attention)
    network.run_block = overwrite
    return network(latents, embeds, 500, **options | {"wanted": None})


def spread(transformer, mask):
    """Where the velocity of a row is its own: whole patches."""
    patch, patch_frames = transformer.config.patch_size, transformer.config.patch_size_t or 1
    grid = mask[0, :, 0].unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).unflatten(0, (-1, patch_frames))
    own = grid.amax(dim=(1, 3, 5))
    for axis, times in enumerate((patch_frames, patch, patch)):
        own = own.repeat_interleave(times, dim=axis)
    return own[:, None]


def check(network, rows, masks, *, held=None, **options):
    latents, embeds = rows
    wanted, readers = options.get("wanted") or len(latents), len(options["reads"])
    exact = evaluate_everywhere(network, latents, embeds, masks, held=held, **options)
    ours = network(latents, embeds, 500, masks=masks, held=held, **options)
    assert len(ours) == wanted
    for row in range(wanted):
        mask = masks[row] if row < readers else None
        own = torch.ones(()) if mask is None else spread(network.transformer, mask)
        assert relative_error(ours[row], own * exact[row]) <= 1e-5
        assert (ours[row] * (1 - own) == 0).all()
    plain = network(latents, embeds, 500, **options)
    assert relative_error(ours[0], spread(network.transformer, masks[0]) * plain[0]) > 1e-4  # another definition


@pytest.mark.parametrize("attention", [SDPA, BUFFERED], ids=["lse", "one buffer"])
@pytest.mark.parametrize("case", PASSES)
def test_the_tokens_inside_are_those_of_the_full_computation(case, attention):
    network, rows = Network(make_variant(**VARIANTS["5B"]), attention), make_rows(6)
    small, large = (make_mask(network.transformer, *boxes) for boxes in (SMALL, LARGE))
    rows, readers = tuple(x[: 4 if "two" not in case else 6] for x in rows), len(PASSES[case]["reads"])
    for together in (6, 1):
        network.choose_rows = lambda *_, together=together: together
        for masks in ([small] * readers, [large, None, small, large][:readers]):
            check(network, rows, masks, **PASSES[case])


@pytest.mark.parametrize("name", ["2B", "1.5-5B"])
def test_other_models(name):
    network = Network(make_variant(**VARIANTS[name]), SDPA)
    masks = [make_mask(network.transformer, *SMALL)] * 2
    check(network, make_rows(3, network.transformer.config), masks, **PASSES["guided, and reading"])


def test_beside_what_is_held():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(4)
    held = HeldRows([network.hold(latents[3:], embeds[3:], 3)], (0, 0, 0))
    masks = [make_mask(network.transformer, *SMALL)] * 2
    check(network, (latents[:3], embeds[:3]), masks, held=held, **PASSES["guided, and reading"])


def test_a_mask_of_everything_and_of_nothing():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(3)
    everything = torch.ones(1, 3, 1, 8, 12)
    reading = {"wanted": 2, "reads": (2, 2), "kv_scale": torch.tensor([0.0, 0.3, 1.0])}
    whole = network(latents, embeds, 500, **reading)
    assert relative_error(network(latents, embeds, 500, masks=[everything] * 2, **reading), whole) <= 1e-5
    nothing = network(latents, embeds, 500, masks=[1 - everything] * 2, **reading)
    assert nothing.shape == whole.shape and not nothing.any()


def test_a_mask_that_is_changed_in_place_is_seen():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(2)
    mask = make_mask(network.transformer, *SMALL)
    before = network(latents, embeds, 500, reads=(1,), masks=[mask])
    mask.fill_(1.0)
    assert relative_error(network(latents, embeds, 500, reads=(1,), masks=[mask]), before) > 0.1


def test_several_videos_and_other_forward_passes_are_refused():
    transformer, (latents, embeds) = make_variant(**VARIANTS["5B"]), make_rows(2)
    mask = make_mask(transformer, *SMALL)
    with pytest.raises(ValueError, match=r"^mask: .* got 2$"):
        Network(transformer, SDPA)(latents, embeds, 500, reads=(1,), masks=[mask.expand(2, -1, -1, -1, -1)])
    with pytest.raises(ValueError, match=r"^masks: .*forward='diffusers'"):
        DiffusersNetwork(transformer, SDPA)(latents, embeds, 500, reads=(1,), masks=[mask])


@pytest.mark.slow
def test_compiled_one_graph_serves_masks_of_any_size():
    network, (latents, embeds) = Network(make_variant(**VARIANTS["5B"]), SDPA), make_rows(3)
    options = {"wanted": 2, "reads": (2, 2), "kv_scale": torch.full((3,), 0.3)}
    masks = [make_mask(network.transformer, *boxes) for boxes in (SMALL, LARGE, SMALL[:1], LARGE[:2])]
    eager = [network(latents, embeds, 500, masks=[mask] * 2, **options) for mask in masks]
    apply_compile(network, True)
    torch._dynamo.utils.counters.clear()
    for mask, theirs in zip(masks, eager, strict=True):
        assert relative_error(network(latents, embeds, 500, masks=[mask] * 2, **options), theirs) <= 1e-5
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 + 1
    )  # the source with and without its own tokens going on, and those under the mask
