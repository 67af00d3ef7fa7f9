"""Few functions stand between `predict_step` and the line that applies an update, in a real run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

import ddim_lightning
from ddim_lightning import (
    BDIA,
    DDIM,
    Clip,
    Denoise,
    DirectInversion,
    EditFriendly,
    FixedPoint,
    FlowEdit,
    KVInjection,
    UniInv,
)
from tests.modules import make_module

PACKAGE = str(Path(ddim_lightning.__file__).parent)
UPDATES = {
    "steps.py": {"denoise_step", "inverse_step", "solve_denoise_step"},
    "edit_friendly.py": {"ddpm_mean"},
    "flow_edit.py": {"update"},
}
"""The functions that hold update lines, by their files."""
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


class Trace(Callback):
    """Keeps the own functions on the stack, from `predict_step` down, at each way to an update line."""

    def __init__(self):
        self.chains = set()

    def look(self, frame, event, _):
        if event != "call" or frame.f_code.co_name not in UPDATES.get(Path(frame.f_code.co_filename).name, ()):
            return
        names = []
        while frame is not None and names[-1:] != ["predict_step"]:
            if frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_name.startswith("<"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        self.chains.add(tuple(reversed(names)))

    def on_predict_batch_start(self, *_):
        self.before = sys.getprofile()
        sys.setprofile(self.look)

    def on_predict_batch_end(self, *_):
        sys.setprofile(self.before)

    on_exception = on_predict_batch_end


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("inverter", "editor"),
    [
        (DDIM(), Denoise()),
        (FixedPoint(), DirectInversion()),
        (UniInv(), KVInjection()),
        (BDIA(), FlowEdit()),
        (EditFriendly(), Denoise()),
    ],
)
def test_the_update_line_is_near(inverter, editor, tiny_model):
    frames = torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    clip = Clip("a", frames, prompts=("a red circle",), source_prompt="a blue square")
    module = make_module(str(tiny_model), num_inference_steps=4, inverter=inverter, editor=editor, on_error="raise")
    trace = Trace()
    trainer = Trainer(accelerator="cpu", callbacks=trace, **QUIET)
    (result,) = trainer.predict(module, DataLoader([clip], batch_size=None))
    assert result.status == "done"
    chains = trace.chains
    edits = {chain for chain in chains if "edit_together" in chain}
    assert edits and chains - edits
    assert all(chain[:3] == ("predict_step", "run", "run") for chain in chains)
    assert all(len(chain) <= 7 for chain in chains - edits)
    assert all(len(chain) <= 8 for chain in edits)
