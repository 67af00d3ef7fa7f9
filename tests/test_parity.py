"""The reference script's numbers, file by file; `tests/parity/README.md` says what each file holds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from diffusers import CogVideoXTransformer3DModel
from safetensors import safe_open
from torch import Tensor

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct
from ddim_lightning.models.schedulers import make_noise_schedule, make_schedulers
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.types import EditRequest

FOLDER = Path(os.environ.get("DDIM_PARITY_DIR", Path(__file__).parent / "parity"))
FILES = sorted(FOLDER.glob("*.safetensors"))


@dataclass(frozen=True)
class FromNoise(KVInjection):
    """The script's editor, started from the very noise that the script drew."""

    noise: Tensor | None = None

    def start(self, *arguments):
        return replace(super().start(*arguments), latents=self.noise)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def load_case(path):
    with safe_open(path, framework="pt") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = {k: v for k, v in metadata["transformer_config"].items() if not k.startswith("_")}
    transformer = CogVideoXTransformer3DModel(**config).eval().requires_grad_(False)
    prefix = "transformer."
    transformer.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return metadata, tensors, transformer


def make_editor(spec, noise):
    guidance = "script_dynamic" if spec.get("dynamic") else "constant"
    if spec.get("start", "random") == "inverted":
        return KVInjection(source_rows="paired", initial="inverted", guidance=guidance)
    return FromNoise(source_rows="paired", initial="random", guidance=guidance, noise=noise)


def test_parity_has_cases():
    assert FILES, f"no parity files in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parity(path):
    metadata, tensors, transformer = load_case(path)
    spec = metadata["spec"]
    embeds = {"": tensors["empty_embeds"], "edit": tensors["prompt_embeds"]}
    denoiser = CogVideoXDenoiser(Network(transformer), embeds.__getitem__)
    schedule = make_noise_schedule(make_schedulers(metadata["scheduler"])[0], spec["steps"])

    inversion = invert(denoiser, tensors["latents"], schedule, DDIM())
    for i, theirs in enumerate(tensors["inverse_trajectory"]):
        assert relative_error(inversion.levels[len(schedule) - 1 - i], theirs) <= 1e-4, f"inverse step {i}"
    assert relative_error(reconstruct(denoiser, inversion), tensors["plain_reconstruction"]) <= 1e-4

    path_of_edit = []
    request = EditRequest("edit", guidance_scale=spec["guidance"])
    edited = edit(
        denoiser,
        inversion,
        make_editor(spec, tensors["noise"]),
        request,
        callback=lambda step, latents: path_of_edit.append(latents),
    )
    assert relative_error(edited, tensors["injected_reconstruction"]) <= 1e-4
    for i, theirs in enumerate(tensors["injected_trajectory"]):
        assert relative_error(path_of_edit[i], theirs) <= 1e-4, f"edit step {i}"
    nfe_of_edit = 2 if spec["guidance"] == 1.0 else 4
    assert denoiser.nfe == (2 + nfe_of_edit) * len(schedule)
