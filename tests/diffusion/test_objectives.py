"""Objectives as mathematics: gradients against finite differences, closed forms, and what they draw and ask for."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from ddim_lightning.diffusion import in_context_loss, inversion_consistency_loss, velocity_loss
from ddim_lightning.diffusion.objectives import (
    InContextEditing,
    InversionConsistency,
    Samples,
    TrainingLevels,
    Velocity,
    compute_losses,
)
from ddim_lightning.diffusion.objectives.levels import NoLevelError
from ddim_lightning.diffusion.steps import add_noise, make_velocity
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_noise_schedule, make_schedulers

SHAPE = (2, 3, 4, 2)  # f, c, h, w
TEXTS = {"": 0.1, "left": -0.4, "right": 0.7}


class SmallDenoiser:
    """A smooth `Predict` of two matrices; a row that reads another adds what it makes of it."""

    def __init__(self, weight, reading):
        self.weight, self.reading, self.asked = weight, reading, []

    def __call__(self, latents, prompts, timesteps, *, reads=()):
        self.asked.append((latents.detach(), list(prompts), timesteps.tolist(), reads))
        text = latents.new_tensor([TEXTS[prompt] for prompt in prompts]).view(-1, 1, 1, 1, 1)
        told = (timesteps.to(latents) / 1000).view(-1, 1, 1, 1, 1)
        velocity = torch.einsum("dc,bfchw->bfdhw", self.weight, torch.sin(latents + text + told))
        read = [torch.einsum("dc,fchw->fdhw", self.reading, torch.cos(latents[row] + text[row])) for row in reads]
        nothing = torch.zeros_like(velocity[0])
        return velocity + torch.stack(read + [nothing] * (len(latents) - len(reads)))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def levels():
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    return TrainingLevels.make(scheduler.alphas_cumprod)


@pytest.fixture
def model():
    return SmallDenoiser(draw(3, 3, seed=1), draw(3, 3, seed=2))


def make_angles(*angles):
    return torch.tensor(angles, dtype=torch.float64).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("gamma", [None, 0.3])
def test_the_gradient_of_the_velocity_loss(gamma):
    velocity = draw(2, *SHAPE).requires_grad_()
    angle = make_angles(0.4, 1.2)
    assert torch.autograd.gradcheck(
        lambda v: velocity_loss(v, draw(2, *SHAPE, seed=3), draw(2, *SHAPE, seed=4), angle, gamma), velocity
    )


def test_the_gradient_of_the_in_context_loss():
    pairs = Samples(draw(2, *SHAPE), ["left", ""], draw(1, *SHAPE, seed=5), ["right"], (0, 0))
    timesteps, angle, noise = torch.tensor([300, 800]), make_angles(0.5, 1.3), draw(2, *SHAPE, seed=6)

    def loss(weight, reading):
        return in_context_loss(SmallDenoiser(weight, reading), pairs, timesteps, angle, noise)

    assert torch.autograd.gradcheck(loss, (draw(3, 3, seed=1).requires_grad_(), draw(3, 3, seed=2).requires_grad_()))


def consistency(weight, gradients):
    model = SmallDenoiser(weight, torch.zeros(3, 3, dtype=torch.float64))
    timesteps, turn = torch.tensor([300, 800]), make_angles(0.2, 0.6)
    return inversion_consistency_loss(model, draw(2, *SHAPE), ["left", ""], timesteps, turn, gradients)


def test_the_gradient_of_inversion_consistency_through_both_calls():
    assert torch.autograd.gradcheck(lambda weight: consistency(weight, "both"), draw(3, 3, seed=1).requires_grad_())


def test_the_gradient_of_inversion_consistency_through_the_denoising_call_alone():
    weight = draw(3, 3, seed=1)
    latents, turn, prompts = draw(2, *SHAPE), make_angles(0.2, 0.6), ["left", ""]
    timesteps, still = torch.tensor([300, 800]), SmallDenoiser(weight, torch.zeros(3, 3, dtype=torch.float64))
    noisier = turn.cos() * latents + turn.sin() * still(latents, prompts, timesteps)

    def from_a_constant_latent(weight):
        velocity = SmallDenoiser(weight, torch.zeros(3, 3, dtype=torch.float64))(noisier, prompts, timesteps)
        return (turn.cos() * noisier - turn.sin() * velocity - latents).square().mean()

    first, second = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    consistency(first, "denoise").backward()
    from_a_constant_latent(second).backward()
    torch.testing.assert_close(first.grad, second.grad)
    torch.testing.assert_close(consistency(weight, "denoise"), consistency(weight, "both"))  # of one value


def test_the_exact_model_of_one_clip_is_consistent_in_one_step(levels):
    """Where clip and noise are the same for every latent the step and its inverse are one rotation, there and back."""
    clip, noise = draw(1, *SHAPE), draw(1, *SHAPE, seed=9)

    class Exact:
        def __init__(self):
            self.angles = iter((0.3, 0.9))

        def __call__(self, latents, prompts, timesteps, *, reads=()):
            return make_velocity(clip, noise, next(self.angles))

    cleaner = add_noise(clip, noise, 0.3)
    loss = inversion_consistency_loss(Exact(), cleaner, [""], torch.tensor([500]), make_angles(0.6), "both")
    assert float(loss) < 1e-28


def test_min_snr_is_the_weight_of_the_paper():
    error, angle = torch.full((3, *SHAPE), 0.5, dtype=torch.float64), make_angles(0.2, 1.0, math.pi / 2)
    zeros = torch.zeros_like(error)
    truth = make_velocity(zeros, zeros, angle)
    snr = angle.cos().square() / angle.sin().square()
    weight = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    torch.testing.assert_close(velocity_loss(truth + error, zeros, zeros, angle, 5.0), 0.25 * weight.mean())


def test_edits_are_noised_and_their_sources_are_not(levels, model):
    pairs = Samples(draw(3, *SHAPE), ["left"] * 3, draw(2, *SHAPE, seed=5), ["right", "right"], (1, 0, 1))
    objective = InContextEditing(source_timestep=7, source_caption_dropout=0.0, num_inference_steps=(4,))
    objective(model, pairs, levels, torch.Generator().manual_seed(0))
    ((rows, prompts, timesteps, reads),) = model.asked
    assert torch.equal(rows[3:], pairs.source_latents)
    assert not torch.isclose(rows[:3], pairs.latents).any()
    assert prompts == ["left"] * 3 + ["right"] * 2
    assert timesteps[3:] == [7, 7]
    assert set(timesteps[:3]) <= {999, 749, 499, 249}
    assert reads == (4, 3, 4)


def test_each_edit_reads_its_own_source_where_nothing_is_said(levels, model):
    pairs = Samples(draw(2, *SHAPE), ["left"] * 2, draw(2, *SHAPE, seed=5))
    InContextEditing()(model, pairs, levels, torch.Generator().manual_seed(0))
    assert model.asked[0][1:] == (["left", "left", "", ""], model.asked[0][2], (2, 3))


def test_captions_are_dropped_with_their_chance(levels, model):
    pairs = Samples(draw(400, *SHAPE), ["left"] * 400, draw(400, *SHAPE), ["right"] * 400)
    InContextEditing(source_caption_dropout=0.5)(model, pairs, levels, torch.Generator().manual_seed(0), 0.2)
    prompts = model.asked[0][1]
    assert 60 < prompts[:400].count("") < 100
    assert 170 < prompts[400:].count("") < 230


def test_consistency_takes_two_evaluations_at_the_steps_of_an_inversion(levels, model):
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    schedule = make_noise_schedule(scheduler, 7)
    samples = Samples(draw(14, *SHAPE), ["left"] * 14)
    InversionConsistency(num_inference_steps=7)(model, samples, levels, torch.Generator().manual_seed(0), 0.5)
    (first, prompts, told, _), (second, _, told_again, _) = model.asked
    whole = sum(step.angle - step.angle_next for step in schedule)
    for step in schedule:  # each as often as it turns far
        share = (step.angle - step.angle_next) / whole
        assert abs(told.count(step.timestep) - 14 * share) <= 1
    assert told == told_again
    assert prompts == [""] * 14
    noise = torch.randn(samples.latents.shape, generator=skip(torch.Generator().manual_seed(0), 14)).double()
    for row, timestep in enumerate(told):
        step = schedule[schedule.timesteps.index(timestep)]
        torch.testing.assert_close(first[row], add_noise(samples.latents[row], noise[row], step.angle_next))
        velocity = SmallDenoiser(model.weight, model.reading)(first[row : row + 1], [""], torch.tensor([timestep]))[0]
        turn = step.angle - step.angle_next
        torch.testing.assert_close(second[row], math.cos(turn) * first[row] + math.sin(turn) * velocity)


def skip(generator, count):
    """Draw what timesteps draw."""
    torch.randperm(count, generator=generator), torch.rand(count, generator=generator)
    return generator


def test_consistency_under_the_captions(levels, model):
    InversionConsistency(prompt=None)(model, Samples(draw(1, *SHAPE), ["left"]), levels, torch.Generator())
    assert [asked[1] for asked in model.asked] == [["left"], ["left"]]


def test_objectives_add_up_by_their_weights_and_the_first_draws_as_alone(levels, model):
    samples = Samples(draw(2, *SHAPE), ["left", "right"])
    objectives = Velocity(weight=2.0), InversionConsistency(weight=0.25)
    total, losses = compute_losses(objectives, model, samples, levels, torch.Generator().manual_seed(3), 0.5)
    torch.testing.assert_close(total, 2.0 * losses["Velocity"] + 0.25 * losses["InversionConsistency"])
    assert losses["Velocity"] == Velocity()(model, samples, levels, torch.Generator().manual_seed(3), 0.5)


@pytest.mark.parametrize("count", [1, 4, 7, 48, 50, 96, 1000])
def test_the_levels_of_a_sampling_are_those_of_its_schedule(levels, count):
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    assert tuple(levels.list_timesteps(count)) == make_noise_schedule(scheduler, count).timesteps


def test_levels_are_drawn_one_from_each_part(levels):
    drawn = levels.draw(5, torch.Generator().manual_seed(0), (10,))
    assert sorted(int(t) // 200 for t in drawn) == [0, 1, 2, 3, 4]
    assert set(drawn.tolist()) <= set(levels.list_timesteps(10))
    twice = levels.draw(3000, torch.Generator().manual_seed(0), (2, 1)).tolist()  # 999 and 499, and 999
    assert (twice.count(999), twice.count(499)) == (2000, 1000)


def test_levels_are_drawn_from_one_part_where_they_are_divided(levels):
    parts = levels.divide(3)
    assert [timestep for one in parts for timestep in one.part] == list(range(1000))
    for one in parts:
        drawn = one.draw(500, torch.Generator().manual_seed(0)).tolist()
        assert set(drawn) <= set(one.part)
        assert len({timestep // 10 for timestep in drawn}) > 30  # all over the part
        steps = one.draw_steps(50, torch.Generator().manual_seed(0), 10)
        assert {levels.list_timesteps(10)[step] for step in steps} == set(levels.list_timesteps(10)) & set(one.part)
    with pytest.raises(NoLevelError, match=r"999.*range\(0, 333\)"):
        parts[0].draw(2, torch.Generator().manual_seed(0), (1,))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("weight", lambda: Velocity(weight=0.0)),
        ("weight", lambda: InversionConsistency(weight=math.inf)),
        ("min_snr_gamma", lambda: Velocity(min_snr_gamma=-1.0)),
        ("num_inference_steps", lambda: Velocity(num_inference_steps=(4, 0))),
        ("num_inference_steps", lambda: InversionConsistency(num_inference_steps=0)),
        ("gradients", lambda: InversionConsistency(gradients="none")),
        ("source_timestep", lambda: InContextEditing(source_timestep=-1)),
        ("source_caption_dropout", lambda: InContextEditing(source_caption_dropout=1.1)),
        ("prompts", lambda: Samples(draw(2, *SHAPE), ["left"])),
        ("source_prompts", lambda: Samples(draw(2, *SHAPE), ["left"] * 2, draw(2, *SHAPE), ["left"])),
        ("sources", lambda: Samples(draw(2, *SHAPE), ["left"] * 2, draw(1, *SHAPE))),
        ("sources", lambda: Samples(draw(2, *SHAPE), ["left"] * 2, draw(1, *SHAPE), sources=(0, 1))),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, make):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        make()


def test_pairs_without_a_source_and_steps_beyond_the_schedule_are_refused(levels, model):
    clips, generator = Samples(draw(1, *SHAPE), ["left"]), torch.Generator()
    with pytest.raises(ValueError, match=r"^source_latents: "):
        InContextEditing()(model, clips, levels, generator)
    with pytest.raises(ValueError, match=r"^num_inference_steps: must be 1 \.\. 1000, got 1001"):
        InversionConsistency(num_inference_steps=1001)(model, clips, levels, generator)
    for objectives in ((), (Velocity(), Velocity(weight=2.0))):
        with pytest.raises(ValueError, match=r"^objectives: "):
            compute_losses(objectives, model, clips, levels, generator)


def test_the_functions_need_torch_alone():
    code = (
        "import sys; from ddim_lightning.diffusion import velocity_loss, in_context_loss, inversion_consistency_loss; "
        "print(*{'diffusers', 'lightning', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
