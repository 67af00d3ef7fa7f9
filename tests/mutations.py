"""Break the mathematics in listed ways, one at a time, and see whether the named test notices.

    python tests/mutations.py [PART OF A NAME]

Every mutation is applied to a temporary copy of the package; the tree itself is never changed. The exit status is 1
when a mutation survives, when its text is not found exactly once, or when a named test fails without any mutation.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("ddim_lightning", "tests", "configs", "setup.cfg")


@dataclass(frozen=True)
class Mutation:
    """One listed fault.

    Args:
        name: What goes wrong, in words.
        file: Relative to ``ddim_lightning/``.
        old: The text that is replaced; must occur exactly once.
        new: What it is replaced with.
        test: The test that must fail, relative to ``tests/``.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "the sign of the rotation",
        "diffusion/steps.py",
        "return math.cos(angle) * latents - math.sin(angle) * velocity",
        "return math.cos(angle) * latents + math.sin(angle) * velocity",
        "diffusion/test_steps.py::test_forward_step_is_the_textbook_ddim_step",
    ),
    Mutation(
        "the inverse step turns the wrong way",
        "diffusion/steps.py",
        "return rotate(latents, velocity, step.angle_next - step.angle)",
        "return rotate(latents, velocity, step.angle - step.angle_next)",
        "diffusion/test_steps.py::test_inverse_step_rotates_from_the_cleaner_level",
    ),
    Mutation(
        "cos for sin in the solved forward step",
        "diffusion/steps.py",
        "return (latents + math.sin(h) * velocity) / math.cos(h)",
        "return (latents + math.cos(h) * velocity) / math.cos(h)",
        "diffusion/test_steps.py::test_solving_undoes_the_forward_step",
    ),
    Mutation(
        "the solved forward step is not divided by the cosine",
        "diffusion/steps.py",
        "return (latents + math.sin(h) * velocity) / math.cos(h)",
        "return latents + math.sin(h) * velocity",
        "diffusion/test_inverters.py::test_uni_inv_climbs_as_published",
    ),
    Mutation(
        "noise and signal swapped in the training target",
        "diffusion/steps.py",
        "return cos * noise - sin * denoised",
        "return cos * denoised - sin * noise",
        "diffusion/test_steps.py::test_velocity_loss_is_zero_for_the_truth_and_counts_every_element",
    ),
    Mutation(
        "angles measured from the other axis",
        "diffusion/schedule.py",
        "return math.atan2(math.sqrt(1.0 - alpha_cumprod), math.sqrt(alpha_cumprod))",
        "return math.atan2(math.sqrt(alpha_cumprod), math.sqrt(1.0 - alpha_cumprod))",
        "diffusion/test_schedule.py::test_angle_is_zero_when_clean_and_a_right_angle_at_zero_snr",
    ),
    Mutation(
        "each step leads to the level it came from",
        "diffusion/schedule.py",
        "self.angles[1:][i])",
        "self.angles[:-1][i])",
        "diffusion/test_schedule.py::test_table_joins_neighbouring_levels",
    ),
    Mutation(
        "the level of a neighbouring timestep",
        "diffusion/schedule.py",
        "levels = [float(alphas_cumprod[t]) for t in timesteps]",
        "levels = [float(alphas_cumprod[t - 1]) for t in timesteps]",
        "diffusion/test_schedule.py::test_odd_step_counts_hit_their_own_timesteps",
    ),
    Mutation(
        "guidance extrapolates from the prompt",
        "diffusion/guidance.py",
        "return negative + scale * (positive - negative)",
        "return positive + scale * (positive - negative)",
        "diffusion/test_guidance.py::test_combination_extrapolates_from_the_negative_through_the_positive",
    ),
    Mutation(
        "guidance away from the prompt",
        "diffusion/guidance.py",
        "return negative + scale * (positive - negative)",
        "return positive + scale * (negative - positive)",
        "models/test_denoiser.py::test_guidance_is_two_rows_combined",
    ),
    Mutation(
        "DDIM is told the timestep it leaves",
        "diffusion/inverters/ddim.py",
        "velocity_fn(latents, table[i])",
        "velocity_fn(latents, table[min(i + 1, len(table) - 1)])",
        "diffusion/test_inverters.py::test_ddim_climbs_as_the_diffusers_formula",
    ),
    Mutation(
        "Uni-Inv does not predict",
        "diffusion/inverters/predictor.py",
        "return inverse_step(latents, velocities[0], step)",
        "return latents",
        "diffusion/test_inverters.py::test_uni_inv_climbs_as_published",
    ),
    Mutation(
        "Uni-Inv predicts downwards",
        "diffusion/inverters/predictor.py",
        "return inverse_step(latents, velocities[0], step)",
        "return 2 * latents - inverse_step(latents, velocities[0], step)",
        "diffusion/test_inverters.py::test_round_trip_orders",
    ),
    Mutation(
        "the levels are kept from clean to noise",
        "diffusion/loop.py",
        "torch.stack(levels[::-1])",
        "torch.stack(levels)",
        "diffusion/test_inverters.py::test_levels_run_from_noise_to_clean_and_the_callback_sees_each",
    ),
    Mutation(
        "the inversion ignores its prompt",
        "diffusion/loop.py",
        "model, calls = make_velocity_fn(denoiser, prompt), 0",
        'model, calls = make_velocity_fn(denoiser, ""), 0',
        "diffusion/test_inverters.py::test_uni_inv_climbs_as_published",
    ),
    Mutation(
        "the reconstruction forgets the prompt of the inversion",
        "diffusion/loop.py",
        "make_velocity_fn(denoiser, inversion.prompt)",
        'make_velocity_fn(denoiser, "")',
        "diffusion/test_inverters.py::test_round_trip",
    ),
    Mutation(
        "the residual is not added",
        "diffusion/loop.py",
        "return state[0] if inversion.residual is None else state[0] + inversion.residual",
        "return state[0]",
        "diffusion/test_inverters.py::test_uni_inv_comes_back_far_better_than_ddim",
    ),
    Mutation(
        "the residual with the wrong sign",
        "diffusion/loop.py",
        "residual = latents - landed",
        "residual = landed - latents",
        "diffusion/test_inverters.py::test_residual_is_what_the_last_step_misses",
    ),
    Mutation(
        "the residual of the clean level itself",
        "diffusion/loop.py",
        "(levels[1],)",
        "(levels[0],)",
        "diffusion/test_inverters.py::test_residual_is_what_the_last_step_misses",
    ),
    Mutation(
        "the source row stands one level too far",
        "diffusion/editors/kv_injection.py",
        "self._make_source(inversion.levels[step.i], target",
        "self._make_source(inversion.levels[step.i + 1], target",
        "diffusion/test_editors.py::test_default_is_one_shared_source_row_on_the_trajectory",
    ),
    Mutation(
        "the source prompt is ignored",
        "diffusion/editors/base.py",
        "return inversion.prompt if request.source_prompt is None else request.source_prompt",
        "return inversion.prompt",
        "diffusion/test_editors.py::test_shared_row_is_told_the_source_prompt_when_there_is_one",
    ),
    Mutation(
        "the source prompt where the inversion's belongs",
        "diffusion/editors/base.py",
        "return inversion.prompt if request.source_prompt is None else request.source_prompt",
        'return request.source_prompt or ""',
        "diffusion/test_editors.py::test_default_is_one_shared_source_row_on_the_trajectory",
    ),
    Mutation(
        "the random start is not drawn from the generator",
        "diffusion/steps.py",
        "torch.randn(like.shape, generator=generator, dtype=like.dtype)",
        "torch.randn(like.shape, dtype=like.dtype)",
        "diffusion/test_editors.py::test_random_start_depends_on_the_seed_alone",
    ),
    Mutation(
        "the iterations on the step from clean are one too few",
        "diffusion/inverters/uni_inv.py",
        "else self.first_step_iterations",
        "else max(0, self.first_step_iterations - 1)",
        "diffusion/test_inverters.py::test_uni_inv_climbs_as_published",
    ),
    Mutation(
        "the extra_evals calls are never spent up",
        "diffusion/inverters/uni_inv.py",
        "spent = spent + again if velocities else spent",
        "spent = spent",
        "diffusion/test_inverters.py::test_uni_inv_spends_no_more_than_it_needs",
    ),
    Mutation(
        "the extra_evals calls go to the cleaner half",
        "diffusion/inverters/uni_inv.py",
        "if i >= len(table) // 2 or",
        "if i < len(table) // 2 or",
        "diffusion/test_inverters.py::test_uni_inv_spends_its_spare_calls_where_a_prediction_was_poor",
    ),
    Mutation(
        "a good prediction is taken for a poor one",
        "diffusion/inverters/uni_inv.py",
        ".norm() > self.tolerance",
        ".norm() < self.tolerance",
        "diffusion/test_inverters.py::test_uni_inv_spends_no_more_than_it_needs",
    ),
    Mutation(
        "the fixed point is evaluated where it began",
        "diffusion/inverters/fixed_point.py",
        "velocity = velocity_fn(point, table[i])",
        "velocity = velocity_fn(latents, table[i])",
        "diffusion/test_inverters.py::test_fixed_point_contracts_from_the_prediction",
    ),
    Mutation(
        "the line through the velocities runs backwards",
        "diffusion/inverters/predictor.py",
        "last + ratio * (last - before)",
        "last - ratio * (last - before)",
        "diffusion/test_inverters.py::test_uni_inv_carries_the_last_two_velocities_on",
    ),
    Mutation(
        "the line is extended by the wrong step",
        "diffusion/inverters/predictor.py",
        "(table[i + 1].angle - table[i + 1].angle_next)",
        "(step.angle - step.angle_next)",
        "diffusion/test_inverters.py::test_uni_inv_carries_the_last_two_velocities_on",
    ),
    Mutation(
        "the fixed point stops when it moves far",
        "diffusion/inverters/fixed_point.py",
        ".norm()) <= self.tolerance",
        ".norm()) >= self.tolerance",
        "diffusion/test_inverters.py::test_fixed_point_stops_where_it_is_told",
    ),
    Mutation(
        "the residual of a fixed point is dropped",
        "diffusion/loop.py",
        "residual = latents - landed",
        "residual = None",
        "diffusion/test_inverters.py::test_round_trip",
    ),
    Mutation(
        "BDIA adds the velocity with the wrong sign",
        "diffusion/inverters/bdia.py",
        "cleaner - cos * latents + sin *",
        "cleaner - cos * latents - sin *",
        "diffusion/test_inverters.py::test_bdia_is_the_papers_recursion",
    ),
    Mutation(
        "BDIA is told the timestep of the next level on its way up",
        "diffusion/inverters/bdia.py",
        "table[i + 1]), latents)",
        "table[i]), latents)",
        "diffusion/test_inverters.py::test_bdia_is_the_papers_recursion",
    ),
    Mutation(
        "BDIA is told the timestep of the last level on its way down",
        "diffusion/inverters/bdia.py",
        "table[i + 1]))",
        "table[i]))",
        "diffusion/test_inverters.py::test_exact_methods_come_back_exactly",
    ),
    Mutation(
        "BDIA takes its two steps in the wrong order",
        "diffusion/inverters/bdia.py",
        "(table[i - 1], table[i])",
        "(table[i], table[i - 1])",
        "diffusion/test_inverters.py::test_bdia_is_the_papers_recursion",
    ),
    Mutation(
        "EditFriendly adds the map of another step",
        "diffusion/inverters/edit_friendly.py",
        "state[1][step.i]",
        "state[1][step.i - 1]",
        "diffusion/test_inverters.py::test_exact_methods_come_back_exactly",
    ),
    Mutation(
        "EditFriendly keeps its maps from clean to noise",
        "diffusion/inverters/edit_friendly.py",
        "maps = [cleaner - ddpm_mean(latents, velocity_fn(latents, step), step), *maps]",
        "maps = [*maps, cleaner - ddpm_mean(latents, velocity_fn(latents, step), step)]",
        "diffusion/test_inverters.py::test_edit_friendly_is_ddpm_with_its_own_noise_maps",
    ),
    Mutation(
        "EditFriendly has one noise for all levels",
        "diffusion/inverters/edit_friendly.py",
        "int(seed) + i",
        "int(seed)",
        "diffusion/test_inverters.py::test_edit_friendly_noises_each_level_by_itself_from_the_generator",
    ),
    Mutation(
        "the deviation of a DDPM step is too large",
        "diffusion/inverters/edit_friendly.py",
        "math.sqrt(1.0 - ratio**2)",
        "math.sqrt(1.0 - ratio**4)",
        "diffusion/test_inverters.py::test_edit_friendly_is_ddpm_with_its_own_noise_maps",
    ),
    Mutation(
        "the source runs free of the trajectory",
        "diffusion/editors/kv_injection.py",
        ' if self.source == "replayed" else None',
        "",
        "diffusion/test_editors.py::test_the_source_row_that_enters_the_transformer_is_the_trajectory_bit_for_bit",
    ),
    Mutation(
        "replay corrects towards the level it came from",
        "diffusion/editors/kv_injection.py",
        "missed = levels[step.i + 1] -",
        "missed = levels[step.i] -",
        "diffusion/test_residual_replay.py::test_each_step_adds_what_it_misses_on_the_trajectory",
    ),
    Mutation(
        "replay measures what the edit misses",
        "diffusion/editors/kv_injection.py",
        "land(levels[step.i], stored,",
        "land(latents, stored,",
        "diffusion/test_residual_replay.py::test_each_step_adds_what_it_misses_on_the_trajectory",
    ),
    Mutation(
        "edits under one seed share no noised source",
        "diffusion/editors/flow_edit.py",
        "name = (state.seed, step.i, draw)",
        "name = (id(state), step.i, draw)",
        "diffusion/test_editors.py::test_planned_rows_are_the_rows_asked_for",
    ),
    Mutation(
        "every step is replayed",
        "diffusion/editors/direct_inversion.py",
        "pick(self.replay_steps, len(table))",
        "range(len(table))",
        "diffusion/test_residual_replay.py::test_each_step_adds_what_it_misses_on_the_trajectory",
    ),
    Mutation(
        "the inversion-free difference with the wrong sign",
        "diffusion/editors/flow_edit.py",
        "moved += get_denoised(target",
        "moved -= get_denoised(target",
        "diffusion/test_inversion_free.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "the inversion-free source is noised to the next level",
        "diffusion/editors/flow_edit.py",
        "add_noise(clean, noise, step.angle)",
        "add_noise(clean, noise, step.angle_next)",
        "diffusion/test_inversion_free.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "the inversion-free ratio is one level off",
        "diffusion/editors/flow_edit.py",
        "ratio = math.cos(step.angle) * math.sin(step.angle_next)",
        "ratio = math.cos(step.angle_next) * math.sin(step.angle_next)",
        "diffusion/test_inversion_free.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "Anderson's share has the wrong sign",
        "diffusion/inverters/fixed_point.py",
        "return solved - share",
        "return solved + share",
        "diffusion/test_inverters.py::test_acceleration_solves_an_affine_step_at_its_second_call",
    ),
    Mutation(
        "inversion-free noises have no negatives",
        "diffusion/editors/flow_edit.py",
        "noise = -noise if draw % 2 else noise",
        "noise = noise if draw % 2 else noise",
        "diffusion/test_inversion_free.py::test_every_second_draw_is_the_negative_of_the_one_before",
    ),
    Mutation(
        "an inversion-free edit reads the source of another draw",
        "diffusion/editors/flow_edit.py",
        "reads = len(branches) + 1 if",
        "reads = 1 if",
        "diffusion/test_inversion_free.py::test_each_draw_of_the_edit_reads_the_source_under_the_same_noise",
    ),
    Mutation(
        "inversion-free draws are added instead of averaged",
        "diffusion/editors/flow_edit.py",
        "moved / self.num_noise_samples",
        "moved",
        "diffusion/test_inversion_free.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "K-order noise sums one power too far",
        "diffusion/editors/starts.py",
        "noise**k for k in range(order)",
        "noise**k for k in range(order + 1)",
        "diffusion/test_starts.py::test_k_rnr_is_its_recursion",
    ),
    Mutation(
        "the steps before the first are taken all the same",
        "diffusion/loop.py",
        "list(inversion.table)[editor.get_first_step(len(inversion.table)) :]",
        "list(inversion.table)",
        "diffusion/test_editors.py::test_a_later_start_leaves_the_first_steps_out",
    ),
    Mutation(
        "guidance outside its window",
        "diffusion/editors/base.py",
        "if guided else 1.0",
        "if not guided else 1.0",
        "diffusion/test_editors.py::test_guidance_has_a_window_of_steps",
    ),
    Mutation(
        "the mask is inverted",
        "diffusion/editors/base.py",
        "outside + mask * (latents - outside)",
        "latents + mask * (outside - latents)",
        "diffusion/test_masks.py::test_outside_a_mask_the_video_stays_exactly_as_it_was",
    ),
    Mutation(
        "outside the mask stands the level before",
        "diffusion/editors/base.py",
        "apply_mask(state, latents, inversion.levels[step.i + 1])",
        "apply_mask(state, latents, inversion.levels[step.i])",
        "diffusion/test_masks.py::test_outside_a_mask_the_video_stays_exactly_as_it_was",
    ),
    Mutation(
        "frames and latent frames begin together",
        "diffusion/masks.py",
        "[mask[:1].expand(temporal - 1, -1, -1), mask]",
        "[mask, mask[-1:].expand(temporal - 1, -1, -1)]",
        "diffusion/test_masks.py::test_one_pixel_of_one_frame_lights_one_latent",
    ),
    Mutation(
        "the mask is found where the prompts agree",
        "diffusion/masks.py",
        "smooth >= threshold * largest",
        "smooth <= threshold * largest",
        "diffusion/test_masks.py::test_a_mask_is_found_where_the_prompts_differ",
    ),
    Mutation(
        "merged branches read by their old places",
        "diffusion/loop.py",
        "branch if branch.reads is None else replace(branch, reads=order.index(key[-1]))",
        "branch",
        "diffusion/test_edit_together.py::test_merging_keeps_what_each_branch_reads_and_wants",
    ),
    Mutation(
        "merging asks only what the first edit wants",
        "diffusion/loop.py",
        "wanted=known.wanted or branch.wanted",
        "wanted=known.wanted",
        "diffusion/test_edit_together.py::test_merging_keeps_what_each_branch_reads_and_wants",
    ),
    Mutation(
        "equal branches of one edit are merged",
        "diffusion/loop.py",
        "return (k, latents, branch.prompt",
        "return (latents, branch.prompt",
        "diffusion/test_editors.py::test_an_edit_to_the_source_itself_is_no_shortcut",
    ),
    Mutation(
        "a free source shares its first row",
        "diffusion/editors/kv_injection.py",
        "inversion.levels[first].clone()",
        "inversion.levels[first]",
        "diffusion/test_editors.py::test_planned_rows_are_the_rows_asked_for",
    ),
    Mutation(
        "the clean level is left out instead of the noise",
        "models/schedulers.py",
        "timesteps if zero_snr else timesteps[1:]",
        "timesteps if zero_snr else timesteps[:-1]",
        "models/test_schedulers.py::test_without_zero_snr_exactly_the_first_level_is_left_out",
    ),
    Mutation(
        "even angles begin one step late",
        "models/schedulers.py",
        "angles[-1] - i * turn",
        "angles[-1] - (i + 1) * turn",
        "models/test_schedulers.py::test_angle_spacing_makes_every_step_the_same_rotation",
    ),
    Mutation(
        "the inverse scheduler is left unrepaired",
        "models/schedulers.py",
        "    inverse.alphas_cumprod = scheduler.alphas_cumprod.clone()\n",
        "",
        "models/test_schedulers.py::test_both_schedulers_have_the_published_schedule",
    ),
    Mutation(
        "the kv_scale per layer is not passed on",
        "models/forward.py",
        "kv_scales[k] if kv_scales is not None and layout.reads else None",
        "None",
        "models/test_denoiser.py::test_strength_is_per_layer",
    ),
    Mutation(
        "the kv_scale of the first layer for all",
        "models/forward.py",
        "kv_scales[k] if kv_scales",
        "kv_scales[0] if kv_scales",
        "models/test_denoiser.py::test_strength_is_per_layer",
    ),
    Mutation(
        "the kv_scale weighs the row's own keys",
        "models/attention.py",
        "odds if kv_scale is None else odds - kv_scale.log()",
        "odds if kv_scale is None else odds + kv_scale.log()",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "the shares of own and read keys are swapped",
        "models/attention.py",
        "torch.lerp(read, own[:readers],",
        "torch.lerp(own[:readers], read,",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "the kv_scale weighs the row's own keys in the buffer",
        "models/attention.py",
        "torch.cat([query.new_zeros(tokens), kv_scale.log().to(query.dtype).expand(tokens)])",
        "torch.cat([kv_scale.log().to(query.dtype).expand(tokens), query.new_zeros(tokens)])",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "rows read themselves instead of the source",
        "models/attention.py",
        "read_key, read_value = query[:readers], pick_rows(key, reads), pick_rows(value, reads)",
        "read_key, read_value = query[:readers], key[:readers], value[:readers]",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "rows picked out of order are taken for neighbours",
        "models/attention.py",
        "return torch.stack([rows[row] for row in picked])",
        "return rows[first : first + count]",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "the source's values are read under the own keys",
        "models/attention.py",
        "pick_rows(key, reads), pick_rows(value, reads)",
        "pick_rows(key, reads), value[:readers][: len(set(reads))]",
        "models/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "video and text swap their modulation",
        "models/block.py",
        "(video_in, text_in), (video_ff, text_ff) = modulation.unbind(0)",
        "(text_in, video_in), (text_ff, video_ff) = modulation.unbind(0)",
        "models/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "the norms of queries and keys are swapped",
        "models/block.py",
        "weights.norm_query(query), weights.norm_key(key)",
        "weights.norm_key(query), weights.norm_query(key)",
        "models/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "the norm's own bias is not scaled",
        "models/weights.py",
        "norm.bias * scale + shift",
        "norm.bias + shift",
        "models/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "scale and shift of the last norm are swapped",
        "models/weights.py",
        "shift, scale = transformer.norm_out",
        "scale, shift = transformer.norm_out",
        "models/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "the gate before the feed-forward part stands for both",
        "models/block.py",
        "tokens[:, num_text:], video_ff[2])",
        "tokens[:, num_text:], video_in[2])",
        "models/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "the rotation turns the other way",
        "models/block.py",
        "torch.stack([-second, first]",
        "torch.stack([second, -first]",
        "models/test_network.py::test_both_forms_of_the_rotation_are_diffusers",
    ),
    Mutation(
        "what a timestep decides is remembered when weights change",
        "models/network.py",
        "if versions != self._versions:",
        "if not self._versions:",
        "models/test_network.py::test_weights_that_change_are_seen",
    ),
    Mutation(
        "fused weights are kept when the model moves",
        "models/network.py",
        "if not self._blocks or not all(map(is_current, self._blocks, modules)):",
        "if not self._blocks:",
        "models/test_network.py::test_weights_that_change_are_seen",
    ),
    Mutation(
        "source rows end a layer early",
        "models/forward.py",
        "goes_on = rows if k < last else layout.wanted",
        "goes_on = rows if k < last - 1 else layout.wanted",
        "models/test_network.py::test_rows_that_are_only_read_end_at_the_last_layer_that_reads_them",
    ),
    Mutation(
        "a stride counts from the first step of the table",
        "diffusion/editors/base.py",
        "(step.i - self.get_first_step(len(table))) % self.stride == 0",
        "step.i % self.stride == 0",
        "diffusion/test_stride.py::test_steps_between_take_the_velocity_on_the_line",
    ),
    Mutation(
        "what is carried on goes the other way",
        "diffusion/editors/base.py",
        "(angle - last_angle) / (last_angle - before_angle)",
        "(last_angle - angle) / (last_angle - before_angle)",
        "diffusion/test_stride.py::test_a_line_is_carried_on_exactly",
    ),
    Mutation(
        "an inversion-free edit carries the difference before the last",
        "diffusion/editors/flow_edit.py",
        "((step.angle, moved), *state.carried[:1])",
        "((step.angle, 2 * moved), *state.carried[:1])",
        "diffusion/test_stride.py::test_inversion_free_moves_by_its_last_difference",
    ),
    Mutation(
        "an artefact runs the layout of another",
        "artifacts.py",
        "self._files[layout])",
        "next(iter(self._files.values())))",
        "test_artifacts.py::test_a_whole_inversion_and_edit_agree_with_eager",
    ),
    Mutation(
        "the rotary table turns the text tokens",
        "models/conditioning.py",
        "torch.cat([sin.new_zeros(text), sin])",
        "torch.cat([sin.new_ones(text), sin])",
        "models/test_network.py::test_rotary_table_is_the_pipelines_behind_identity_rows",
    ),
    Mutation(
        "the rotary table stands in front of the text",
        "models/conditioning.py",
        "return torch.cat([cos.new_ones(text), cos]), torch.cat([sin.new_zeros(text), sin])",
        "return torch.cat([cos, cos.new_ones(text)]), torch.cat([sin, sin.new_zeros(text)])",
        "test_parity.py::test_parity",
    ),
    Mutation(
        "the network is told the position instead of the timestep",
        "models/denoiser.py",
        "embeds.to(dtype), step.timestep,",
        "embeds.to(dtype), step.i,",
        "test_parity.py::test_parity",
    ),
    Mutation(
        "a pair of rows reads one source row",
        "models/denoiser.py",
        "picked = range(own) if own == read else [read - 1] * own",
        "picked = [read - 1] * own",
        "test_parity.py::test_parity",
    ),
    Mutation(
        "the GELU has another cubic term",
        "models/block.py",
        "value=0.044715 * slope",
        "value=0.0447 * slope",
        "models/test_network.py",
    ),
    Mutation(
        "a trajectory of a tiled VAE passes for one of a whole",
        "fingerprint.py",
        "if parts.vae.use_tiling:",
        "if False:",
        "test_memory_presets.py::test_tiling_is_near_and_only_where_it_is_asked_for",
    ),
    Mutation(
        "an edit that compares with nothing is not warned of",
        "job.py",
        ", *self._list_doubts()]",
        "]",
        "test_commands.py::test_an_edit_that_compares_with_nothing_is_warned_of",
    ),
    Mutation(
        "freed memory is given back",
        "runtime/allocator.py",
        "_KEPT = 2**30",
        "_KEPT = 2**17",
        "runtime/test_allocator.py::test_freed_memory_stays",
    ),
    Mutation(
        "embeddings of another dtype are found",
        "models/embeddings.py",
        "(self.encoder, str(self.dtype), self.device.type, prompt)",
        "(self.encoder, self.device.type, prompt)",
        "models/test_conditioning.py",
    ),
    Mutation(
        "of large weights the header alone counts",
        "models/embeddings.py",
        "for k in range(1, _PIECES + 1):",
        "for k in range(1, 1):",
        "models/test_conditioning.py",
    ),
    Mutation(
        "compiled graphs are not written",
        "runtime/compile_cache.py",
        "if saved is None:",
        "if saved is not None:",
        "runtime/test_compile.py",
    ),
)


def run_tests(copy: Path, *tests: str) -> tuple[int, str]:
    """Run tests in the copy, whose package, not the installed one, is what they import.

    They run in a fork of this process, which has imported the heavy libraries once for all.

    Returns:
        pytest's exit status and what it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.chdir(copy)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.path.insert(0, str(copy))
            os.environ["PYTHONPATH"] = str(copy)
            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
            os._exit(status)
        _, waited = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(waited), output.read()


def judge(mutation: Mutation, copy: Path) -> str | None:
    """Apply one mutation, run its test, undo it, and return what is wrong: ``None`` when the test killed it."""
    file = copy / "ddim_lightning" / mutation.file
    source = file.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return f"its text occurs {source.count(mutation.old)} times in {mutation.file}"
    file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    status, output = run_tests(copy, mutation.test)
    file.write_text(source, encoding="utf-8")
    if status == pytest.ExitCode.OK:
        return f"survived {mutation.test}"
    return None if status == pytest.ExitCode.TESTS_FAILED else f"{mutation.test} could not run:\n{output}"


def copy_tree(target: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


def main(wanted: str = "") -> int:
    """Judge the mutations whose names contain ``wanted``; return the exit status."""
    mutations = [mutation for mutation in MUTATIONS if wanted in mutation.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        status, output = run_tests(copy, *sorted({mutation.test for mutation in mutations}))
        if status != pytest.ExitCode.OK:
            print(f"the named tests fail without any mutation:\n{output}")
            return 1
        faults = []
        for mutation in mutations:
            fault = judge(mutation, copy)
            print(f"{'ALIVE ' if fault else 'killed'}  {mutation.name}: {fault or mutation.test}", flush=True)
            faults += [fault] if fault else []
    print(f"{len(mutations) - len(faults)} of {len(mutations)} mutations killed")
    return 1 if faults or not mutations else 0


if __name__ == "__main__":
    # A mutated file may keep its size and, within a second, its time: old bytecode would pass for it.
    sys.dont_write_bytecode = True
    logging.getLogger("xformers").setLevel(logging.ERROR)
    importlib.import_module("diffusers.pipelines.cogvideo.pipeline_cogvideox")  # once, for every fork
    sys.exit(main(*sys.argv[1:]))
