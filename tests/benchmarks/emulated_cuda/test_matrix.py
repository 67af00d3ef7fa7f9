"""Whatever can be combined runs on the emulated device: no devices or dtypes are mixed, no step makes the host wait."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from lightning.pytorch import Callback

from benchmarks.emulated_cuda import emulate_cuda
from benchmarks.emulated_cuda.job import run_job
from ddim_lightning.diffusion import editors, inverters
from ddim_lightning.diffusion.sampling import edit_together, invert, reconstruct
from ddim_lightning.engine.config import ContextStorage, Forward, Offload, Precision, Runtime
from ddim_lightning.types import EditRequest
from tests.modules import make_module

NUMBERS = {
    "eval_every": 2,
    "guidance_steps": (0, 1),
    "identity_residual": 0.5,
    "kv_scale": 0.5,
    "layers": (1, None),
    "num_noise_samples": 2,
    "replay_steps": (1, None),
    "steps": (1, None),
    "velocity_mask": 0.4,
}
"""Options that are no choice of few: a value each that changes what is computed."""
DOCUMENTED = ("inverters/uni_inv.py", "inverters/fixed_point.py")
"""Inverters that stop where something is small enough ask for it once a step."""
REQUEST = EditRequest("a red circle", source_prompt="a red square", guidance_scale=2.0)


def list_runtimes():
    """All combinations of the runtime's choices that are not refused."""
    kinds = {"offload": Offload, "forward": Forward, "precision": Precision}
    found = []
    for choice in itertools.product(*map(get_args, kinds.values())):
        options = dict(zip(kinds, choice, strict=True))
        try:
            Runtime(**options)
        except ValueError:
            continue
        found.append(options)
        if options["precision"] != "none":
            found.append({**options, "quantize_inversion": True})
    return found


def list_parts(package, options=False):
    """All concrete classes of a package, as they are or with each of their choices changed by itself."""
    for name in package.__all__:
        kind = getattr(package, name)
        if not dataclasses.is_dataclass(kind) or getattr(kind, "__abstractmethods__", None) or name == "EditState":
            continue
        if not options:
            yield kind()
            continue
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            values = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
            values = (*values, *([NUMBERS[field.name]] if field.name in NUMBERS else []))
            for value in values:
                if value != field.default:
                    yield make_part(kind, **{field.name: value})


def make_part(kind, **options):
    """An inverter or editor; what cannot start from pure noise starts a step later."""
    with contextlib.suppress(ValueError):
        return kind(**options)
    return kind(first_step=1, **options)


class Combinations(Callback):
    """Runs every inverter and every editor on the model that a Trainer has loaded, where it would predict."""

    def __init__(self, device):
        self.device = device
        self.count = 0

    def on_predict_batch_end(self, trainer, module, *_):
        engine = module.engine
        latents = torch.zeros(1, 2, 8, 4, 4, device=engine.device)
        for inverter in list_parts(inverters):
            inversion = self.run(
                inverter, invert, engine.denoiser, latents, engine.schedule, inverter, generator=torch.Generator()
            )
            self.run(inverter, reconstruct, engine.denoiser, inversion)
            for editor in list_parts(editors):
                self.edit(engine, inversion, inverter, editor, [REQUEST])
        # What an option of an editor asks of a network is asked whatever the trajectory comes from.
        mask = torch.ones(1, 2, 1, 4, 4, device=engine.device)
        together = [dataclasses.replace(REQUEST, mask=mask), dataclasses.replace(REQUEST, prompt="a blue square")]
        for editor in list_parts(editors, options=True):
            self.edit(engine, inversion, inverter, editor, together)

    def edit(self, engine, inversion, inverter, editor, requests):
        networks = {engine.denoiser.network, engine.edit_denoiser.network}
        storages = get_args(ContextStorage) if isinstance(editor, editors.InContextEdit) else ("device",)
        for storage in storages:
            for network in networks:
                network.context = storage
            generators = [torch.Generator() for _ in requests]
            edited = self.run(
                (inverter, editor, storage),
                edit_together,
                engine.edit_denoiser,
                inversion,
                editor,
                requests,
                generators=generators,
            )
            assert edited is None or len(edited) == len(requests)
            for one in edited or ():
                assert one.shape == inversion.clean.shape and one.device == engine.device and one.dtype == torch.float32

    def run(self, what, function, *arguments, **options):
        """Run a loop, between whose steps nothing should be asked of the device; ``None`` for what is refused."""
        steps = 0

        def tick(*_):
            nonlocal steps
            steps += 1
            self.device.enter(str(what), in_step=True)

        try:
            made = function(*arguments, callback=tick, **options)
        except Exception as error:
            if isinstance(error, ValueError) and "with forward='diffusers'" in str(error):
                return None  # said by its name, and refused
            raise AssertionError(f"{what}") from error
        self.device.enter("end")
        self.count += 1
        return made


@pytest.mark.parametrize("options", list_runtimes(), ids=lambda options: "-".join(map(str, options.values())))
def test_every_editor_inverter_and_preset(options, smallest_model, clip):
    module = make_module(
        str(smallest_model), num_inference_steps=2, attention="flash", on_error="raise", guidance_scale=2.0, **options
    )
    with emulate_cuda() as device:
        combinations = Combinations(device)
        (result,) = run_job(module, [clip], device, [combinations])
        assert module.engine.device == torch.device("cuda", 0)
    assert result.status == "done" and set(result.peak_gib) == set(result.seconds)
    assert result.edits[0].frames.shape == clip.frames.shape
    waits = {wait: count for wait, count in device.waits.list_in_steps().items() if wait.stage != "decode"}
    assert all(wait.place.ours.startswith(DOCUMENTED) for wait in waits), waits
    assert combinations.count > 100
