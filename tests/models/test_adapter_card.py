"""A card beside an adapter says what it was trained for; one that is broken is told by its file and its key."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from ddim_lightning.models.adapter_card import find_edit_adapter, get_card_path, read_adapter_card

VALUES = {
    "objectives": [{"class_path": "Velocity", "init_args": {"weight": 2.0}}],
    "editor": {"class_path": "my.Edit", "init_args": {"share": 0.5, "steps": [0, None]}},
    "num_inference_steps": 4,
    "guidance_scale": 1.5,
    "base": "01234567-89abcdef",
    "source_mark": [0.5, -1, 2.25],
    "package_version": "0.2.0",
}


def write_files(folder, card, name="mine"):
    """Write a file as a LoRA's, whose content nobody reads here, and a card beside it, or none."""
    path = folder / f"{name}.safetensors"
    path.write_bytes(b"")
    if card is not None:
        get_card_path(path).write_text(card if isinstance(card, str) else json.dumps(card), encoding="utf-8")
    return path


def test_a_card_says_what_was_written(tmp_path):
    card = read_adapter_card(write_files(tmp_path, VALUES))
    assert (card.editor, card.editor_name, card.source_mark) == (VALUES["editor"], "Edit", (0.5, -1, 2.25))
    get_card_path(tmp_path / "mine.safetensors").write_text(card.to_json(), encoding="utf-8")
    assert read_adapter_card(tmp_path / "mine.safetensors") == card


@pytest.mark.parametrize("beside", [None, '{"description": "a style", "activation text": "x"}', "[1, 2]"])
def test_a_file_without_a_card_of_ours_is_a_plain_lora(beside, tmp_path):
    path = write_files(tmp_path, beside)
    assert read_adapter_card(path) is None
    assert find_edit_adapter([str(path), "gone.safetensors"]) is None


def test_an_adapter_without_an_editor_is_no_edit_adapter(tmp_path):
    path = write_files(tmp_path, VALUES | {"editor": None, "num_inference_steps": None, "guidance_scale": None})
    assert read_adapter_card(path) is not None
    assert find_edit_adapter([str(path)]) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objectives", "Velocity"),
        ("objectives", [{"init_args": {}}]),
        ("objectives", None),
        ("editor", "KVInjection"),
        ("editor", {"class_path": "KVInjection", "kv_scale": 0.5}),
        ("num_inference_steps", 0),
        ("num_inference_steps", 4.0),
        ("num_inference_steps", True),
        ("guidance_scale", "1.5"),
        ("guidance_scale", -1),
        ("guidance_scale", float("nan")),
        ("base", 5),
        ("base", ""),
        ("source_mark", [1, "2"]),
        ("source_mark", [1, float("inf")]),
        ("source_mark", "0.5"),
        ("package_version", None),
        ("rank", 3),
    ],
)
def test_a_wrong_value_is_told_by_file_and_key(key, value, tmp_path):
    path = write_files(tmp_path, VALUES | {key: value})
    with pytest.raises(ValueError, match=rf"^lora: \S+mine\.json: {key}: must .*, got") as caught:
        read_adapter_card(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", list(VALUES))
def test_a_missing_key_is_told(key, tmp_path):
    path = write_files(tmp_path, {name: value for name, value in VALUES.items() if name != key})
    with pytest.raises(ValueError, match=rf"^lora: \S+mine\.json: {key}: must have the keys"):
        read_adapter_card(path)


@pytest.mark.parametrize("text", ["", '{"base": "01', "\x00", "[" * 100_000])
def test_what_is_no_json_is_told(text, tmp_path):
    path = write_files(tmp_path, text)
    with pytest.raises(ValueError, match=r"^lora: \S+mine\.json must be JSON: ") as caught:
        read_adapter_card(path)
    assert "\n" not in str(caught.value)


def test_two_adapters_for_editors_are_refused(tmp_path):
    files = [str(write_files(tmp_path, VALUES, name)) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"^lora: must hold one adapter .*got \S+a\.safetensors, \S+b\.safetensors"):
        find_edit_adapter(files)


def test_a_card_is_frozen(tmp_path):
    card = read_adapter_card(write_files(tmp_path, VALUES))
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.base = "another"


def test_cards_are_read_without_torch():
    code = "import sys, ddim_lightning.models.adapter_card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
