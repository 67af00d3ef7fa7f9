"""Classifier-free guidance and its schedules."""

from __future__ import annotations

import math

import torch

from ddim_lightning.diffusion.guidance import SCHEDULES, combine


def test_combination_extrapolates_from_the_negative_through_the_positive():
    negative, positive = torch.tensor([1.0]), torch.tensor([3.0])
    assert combine(negative, positive, 0.0) == negative
    assert combine(negative, positive, 1.0) == positive
    assert combine(negative, positive, 6.0) == 13.0


def test_constant_schedule(make_schedule):
    schedule = make_schedule(10)
    assert {SCHEDULES["constant"](6.0, step, schedule) for step in schedule} == {6.0}


def test_script_dynamic_schedule_has_the_timestep_where_a_step_count_belongs(make_schedule):
    schedule = make_schedule(10)
    for step in schedule:
        cosine = math.cos(math.pi * ((10 - step.timestep) / 10) ** 5)
        assert SCHEDULES["script_dynamic"](6.0, step, schedule) == 1 + 6.0 * (1 - cosine) / 2
    assert {SCHEDULES["script_dynamic"](1.0, step, schedule) for step in schedule} == {1.0}
