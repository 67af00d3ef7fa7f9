"""Break the mathematics in listed ways, one at a time, and see whether the named test notices.

    python tests/mutations.py [PART OF A NAME]

Every mutation is applied to a temporary copy of the package; the tree itself is never changed. The exit status is 1
when a mutation survives, when its text is not found exactly once, or when a named test fails without any mutation.
"""

from __future__ import annotations

import compileall
import importlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("ddim_lightning", "tests", "benchmarks", "setup.cfg")
SHARES = 8
"""Into which the mutations are dealt, each with a copy of its own."""


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
        "a step turns the wrong way",
        "diffusion/steps.py",
        "return math.cos(h) * latents - math.sin(h) * velocity",
        "return math.cos(h) * latents + math.sin(h) * velocity",
        "diffusion/test_steps.py::test_denoising_step_is_the_textbook_ddim_step",
    ),
    Mutation(
        "the inverse step turns the wrong way",
        "diffusion/steps.py",
        "return math.cos(h) * latents + math.sin(h) * velocity",
        "return math.cos(h) * latents - math.sin(h) * velocity",
        "diffusion/test_steps.py::test_inverse_step_rotates_from_the_cleaner_level",
    ),
    Mutation(
        "a solved step is not divided by the cosine",
        "diffusion/steps.py",
        "return (latents + math.sin(h) * velocity) / math.cos(h)",
        "return latents + math.sin(h) * velocity",
        "diffusion/test_steps.py::test_solving_undoes_the_denoising_step",
    ),
    Mutation(
        "a step cache looks at the last change alone",
        "diffusion/step_cache.py",
        "sum(self.changes[seen + 1 : i + 1]) < self.threshold",
        "self.changes[i] < self.threshold",
        "diffusion/test_step_cache.py::test_a_step_is_evaluated_where_changes_since_the_last_one_come_to_the_threshold",
    ),
    Mutation(
        "a step cache foretells branches that it has never seen",
        "diffusion/step_cache.py",
        "if form == self._form and self.cache.skips",
        "if self._kept and self.cache.skips",
        "diffusion/test_step_cache.py::test_branches_that_change_are_evaluated",
    ),
    Mutation(
        "noise and signal are swapped in the velocity",
        "diffusion/steps.py",
        "return cos * noise - sin * denoised",
        "return cos * denoised - sin * noise",
        "diffusion/test_steps.py::test_velocity_loss_is_zero_for_the_truth_and_counts_every_element",
    ),
    Mutation(
        "noise does not follow its seed",
        "diffusion/steps.py",
        'torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu")',
        'torch.randn(like.shape, dtype=like.dtype, device="cpu")',
        "diffusion/test_editors.py::test_random_start_depends_on_the_seed_alone",
    ),
    Mutation(
        "angles are measured from the other axis",
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
        "diffusion/test_schedule.py::test_schedule_joins_neighboring_levels",
    ),
    Mutation(
        "the level of a neighboring timestep is taken",
        "diffusion/schedule.py",
        "levels = [float(alphas_cumprod[t]) for t in timesteps]",
        "levels = [float(alphas_cumprod[t - 1]) for t in timesteps]",
        "diffusion/test_schedule.py::test_odd_step_counts_hit_their_own_timesteps",
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
        "guidance extrapolates from the prompt",
        "diffusion/guidance.py",
        "return negative + scale * (positive - negative)",
        "return positive + scale * (positive - negative)",
        "diffusion/test_guidance.py::test_combination_extrapolates_from_the_negative_through_the_positive",
    ),
    Mutation(
        "guidance acts outside its window",
        "diffusion/editors/base.py",
        "if guided else 1.0",
        "if not guided else 1.0",
        "diffusion/test_editors.py::test_guidance_has_a_window_of_steps",
    ),
    Mutation(
        "DDIM is told the timestep it leaves",
        "diffusion/inverters/ddim.py",
        "velocity_fn(latents, schedule[i])",
        "velocity_fn(latents, schedule[min(i + 1, len(schedule) - 1)])",
        "diffusion/test_inverters.py::test_ddim_climbs_as_the_diffusers_formula",
    ),
    Mutation(
        "UniInv does not predict",
        "diffusion/inverters/predictor.py",
        "return inverse_step(latents, velocities[0], step)",
        "return latents",
        "diffusion/test_inverters.py::test_uni_inv_climbs_as_published",
    ),
    Mutation(
        "the line through the velocities runs backwards",
        "diffusion/inverters/predictor.py",
        "last + ratio * (last - before)",
        "last - ratio * (last - before)",
        "diffusion/test_inverters.py::test_uni_inv_carries_the_last_two_velocities_on",
    ),
    Mutation(
        "UniInv spends its extra evaluations in the cleaner half",
        "diffusion/inverters/uni_inv.py",
        "if i >= len(schedule) // 2 or",
        "if i < len(schedule) // 2 or",
        "diffusion/test_inverters.py::test_uni_inv_spends_its_extra_evaluations_where_a_prediction_was_poor",
    ),
    Mutation(
        "the fixed point is evaluated where it began",
        "diffusion/inverters/fixed_point.py",
        "velocity = velocity_fn(point, schedule[i])",
        "velocity = velocity_fn(latents, schedule[i])",
        "diffusion/test_inverters.py::test_fixed_point_contracts_from_the_prediction",
    ),
    Mutation(
        "Anderson's share has the wrong sign",
        "diffusion/inverters/fixed_point.py",
        "return solved - share",
        "return solved + share",
        "diffusion/test_inverters.py::test_acceleration_solves_an_affine_step_at_its_second_evaluation",
    ),
    Mutation(
        "BDIA adds the velocity with the wrong sign",
        "diffusion/inverters/bdia.py",
        "cleaner - cos * latents + sin *",
        "cleaner - cos * latents - sin *",
        "diffusion/test_inverters.py::test_bdia_is_the_papers_recursion",
    ),
    Mutation(
        "BDIA comes back at the timestep of the last level",
        "diffusion/inverters/bdia.py",
        "schedule[i + 1]))",
        "schedule[i]))",
        "diffusion/test_inverters.py::test_exact_methods_come_back_exactly",
    ),
    Mutation(
        "EditFriendly adds the map of another step",
        "diffusion/inverters/edit_friendly.py",
        "state[1][step.i]",
        "state[1][step.i - 1]",
        "diffusion/test_inverters.py::test_exact_methods_come_back_exactly",
    ),
    Mutation(
        "the residual has the wrong sign",
        "diffusion/sampling.py",
        "residual = latents - denoised",
        "residual = denoised - latents",
        "diffusion/test_inverters.py::test_residual_is_what_the_last_step_misses",
    ),
    Mutation(
        "the residual is not added back",
        "diffusion/sampling.py",
        "return state[0] if inversion.residual is None else state[0] + inversion.residual",
        "return state[0]",
        "diffusion/test_inverters.py::test_uni_inv_comes_back_far_better_than_ddim",
    ),
    Mutation(
        "the reconstruction forgets the prompt of the inversion",
        "diffusion/sampling.py",
        "make_velocity_fn(denoiser, inversion.prompt, ",
        'make_velocity_fn(denoiser, "", ',
        "diffusion/test_inverters.py::test_round_trip",
    ),
    Mutation(
        "the reconstruction forgets the image of the inversion",
        "diffusion/sampling.py",
        "inversion.prompt, inversion.image_latents), inversion.state",
        "inversion.prompt, None), inversion.state",
        "diffusion/test_image_latents.py::test_the_way_back_is_under_the_same_image",
    ),
    Mutation(
        "the edit is shown the image of the source",
        "diffusion/editors/base.py",
        "image_latents=request.image_latents",
        "image_latents=None",
        "diffusion/test_image_latents.py::test_the_edit_is_shown_the_request_and_the_source_its_own",
    ),
    Mutation(
        "a paired source is shown the image of the edit",
        "diffusion/editors/source_branch.py",
        "kv_source=None, image_latents=image, mask=None)",
        "kv_source=None, mask=None)",
        "diffusion/test_image_latents.py::test_the_edit_is_shown_the_request_and_the_source_its_own",
    ),
    Mutation(
        "an edit takes the steps before its first",
        "diffusion/sampling.py",
        "list(inversion.schedule)[editor.get_first_step(len(inversion.schedule)) :]",
        "list(inversion.schedule)",
        "diffusion/test_editors.py::test_a_later_start_leaves_the_first_steps_out",
    ),
    Mutation(
        "merged branches attend by their old places",
        "diffusion/sampling.py",
        "branch if branch.kv_source is None else replace(branch, kv_source=order.index(key[-1]))",
        "branch",
        "diffusion/test_edit_together.py::test_merging_keeps_the_source_and_the_need_of_each_branch",
    ),
    Mutation(
        "the source stands one level too far",
        "diffusion/editors/source_branch.py",
        "self.make_source(inversion.levels[step.i], target",
        "self.make_source(inversion.levels[step.i + 1], target",
        "diffusion/test_editors.py::test_default_is_one_shared_source_on_the_trajectory",
    ),
    Mutation(
        "the source prompt is ignored",
        "diffusion/editors/base.py",
        "return inversion.prompt if request.source_prompt is None else request.source_prompt",
        "return inversion.prompt",
        "diffusion/test_editors.py::test_a_shared_source_is_told_the_source_prompt_when_there_is_one",
    ),
    Mutation(
        "direct inversion corrects towards the level it came from",
        "diffusion/editors/direct_inversion.py",
        "missed = levels[step.i + 1] -",
        "missed = levels[step.i] -",
        "diffusion/test_direct_inversion.py::test_each_step_adds_what_it_misses_on_the_trajectory",
    ),
    Mutation(
        "FlowEdit moves by the difference with the wrong sign",
        "diffusion/editors/flow_edit.py",
        "moved += get_denoised(target",
        "moved -= get_denoised(target",
        "diffusion/test_flow_edit.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "FlowEdit's ratio is one level off",
        "diffusion/editors/flow_edit.py",
        "ratio = math.cos(step.angle) * math.sin(step.angle_next)",
        "ratio = math.cos(step.angle_next) * math.sin(step.angle_next)",
        "diffusion/test_flow_edit.py::test_update_is_the_rotated_difference_of_the_pair",
    ),
    Mutation(
        "K-order noise sums one power too far",
        "diffusion/editors/starts.py",
        "noise**k for k in range(order)",
        "noise**k for k in range(order + 1)",
        "diffusion/test_starts.py::test_k_rnr_is_its_recursion",
    ),
    Mutation(
        "evaluated steps are counted from the first of the schedule",
        "diffusion/editors/base.py",
        "(step.i - self.get_first_step(len(schedule))) % self._every == 0",
        "step.i % self._every == 0",
        "diffusion/test_eval_every.py::test_steps_between_take_the_velocity_on_the_line",
    ),
    Mutation(
        "velocities are carried on in the wrong direction",
        "diffusion/editors/base.py",
        "(angle - last_angle) / (last_angle - before_angle)",
        "(last_angle - angle) / (last_angle - before_angle)",
        "diffusion/test_eval_every.py::test_a_line_is_carried_on_exactly",
    ),
    Mutation(
        "a mask is inverted",
        "diffusion/editors/base.py",
        "outside + mask * (latents - outside)",
        "latents + mask * (outside - latents)",
        "diffusion/test_masks.py::test_outside_a_mask_the_video_stays_exactly_as_it_was",
    ),
    Mutation(
        "outside a mask stands the level before",
        "diffusion/editors/denoise.py",
        "apply_mask(state, latents, inversion, step.i + 1)",
        "apply_mask(state, latents, inversion, step.i)",
        "diffusion/test_masks.py::test_outside_a_mask_the_video_stays_exactly_as_it_was",
    ),
    Mutation(
        "an editor that does not say what it reads is taken to read what its parent reads",
        "diffusion/editors/base.py",
        'if "needs" not in vars(cls):',
        "if False:",
        "diffusion/test_needs.py::test_an_editor_that_does_not_say_it_itself_needs_everything",
    ),
    Mutation(
        "frames and latent frames begin together",
        "diffusion/masks.py",
        "[mask[:1].expand(temporal - 1, -1, -1), mask]",
        "[mask, mask[-1:].expand(temporal - 1, -1, -1)]",
        "diffusion/test_masks.py::test_one_pixel_of_one_frame_lights_one_latent",
    ),
    Mutation(
        "the kv_scale of the first layer is everyone's",
        "network/forward.py",
        "kv_scales[k] if kv_scales",
        "kv_scales[0] if kv_scales",
        "network/test_denoiser.py::test_kv_scale_is_per_layer",
    ),
    Mutation(
        "source rows end a layer early",
        "network/layout.py",
        "kept = rows if k < last else wanted",
        "kept = rows if k < last - 1 else wanted",
        "network/test_network.py::test_rows_that_are_only_read_end_at_the_last_layer_that_reads_them",
    ),
    Mutation(
        "the kv_scale weighs a row's own keys",
        "network/attention.py",
        "odds if scale is None else odds - scale.log()",
        "odds if scale is None else odds + scale.log()",
        "network/test_attention.py::test_reading_is_attention_over_both_sets_of_keys",
    ),
    Mutation(
        "video and text swap their modulation",
        "network/block.py",
        "(of_video, of_text), num_text, kept = modulation.unbind(0)",
        "(of_text, of_video), num_text, kept = modulation.unbind(0)",
        "network/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "a norm's own bias is not scaled",
        "network/weights.py",
        "affine[1] * scale + shift",
        "affine[1] + shift",
        "network/test_network.py::test_network_equals_diffusers_forward",
    ),
    Mutation(
        "the rotation turns the other way",
        "network/block.py",
        "first * cos[..., 0] - second * sin[..., 0]",
        "first * cos[..., 0] + second * sin[..., 0]",
        "network/test_rotary.py::test_both_forms_of_the_rotation_are_diffusers",
    ),
    Mutation(
        "the rotary table turns the text tokens",
        "network/rotary.py",
        "torch.cat([sin.new_zeros(text), sin])",
        "torch.cat([sin.new_ones(text), sin])",
        "network/test_rotary.py::test_rotary_table_is_the_pipelines_behind_identity_rows",
    ),
    Mutation(
        "the network is told the position instead of the timestep",
        "network/denoiser.py",
        "step.timestep,\n                wanted=",
        "step.i,\n                wanted=",
        "test_parity.py::test_parity",
    ),
    Mutation(
        "a pair of rows attends to one source row",
        "network/denoiser.py",
        "k if own == read else read - 1",
        "read - 1",
        "test_parity.py::test_parity",
    ),
    Mutation(
        "ranks: all rows are taken from the first process",
        "network/split_rows.py",
        "places = {row: (rank, k)",
        "places = {row: (0, k)",
        "network/test_split_rows.py::test_shares_put_together_are_the_whole_pass",
    ),
    Mutation(
        "ranks: all rows of a share read its last one",
        "network/split_rows.py",
        "own_reads = tuple(rows.index(reads[row]) for row in rows if row < len(reads))",
        "own_reads = tuple(len(rows) - 1 for row in rows if row < len(reads))",
        "network/test_split_rows.py::test_each_row_is_given_once_with_all_that_it_reads_and_nobody_has_more_work_than_needed",
    ),
    Mutation(
        "ranks: text and video tokens are taken in the order of the processes",
        "network/split_tokens.py",
        "torch.cat([*(text for text, _ in parts), *(video for _, video in parts)], dim=1)",
        "torch.cat([part for pair in parts for part in pair], dim=1)",
        "test_clip_on_two_processes.py::test_tokens_of_every_row_are_split_too",
    ),
    Mutation(
        "evaluations under different texts are taken for equal",
        "network/denoiser.py",
        "        branch.prompts[k],\n",
        "        branch.prompts[-1],\n",
        "network/test_denoiser.py::test_guidance_is_two_evaluations_combined",
    ),
    Mutation(
        "rows come back in the order of their groups",
        "network/forward.py",
        "for row in sorted(rows)]",
        "for row in rows]",
        "network/test_groups.py::test_groups_give_the_numbers_of_all_rows_at_once",
    ),
    Mutation(
        "under a mask: what is read as well is met once outside",
        "network/attention.py",
        "else 1.0 + kv_scale",
        "else kv_scale",
        "network/test_masked_rows.py::test_the_tokens_inside_are_those_of_the_full_computation",
    ),
    Mutation(
        "under a mask: tokens outside are taken without regard to the text before them",
        "network/forward.py",
        "num_text + group.split.outside",
        "group.split.outside",
        "network/test_masked_rows.py::test_the_tokens_inside_are_those_of_the_full_computation",
    ),
    Mutation(
        "under a mask: a token changes where all of its latents may",
        "network/token_masks.py",
        "pieces.amax(",
        "pieces.amin(",
        "network/test_masked_rows.py::test_the_tokens_inside_are_those_of_the_full_computation",
    ),
    Mutation(
        "context: a source that is held is not marked",
        "network/forward.py",
        "video = video if mark is None else mark(video)",
        "video = video if mark is not None else video",
        "network/test_held.py::test_what_is_held_acts_as_a_row_beside_the_edit_at_a_timestep_of_its_own",
    ),
    Mutation(
        "context: every row attends to the first that is held",
        "network/denoiser.py",
        "places += range(first, first + size)",
        "places += [0] * size",
        "network/test_held.py::test_branches_attend_to_their_contexts_row_by_row",
    ),
    Mutation(
        "context: every window attends to the first one's",
        "diffusion/windows.py",
        "branch.context[k : k + 1]",
        "branch.context[:1]",
        "network/test_held.py::test_a_long_clip_holds_each_of_its_windows",
    ),
    Mutation(
        "context: each pass of a clip is planned with one of its own",
        "engine/clip_plan.py",
        "editor.count_nfe(requests[0], engine.schedule, together) - shared)",
        "editor.count_nfe(requests[0], engine.schedule, together))",
        "engine/test_in_context.py::test_one_context_serves_all_prompts_and_what_is_planned_is_what_is_counted",
    ),
    Mutation(
        "context: outside a mask the source is as noisy as before the step",
        "diffusion/editors/in_context_edit.py",
        "add_noise(clean, state.noise, step.angle_next)",
        "add_noise(clean, state.noise, step.angle)",
        "diffusion/test_in_context_edit.py::test_outside_a_mask_is_the_source_under_the_edits_own_noise",
    ),
    Mutation(
        "context: the residual takes away what copying loses",
        "diffusion/editors/in_context_edit.py",
        "clean + (latents - copy)",
        "clean - (latents - copy)",
        "diffusion/test_in_context_edit.py::test_what_copying_loses_is_given_back",
    ),
    Mutation(
        "objective: min-SNR weights by SNR plus one",
        "diffusion/objectives/velocity.py",
        "angle.cos().square(), min_snr_gamma * angle.sin().square()",
        "angle.cos().square(), min_snr_gamma * angle.cos().square()",
        "diffusion/test_objectives.py::test_min_snr_is_the_weight_of_the_paper",
    ),
    Mutation(
        "objective: the source is noised with the edit",
        "diffusion/objectives/in_context_editing.py",
        "add_noise(edits, noise, angle), sources]",
        "add_noise(edits, noise, angle), sources + noise[: len(sources)]]",
        "diffusion/test_objectives.py::test_edits_are_noised_and_their_sources_are_not",
    ),
    Mutation(
        "objective: the inverse step starts at the noisier level",
        "diffusion/objectives/inversion_consistency.py",
        "add_noise(latents, noise, cleaner)",
        "add_noise(latents, noise, noisier)",
        "diffusion/test_objectives.py::test_consistency_takes_two_evaluations_at_the_steps_of_an_inversion",
    ),
    Mutation(
        "objective: one call has the gradients of both",
        "diffusion/objectives/inversion_consistency.py",
        'torch.is_grad_enabled() and gradients == "both"',
        "torch.is_grad_enabled()",
        "diffusion/test_objectives.py::test_the_gradient_of_inversion_consistency_through_the_denoising_call_alone",
    ),
    Mutation(
        "objective: checkpointing repeats the pass without what it read",
        "network/predictor.py",
        "with _placed(block, reads=reads):",
        "with _placed(block, reads=()):",
        "network/test_predictor.py::test_checkpointing_keeps_the_gradients_of_adapters_and_leaves_the_model_as_it_was",
    ),
    Mutation(
        "the inside of a mask is the outside",
        "metrics/pixels.py",
        'self._means.add(f"{name}_inside", values, mask)',
        'self._means.add(f"{name}_inside", values, ~mask)',
        "metrics/test_pixels.py::test_a_constant_shift_has_the_psnr_of_its_square",
    ),
    Mutation(
        "frames without an edited part count as equal",
        "metrics/pixels.py",
        "counts = kept.any()[None]",
        "counts = torch.ones_like(kept.any()[None])",
        "metrics/test_pixels.py::test_numbers_of_pictures_multiplied_by_the_mask_are_those_of_the_formulas",
    ),
    Mutation(
        "a flow is taken the other way",
        "metrics/flow.py",
        "torch.stack([x, y]) + flow",
        "torch.stack([x, y]) - flow",
        "metrics/test_flow.py::test_a_translation_that_the_flow_knows_has_no_warp_error",
    ),
    Mutation(
        "the warp error counts what is hidden",
        "metrics/flow.py",
        "return (error * shown).sum((1, 2)) / shown.sum((1, 2)).clamp_min(1)",
        "return error.mean((1, 2))",
        "metrics/test_flow.py::test_the_error_is_a_mean_over_visible_pixels_and_channels",
    ),
    Mutation(
        "motion fidelity looks one way",
        "metrics/motion.py",
        "float(agreement.amax(1).mean() + agreement.amax(0).mean()) / 2",
        "float(agreement.amax(1).mean())",
        "metrics/test_motion.py::test_both_directions_count",
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
            # Having asked for a GPU before the fork is enough for Lightning to refuse another one; none is used here.
            torch.cuda._is_in_bad_fork = lambda: False
            status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
            os._exit(status)
        _, waited = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(waited), output.read()


def find_fault(mutation: Mutation, copy: Path) -> str | None:
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
    """Copy what the tests need, compiled: bytecode that goes by the hash of its source passes for no mutated file."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(ROOT / name, target)
    compileall.compile_dir(target, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def judge(mutations: Sequence[Mutation], copy: Path) -> list[str]:
    """Try mutations in a copy of their own, say what became of each, and return the faults."""
    faults = []
    for mutation in mutations:
        fault = find_fault(mutation, copy)
        print(f"{'ALIVE ' if fault else 'killed'}  {mutation.name}: {fault or mutation.test}", flush=True)
        faults += [fault] if fault else []
    return faults


def main(wanted: str = "") -> int:
    """Judge the mutations whose names contain ``wanted``, on all cores; return the exit status."""
    mutations = [mutation for mutation in MUTATIONS if wanted in mutation.name]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        whole = Path(folder, "whole")
        copy_tree(whole)
        copies = [Path(shutil.copytree(whole, Path(folder, str(k)))) for k in range(SHARES)]
        unchanged = pool.submit(run_tests, whole, *sorted({mutation.test for mutation in mutations}))
        shares = [pool.submit(judge, mutations[k::SHARES], copy) for k, copy in enumerate(copies)]
        status, output = unchanged.result()
        if status != pytest.ExitCode.OK:
            pool.shutdown(cancel_futures=True)
            print(f"the named tests fail without any mutation:\n{output}")
            return 1
        faults = [fault for share in shares for fault in share.result()]
    print(f"{len(mutations) - len(faults)} of {len(mutations)} mutations killed")
    return 1 if faults or not mutations else 0


if __name__ == "__main__":
    # A mutated file may keep its size and, within a second, its time: bytecode that is written would pass for another.
    sys.dont_write_bytecode = True
    logging.getLogger("xformers").setLevel(logging.ERROR)
    importlib.import_module("diffusers.pipelines.cogvideo.pipeline_cogvideox")  # once, for every fork
    sys.exit(main(*sys.argv[1:]))
