"""A card says beside the file of an adapter what it was trained for, and which settings it is used with.

Nothing heavy is imported here, so that the command line can show what will be taken before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ddim_lightning.models.source import find_lora

_PART = "{class_path, init_args}"


@dataclass(frozen=True)
class AdapterCard:
    """An `AdapterCard` says what an adapter was trained for; it lies in a JSON beside the file, under the same name.

    Args:
        objectives: What became small in its training, as ``{class_path, init_args}``, with their weights.
        editor: The editor that it was trained for, as ``{class_path, init_args}``, which makes it an *edit adapter*: it
            acts in edits alone. ``None`` for a LoRA that is added to the weights, such as one of a subject or a style.
        num_inference_steps: Recommended steps, >= 1; ``None`` recommends none, and so below.
        guidance_scale: Recommended guidance scale, >= 0.
        base: Fingerprint of the transformer that it changes; see `digest_base`.
        source_mark: What is added to the tokens of a source that is read, a number a channel; ``None`` for nothing.
        package_version: Of the package that wrote it.

    Raises:
        ValueError: A value of a wrong type, or out of its range; the message begins with its name.
    """

    objectives: tuple[Mapping[str, Any], ...]
    editor: Mapping[str, Any] | None
    num_inference_steps: int | None
    guidance_scale: float | None
    base: str
    source_mark: tuple[float, ...] | None
    package_version: str

    def __post_init__(self) -> None:
        steps, scale, mark = self.num_inference_steps, self.guidance_scale, self.source_mark
        right = isinstance(self.objectives, tuple) and all(map(_is_part, self.objectives))
        _check("objectives", self.objectives, f"a list of {_PART}", right)
        _check("editor", self.editor, f"{_PART} or null", self.editor is None or _is_part(self.editor))
        right = steps is None or (type(steps) is int and steps >= 1)
        _check("num_inference_steps", steps, "an integer of at least 1, or null", right)
        right = scale is None or (_is_number(scale) and scale >= 0)
        _check("guidance_scale", scale, "a number of at least 0, or null", right)
        _check("base", self.base, "a fingerprint", isinstance(self.base, str) and bool(self.base))
        right = mark is None or (isinstance(mark, tuple) and all(map(_is_number, mark)))
        _check("source_mark", mark, "a list of numbers or null", right)
        _check("package_version", self.package_version, "text", isinstance(self.package_version, str))

    @property
    def editor_name(self) -> str:
        """The class name of its editor; empty where it has none."""
        return "" if self.editor is None else str(self.editor["class_path"]).rpartition(".")[2]

    def to_json(self) -> str:
        """Return the text of its file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


class EditAdapterFile(NamedTuple):
    """An `EditAdapterFile` is the file of an edit adapter, with its card.

    Args:
        path: The safetensors file.
        card: What lies beside it.
        position: Which of the files that were asked for it is, from 0.
    """

    path: Path
    card: AdapterCard
    position: int


def get_card_path(path: Path) -> Path:
    """Return where the card of an adapter's file lies."""
    return path.with_suffix(".json")


def read_adapter_card(file: str | Path) -> AdapterCard | None:
    """Read the card of an adapter.

    Args:
        file: What `find_lora` takes.

    Returns:
        The card; ``None`` for a plain LoRA: nothing of that name lies beside the file, or the JSON of another program.

    Raises:
        OSError: The file of the adapter is missing.
        ValueError: A card that is broken; the message names it and the key.
    """
    path = get_card_path(find_lora(str(file)))
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"lora: {path} must be JSON: {' '.join(str(error).split())}") from error
    known = tuple(AdapterCard.__dataclass_fields__)
    if not isinstance(values, dict) or not set(known) & set(values):
        return None
    if wrong := [*sorted(set(values) - set(known)), *(name for name in known if name not in values)]:
        rule = f"must have the keys {', '.join(known)} and no others"
        raise ValueError(f"lora: {path}: {wrong[0]}: {rule}, got {', '.join(values)}")
    for name in ("objectives", "source_mark"):
        if isinstance(values[name], list):
            values[name] = tuple(values[name])
    try:
        return AdapterCard(**values)
    except ValueError as error:
        raise ValueError(f"lora: {path}: {error}") from error


def find_edit_adapter(files: Sequence[str]) -> EditAdapterFile | None:
    """Find the edit adapter among LoRA files, of which there is at most one; files that are missing are passed over.

    Raises:
        ValueError: Several of them, or a card that is broken.
    """
    found = []
    for position, file in enumerate(files):
        path = None
        with suppress(OSError):  # it may be brought before the model is loaded, which needs it
            path = find_lora(file)
        card = None if path is None else read_adapter_card(path)
        if path is not None and card is not None and card.editor is not None:
            found.append(EditAdapterFile(path, card, position))
    if len(found) > 1:
        got = ", ".join(str(one.path) for one in found)
        raise ValueError(f"lora: must hold one adapter that was trained for an editor at most, got {got}")
    return found[0] if found else None


def _check(name: str, value: object, rule: str, right: bool) -> None:
    if not right:
        raise ValueError(f"{name}: must be {rule}, got {value!r}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(float(value)) < float("inf")  # type: ignore[arg-type]


def _is_part(value: object) -> bool:
    """Whether a value is ``{class_path, init_args}``."""
    if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
        return False
    return not set(value) - {"class_path", "init_args"} and isinstance(value.get("init_args", {}), Mapping)
